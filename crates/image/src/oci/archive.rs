//! The files of an archive of an image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use crate::Error;
use crate::import::decoder;
use crate::import::probe::Compression;
use crate::layer::{Fault, Member, Reader};
use crate::store::Staging;
use crate::tree::walk::plain;

/// Most members of an archive.
const FILES: usize = 8192;
/// Most bytes of them.
const BYTES: u64 = 128 << 30;
/// Longest link in bytes: what paths have at most.
const LINK: usize = 4000;
/// Most links that lead to a file.
const LINKS: usize = 8;

/// The files, in the staging directory, under numbers.
pub struct Members {
    origin: PathBuf,
    files: BTreeMap<PathBuf, PathBuf>,
    /// `docker save` of before version 25 links equal layers.
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Members {
    /// Puts an archive's files into the staging directory.
    pub fn unpack(
        origin: &Path,
        file: File,
        compression: Compression,
        staging: &Staging,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Members, Error> {
        let mut members = Members {
            origin: origin.to_owned(),
            files: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        let target = staging.path("files");
        let done = members.all(file, compression, &target, progress);
        done.map_err(|fault| match fault {
            Fault::Refused(why) => Error::Refused {
                path: origin.to_owned(),
                why,
            },
            Fault::Host(error) => Error::io("unpack to", &target)(error),
        })?;
        Ok(members)
    }

    fn all(
        &mut self,
        file: File,
        compression: Compression,
        target: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Fault> {
        std::fs::create_dir(target)?;
        let file = BufReader::with_capacity(1 << 17, file);
        let mut reader = Reader::new(decoder(file, compression)?);
        let (mut bytes, mut count) = (0u64, 0usize);
        while let Some(member) = reader.next_member()? {
            let path = plain(&member.path)?;
            count = count.saturating_add(1);
            if count > FILES {
                return Err(format!("it has more than {FILES} files").into());
            }
            match member.kind {
                EntryType::Regular => {
                    bytes = bytes.saturating_add(member.size);
                    if bytes > BYTES {
                        return Err(format!("it has more than {} GiB", BYTES >> 30).into());
                    }
                    let to = target.join(count.to_string());
                    copy(&member, &mut reader, &to)?;
                    // The last one of a path counts, as tar has it.
                    self.links.remove(&path);
                    if let Some(before) = self.files.insert(path, to) {
                        std::fs::remove_file(before)?;
                    }
                    progress(bytes);
                }
                EntryType::Symlink | EntryType::Link => {
                    let link = member.link.unwrap_or_default();
                    if link.as_os_str().len() > LINK {
                        return Err(format!("a link in it is longer than {LINK} bytes").into());
                    }
                    let from = match member.kind {
                        EntryType::Symlink => path.parent().unwrap_or(Path::new("")),
                        _ => Path::new(""),
                    };
                    let link = joined(from, &link).ok_or("a link in it leads out of it")?;
                    self.links.insert(path, link);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens a file, if there is one.
    pub fn open(&self, path: &Path) -> Result<Option<File>, Error> {
        let mut path = plain(path).map_err(|why| Error::Refused {
            path: self.origin.clone(),
            why: format!("'{}': {why}", path.display().to_string().escape_debug()),
        })?;
        for _ in 0..LINKS {
            if let Some(file) = self.files.get(&path) {
                return File::open(file).map(Some).map_err(Error::io("open", file));
            }
            match self.links.get(&path) {
                Some(link) => path.clone_from(link),
                None => return Ok(None),
            }
        }
        Ok(None)
    }
}

fn copy(member: &Member, reader: &mut impl Read, to: &Path) -> Result<(), Fault> {
    let (_, length) = match member.pieces.as_slice() {
        [] => (0, 0),
        [piece] if member.pieces.len() == 1 && *piece == (0, member.size) => *piece,
        _ => return Err("a file in it is sparse; make the archive without --sparse".into()),
    };
    let mut file = File::create_new(to)?;
    // What goes wrong with reading shows as too little; with writing as it is.
    let mut reading = Reading {
        inner: reader,
        failed: None,
    };
    let copied = io::copy(&mut (&mut reading).take(length), &mut file);
    if let Some(error) = reading.failed {
        return Err(format!("it is no archive that can be read: {error}").into());
    }
    if copied? != length {
        return Err("it ends in the middle of a file".into());
    }
    Ok(())
}

struct Reading<'a, R> {
    inner: &'a mut R,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Reading<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.failed = Some(error);
                Ok(0)
            }
            done => done,
        }
    }
}

/// Where a link in a directory leads, if it stays in the archive.
fn joined(directory: &Path, link: &Path) -> Option<PathBuf> {
    let mut path = directory.to_owned();
    for part in link.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            _ => return None,
        }
    }
    Some(path)
}
