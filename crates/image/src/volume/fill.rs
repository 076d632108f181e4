//! From an image's layers into a volume.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, mkdirat, mknodat, openat, symlinkat};

use crate::Error;
use crate::layer::{Fault, Found, Rights, Stack, copy_data};
use crate::tree::walk::{Walker, plain};

/// Most files that are copied: more than any image has in a volume.
const FILES: usize = 1 << 20;
/// Deepest directory.
const DEPTH: usize = 100;

struct Work {
    root: PathBuf,
    walker: Walker,
    rights: Rights,
    files: usize,
    /// First names of files with several, by device and inode.
    names: HashMap<(u64, u64), PathBuf>,
}

pub(super) fn fill(data: &Path, lowers: &[PathBuf], path: &str) -> Result<bool, Error> {
    let failed = |error: std::io::Error| Error::io("fill", data)(error);
    let mut entries = fs::read_dir(data).map_err(failed)?;
    if entries.next().is_some() {
        return Ok(false);
    }
    let stack = Stack::open(lowers).map_err(failed)?;
    let found = stack
        .resolve(Path::new(path))
        .map_err(|error| failed(error.into()))?;
    let Some(found) = found.filter(|found| found.kind() == FileType::Directory) else {
        return Ok(false);
    };
    let mut work = Work {
        root: data.to_owned(),
        walker: Walker::new(data).map_err(|error| failed(error.into()))?,
        rights: Rights {
            owners: rustix::process::geteuid().is_root(),
        },
        files: 0,
        names: HashMap::new(),
    };
    let done = work.directory(&found, Path::new(""), 0);
    let done = done.and_then(|()| {
        let directory = File::open(data)?;
        rustix::fs::syncfs(&directory)?;
        Ok(())
    });
    match done {
        Ok(()) => Ok(true),
        Err(fault) => {
            // What is half there would never be completed.
            empty(data);
            Err(match fault {
                Fault::Host(error) => failed(error),
                Fault::Refused(why) => Error::Unfit(format!("cannot fill a volume: {why}")),
            })
        }
    }
}

fn empty(data: &Path) {
    for entry in fs::read_dir(data).into_iter().flatten().flatten() {
        // The fault that led here is the one that is told.
        let _ = crate::store::sweep::remove(&entry.path());
    }
}

impl Work {
    fn directory(&mut self, from: &Found, path: &Path, depth: usize) -> Result<(), Fault> {
        if depth > DEPTH {
            return Err("its directories are too deep".into());
        }
        for name in from.names()? {
            let Some(found) = from.child(&name)? else {
                continue;
            };
            self.files = self.files.saturating_add(1);
            if self.files > FILES {
                return Err("it has too many files".into());
            }
            let path = plain(&path.join(&name))?;
            if found.kind() == FileType::Directory {
                let (parent, name) = self.walker.parent(&path)?;
                mkdirat(parent, name, Mode::from(0o700))?;
                self.directory(&found, &path, depth.saturating_add(1))?;
            } else {
                self.file(&found, &path)?;
            }
        }
        let attributes = from.attributes(&from.open()?)?;
        attributes.set(self.walker.directory(path)?, self.rights)?;
        Ok(())
    }

    fn file(&mut self, found: &Found, path: &Path) -> Result<(), Fault> {
        let about = &found.about;
        if about.st_nlink > 1 {
            let key = (about.st_dev, about.st_ino);
            if let Some(first) = self.names.get(&key) {
                let mut other = Walker::new(&self.root)?;
                let (from, old) = other.parent(first)?;
                let (to, new) = self.walker.parent(path)?;
                linkat(from, old, to, new, AtFlags::empty())?;
                return Ok(());
            }
            self.names.insert(key, path.to_owned());
        }
        let (parent, name) = self.walker.parent(path)?;
        match found.kind() {
            FileType::RegularFile => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mut to = File::from(openat(parent, name, flags, Mode::from(0o600))?);
                let mut from = found.open()?;
                let size = u64::try_from(about.st_size).unwrap_or(0);
                copy_data(&mut from, &mut to, size)?;
                found.attributes(&from)?.set(&to, self.rights)?;
            }
            FileType::Symlink => {
                symlinkat(found.target()?, parent, name)?;
                found
                    .plain_attributes()
                    .set_at(parent, name, true, self.rights)?;
            }
            FileType::Fifo => {
                mknodat(parent, name, FileType::Fifo, Mode::from(0o600), 0)?;
                found
                    .plain_attributes()
                    .set_at(parent, name, false, self.rights)?;
            }
            // Sockets are nobody's, and devices come from the runtime.
            _ => {}
        }
        Ok(())
    }
}
