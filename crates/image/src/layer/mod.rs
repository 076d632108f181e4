//! Layers of the OCI's images, as overlayfs wants them.
//!
//! ```text
//! blob ──decompress, hash──► members ──apply──► tree: files with their owners,
//!  (reader.rs)                (apply.rs)         modes, times, capabilities; what
//!                                                the layer deletes as whiteouts
//! ```
//!
//! Unlike [`crate::tree`], which makes disks without any privilege, this leaves
//! files as a container is to see them. Of root's, their owners are real, and
//! some are set-id: they are below a directory that nobody else can enter. A
//! user has them made in a user namespace of subordinate ids, or, without any,
//! has them all.
//!
//! A layer is untrusted. Every directory on the way to a file is opened by
//! itself and a symbolic link is not one (`tree::walk`), so a path
//! never leaves the tree. Refused are paths with `..`, hard links to what is
//! not in the image, members of unknown kinds, more than [`Limits`] allow, and
//! archives whose digest is not the one that the image's configuration has.

mod apply;
mod attributes;
mod reader;
mod stack;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use apply::Left;
pub(crate) use apply::copy_data;
pub use reader::{Member, Reader};
pub use stack::{Found, Stack};

use crate::digest::Hasher;
use crate::import::probe::Compression;
use crate::tree::Limits;
use crate::{Digest, Error};

/// Bytes of headers, padding and the like that a member may have in an archive
/// beside its contents.
const PER_MEMBER: u64 = 4096;

/// Why a layer was not unpacked.
#[derive(Debug)]
pub enum Fault {
    /// The layer is refused.
    Refused(String),
    /// The host cannot take it.
    Host(io::Error),
}

impl Fault {
    /// The archive cannot be read.
    fn unreadable(error: io::Error) -> Fault {
        Fault::Refused(format!("it is no archive that can be read: {error}"))
    }
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Fault::Refused(why)
    }
}

impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        Fault::Refused(why.to_owned())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Host(error)
    }
}

impl From<rustix::io::Errno> for Fault {
    fn from(error: rustix::io::Errno) -> Self {
        Fault::Host(error.into())
    }
}

/// What this process may do with files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Files can be given to others. Without, all are this user's.
    pub owners: bool,
}

/// An archive with a layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// How it is compressed.
    pub compression: Compression,
    /// Its digest as it is.
    pub blob: Digest,
    /// Its digest when it is not compressed, where it is known.
    pub diff: Option<Digest>,
}

/// Unpacks a layer into a directory that is empty, over what is `below`.
/// `progress` is told the bytes of the blob that were read.
pub fn unpack(
    blob: &Path,
    source: &Source,
    tree: &Path,
    below: &Stack,
    rights: Rights,
    limits: Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<Left, Error> {
    let file = File::open(blob).map_err(Error::io("open", blob))?;
    let done = layer(file, source, tree, below, rights, limits, progress);
    done.map_err(|fault| match fault {
        Fault::Refused(why) => Error::Refused {
            path: blob.to_owned(),
            why,
        },
        Fault::Host(source) => Error::io("unpack to", tree)(source),
    })
}

fn layer(
    file: File,
    source: &Source,
    tree: &Path,
    below: &Stack,
    rights: Rights,
    limits: Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<Left, Fault> {
    let stored = Watched {
        inner: file,
        hasher: Hasher::new(io::sink()),
        read: 0,
        progress,
    };
    let mut buffered = BufReader::with_capacity(1 << 17, stored);
    let most = limits
        .bytes
        .saturating_add((limits.entries as u64).saturating_mul(PER_MEMBER));
    let (diff, left) = contents(&mut buffered, source.compression, most, |archive| {
        apply::apply(archive, tree, below, rights, limits)
    })?;
    if source.diff.is_some_and(|wanted| wanted != diff) {
        return Err(format!(
            "its contents have the digest sha256:{diff}, not the one that the image's \
             configuration says"
        )
        .into());
    }
    io::copy(&mut buffered, &mut io::sink()).map_err(Fault::unreadable)?;
    let (blob, _) = buffered.into_inner().hasher.finish();
    if blob != source.blob {
        return Err(format!("its digest is sha256:{blob} now; the file was changed").into());
    }
    Ok(left)
}

/// What `apply` makes of the archive in a blob, and the archive's digest.
fn contents<T>(
    blob: impl BufRead,
    compression: Compression,
    most: u64,
    apply: impl FnOnce(&mut dyn Read) -> Result<T, Fault>,
) -> Result<(Digest, T), Fault> {
    let decoder = crate::import::decoder(blob, compression);
    let mut archive = Hashed {
        inner: decoder.map_err(Fault::unreadable)?.take(most),
        hasher: Hasher::new(io::sink()),
    };
    let made = apply(&mut archive)?;
    // What follows the archive's end is part of what was hashed.
    io::copy(&mut archive, &mut io::sink()).map_err(Fault::unreadable)?;
    if archive.inner.limit() == 0 {
        return Err("it is longer than any layer may be".into());
    }
    let (diff, _) = archive.hasher.finish();
    Ok((diff, made))
}

/// The blob, hashed, with word of how much was read.
struct Watched<'a> {
    inner: File,
    hasher: Hasher<io::Sink>,
    read: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use io::Write;
        let count = self.inner.read(buffer)?;
        self.hasher
            .write_all(buffer.get(..count).unwrap_or_default())?;
        self.read = self.read.saturating_add(count as u64);
        (self.progress)(self.read);
        Ok(count)
    }
}

/// What is read, hashed.
struct Hashed<R> {
    inner: R,
    hasher: Hasher<io::Sink>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use io::Write;
        let count = self.inner.read(buffer)?;
        self.hasher
            .write_all(buffer.get(..count).unwrap_or_default())?;
        Ok(count)
    }
}
