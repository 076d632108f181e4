//! Where an image is before it is one.
//!
//! ```text
//! open ──adopt──► blobs, unreferenced ──commit──► in the index: an image
//!   └───────────────── dropped, killed ──────────► swept at the next open
//! ```

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::durable::{self, step};
use super::index::Index;
use super::layout::Layout;
use super::lock::Lock;
use super::{Image, load};
use crate::digest::Hasher;
use crate::{Digest, Error, Manifest, name};

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 18;

/// A directory in which an image is made, and the blobs that it will have. As
/// long as it is there nobody sweeps the store.
#[derive(Debug)]
pub struct Staging {
    layout: Layout,
    directory: tempfile::TempDir,
    lock: Lock,
}

/// What [`Staging::commit`] did.
#[derive(Debug)]
pub struct Committed {
    /// The image.
    pub image: Image,
    /// The image that had the name, and now has it no more.
    pub former: Option<Digest>,
}

impl Staging {
    pub(super) fn new(layout: &Layout) -> Result<Staging, Error> {
        let lock = Lock::shared(&layout.lock())?;
        let parent = layout.staging();
        let directory = tempfile::Builder::new()
            .prefix("new.")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&parent)
            .map_err(Error::io("make a directory in", &parent))?;
        Ok(Staging {
            layout: layout.clone(),
            directory,
            lock,
        })
    }

    /// The directory; empty at first, gone at the end.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Something to hand to a child process: the store is not swept as long as
    /// it has it, or a child of its own, whatever becomes of this process. It
    /// reads as an empty file.
    pub fn guard(&self) -> Result<std::process::Stdio, Error> {
        self.lock
            .share()
            .map_err(Error::io("share", &self.layout.lock()))
    }

    /// Makes a file of the directory a blob: its digest and length.
    pub fn adopt(&self, path: &Path) -> Result<(Digest, u64), Error> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let (digest, length) = Digest::of_file(&mut file).map_err(Error::io("read", path))?;
        self.place(path, &digest)?;
        Ok((digest, length))
    }

    /// Makes bytes a blob.
    pub fn write(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let path = self.path("small");
        fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        Ok(self.adopt(&path)?.0)
    }

    /// Makes what is read a blob, if it has this digest and length.
    pub fn take(&self, from: &mut dyn Read, digest: &Digest, length: u64) -> Result<(), Error> {
        let refused = |why: String| Error::Refused {
            path: format!("sha256:{digest}").into(),
            why,
        };
        let (path, found, count) = self.copy(&mut from.take(length.saturating_add(1)))?;
        if count != length {
            let more = if count > length { "more" } else { "fewer" };
            return Err(refused(format!("it has {more} than {length} bytes")));
        }
        if found != *digest {
            return Err(refused(format!("its contents have the digest {found}")));
        }
        self.place(&path, digest)
    }

    /// Makes what is read a blob: its digest and length.
    pub fn take_any(&self, from: &mut dyn Read) -> Result<(Digest, u64), Error> {
        let (path, digest, count) = self.copy(from)?;
        self.place(&path, &digest)?;
        Ok((digest, count))
    }

    fn copy(&self, from: &mut dyn Read) -> Result<(PathBuf, Digest, u64), Error> {
        let path = self.path("blob");
        let file = File::create(&path).map_err(Error::io("make", &path))?;
        let mut to = Hasher::new(file);
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::io("read what becomes", &path)(error)),
            };
            to.write_all(buffer.get(..count).unwrap_or_default())
                .map_err(Error::io("write", &path))?;
        }
        let (digest, count) = to.finish();
        Ok((path, digest, count))
    }

    /// Makes a file a blob whose digest is known.
    pub(crate) fn place(&self, path: &Path, digest: &Digest) -> Result<(), Error> {
        step();
        let file = File::open(path).map_err(Error::io("open", path))?;
        // Nobody writes to a blob again, by accident at least.
        file.set_permissions(Permissions::from_mode(0o400))
            .and_then(|()| file.sync_all())
            .map_err(Error::io("write", path))?;
        durable::rename(path, &self.layout.blob(digest))
    }

    /// Makes it an image with a name. Another image that has the name loses
    /// it, and stays without one for the instances that use it.
    pub fn commit(self, manifest: &Manifest, name: &str) -> Result<Committed, Error> {
        name::check(name)?;
        let path = self.path("manifest");
        let bytes = serde_json::to_vec_pretty(manifest).map_err(|error| Error::Store {
            path: path.clone(),
            why: error.to_string(),
        })?;
        fs::write(&path, &bytes).map_err(Error::io("write", &path))?;
        let (id, _) = self.adopt(&path)?;
        let _lock = Lock::exclusive(&self.layout.index_lock())?;
        let mut index = Index::read(&self.layout)?;
        let former = index.add(id, name);
        index.write(&self.layout)?;
        let names = index.names(&id).unwrap_or_default();
        Ok(Committed {
            image: load(&self.layout, id, names)?,
            former,
        })
    }
}
