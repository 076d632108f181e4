//! From an archive into a tree.
//!
//! An archive is untrusted. Refused are: paths that are absolute or have
//! `..`, entries below or through a symbolic link, hard links to anything but
//! a file of the archive, devices outside of `/dev` (those in it are left
//! out: every kernel makes its own), sparse files, and more than [`Limits`]
//! allow. A later entry replaces an earlier one of the same path, as tar has
//! it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, linkat, mkdirat, mknodat,
    openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::extended::Extended;
use super::walk::{Walker, clean};
use super::{Attributes, Kind, Tree};
use crate::Error;

/// How much an archive may unpack to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, directories and links, those among them that are only on the way
    /// to another.
    pub entries: usize,
    /// Bytes of memory for paths and extended attributes that are remembered
    /// to the end: in a compressed archive these cost next to nothing.
    pub remembered: u64,
}

impl Limits {
    /// Counts what is remembered of a member; or what is wrong.
    pub(crate) fn remember(
        &self,
        sum: &mut u64,
        path: &Path,
        extended: &BTreeMap<String, Vec<u8>>,
    ) -> Result<(), String> {
        let attributes = extended
            .iter()
            .fold(0usize, |sum, (name, value)| sum + name.len() + value.len());
        let bytes = path.as_os_str().len().saturating_add(attributes);
        *sum = sum.saturating_add(bytes as u64);
        if *sum > self.remembered {
            let limit = self.remembered >> 20;
            return Err(format!(
                "its paths and extended attributes have more than {limit} MiB"
            ));
        }
        Ok(())
    }
}

impl Default for Limits {
    /// More than any root file system in use has, less than what fills a
    /// server.
    fn default() -> Self {
        Limits {
            bytes: 64 << 30,
            entries: 4_000_000,
            remembered: 512 << 20,
        }
    }
}

/// Why it stopped.
enum Fault {
    /// The archive is refused.
    Refused(String),
    /// The host cannot take it.
    Host(io::Error),
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

impl Tree {
    /// Unpacks an archive into the tree. `origin` is the archive's name in
    /// messages; `progress` is told the bytes of files so far.
    pub fn unpack(
        &mut self,
        archive: impl Read,
        origin: &Path,
        limits: Limits,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        let walker = Walker::new(&self.root).map_err(Error::io("open directory", &self.root))?;
        let mut unpacker = Unpacker {
            tree: self,
            walker,
            limits,
            bytes: 0,
            entries: 0,
            remembered: 0,
        };
        let done = unpacker.all(archive, progress);
        done.map_err(|fault| match fault {
            Fault::Refused(why) => Error::Refused {
                path: origin.to_owned(),
                why,
            },
            Fault::Host(source) => Error::io("unpack to", &self.root)(source),
        })
    }
}

struct Unpacker<'a> {
    tree: &'a mut Tree,
    walker: Walker,
    limits: Limits,
    bytes: u64,
    entries: usize,
    /// As [`Limits::remembered`] counts.
    remembered: u64,
}

impl Unpacker<'_> {
    fn all(&mut self, archive: impl Read, progress: &mut dyn FnMut(u64)) -> Result<(), Fault> {
        let mut archive = Archive::new(archive);
        let entries = archive.entries().map_err(unreadable)?.raw(true);
        let mut extended = Extended::default();
        let mut any = false;
        for entry in entries {
            let mut entry = entry.map_err(unreadable)?;
            match entry.header().entry_type() {
                EntryType::XHeader => extended.pax(&mut entry)?,
                EntryType::GNULongName => extended.gnu_path(&mut entry)?,
                EntryType::GNULongLink => extended.gnu_link(&mut entry)?,
                // A comment, as `git archive` leaves it.
                EntryType::XGlobalHeader => {}
                _ => {
                    self.entry(&mut entry, std::mem::take(&mut extended))?;
                    any = true;
                    progress(self.bytes);
                }
            }
        }
        // Zeros are an empty archive, and a disk is none.
        if any {
            Ok(())
        } else {
            Err("it is an archive of nothing".into())
        }
    }

    fn entry<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        extended: Extended,
    ) -> Result<(), Fault> {
        let named = match extended.path {
            Some(path) => path,
            None => entry
                .path()
                .map_err(|error| format!("a path: {error}"))?
                .into_owned(),
        };
        let refused = |why: &str| {
            Fault::Refused(format!(
                "'{}': {why}",
                named.display().to_string().escape_debug()
            ))
        };
        let path = clean(&named).map_err(refused)?;
        let missing = self.missing(&path);
        self.entries = self.entries.saturating_add(missing.len()).saturating_add(1);
        if self.entries > self.limits.entries {
            return Err(format!("it has more than {} entries", self.limits.entries).into());
        }
        let none = BTreeMap::new();
        for parent in &missing {
            self.limits.remember(&mut self.remembered, parent, &none)?;
        }
        self.limits
            .remember(&mut self.remembered, &path, &extended.attributes)?;
        let header = entry.header();
        let number = |own: io::Result<u64>, extended: Option<u64>, what: &str| {
            let number = match extended {
                Some(number) => Some(number),
                None => own.ok(),
            };
            number
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| refused(what))
        };
        let mut attributes = Attributes::new(
            Kind::File,
            header
                .mode()
                .map_err(|_| refused("its mode is no number"))?,
        );
        attributes.uid = number(
            header.uid(),
            extended.uid,
            "its owner is no number of 32 bits",
        )?;
        attributes.gid = number(
            header.gid(),
            extended.gid,
            "its group is no number of 32 bits",
        )?;
        // Up to the year 2446, which is as far as ext4 can count.
        attributes.mtime = header.mtime().unwrap_or(0).min(15_032_385_535);
        self.tree.newest = self.tree.newest.max(attributes.mtime);
        attributes.extended = extended.attributes;
        let kind = header.entry_type();
        if extended.sparse.is_some() || kind == EntryType::GNUSparse {
            return Err(refused("sparse; make the archive without --sparse"));
        }
        let size = header
            .size()
            .map_err(|_| refused("its length is no number"))?;
        if extended.size.is_some_and(|stated| stated != size) {
            return Err(refused(
                "files of 8 GiB and more are not taken from archives",
            ));
        }
        let link = match extended.link {
            Some(link) => Some(link),
            None => entry
                .link_name()
                .map_err(|error| format!("a link: {error}"))?
                .map(|link| link.into_owned()),
        };
        let result = match kind {
            EntryType::Directory => self.directory(&path, attributes),
            EntryType::Regular | EntryType::Continuous => {
                if path.as_os_str().is_empty() {
                    return Err(refused("it is not in the tree"));
                }
                self.bytes = self.bytes.saturating_add(size);
                if self.bytes > self.limits.bytes {
                    let limit = self.limits.bytes >> 20;
                    return Err(format!("its files have more than {limit} MiB").into());
                }
                self.file(&path, attributes, entry, size)
            }
            EntryType::Symlink => {
                let target = link.ok_or_else(|| refused("a link to nowhere"))?;
                attributes.kind = Kind::Symlink;
                attributes.mode = 0o777;
                let length = target.as_os_str().len();
                if length == 0 || length > 4095 {
                    return Err(refused("its target is empty or longer than 4095 bytes"));
                }
                self.replace(&path, attributes, |directory, name| {
                    symlinkat(&target, directory, name)
                })
            }
            EntryType::Link => {
                let target = link.ok_or_else(|| refused("a link to nowhere"))?;
                let target = clean(&target).map_err(|why| refused(&format!("a link: {why}")))?;
                self.hard_link(&path, &target)
                    .map_err(|fault| match fault {
                        Fault::Refused(why) => refused(&why),
                        other => other,
                    })?;
                return Ok(());
            }
            EntryType::Fifo => {
                attributes.kind = Kind::Fifo;
                self.replace(&path, attributes, |directory, name| {
                    mknodat(directory, name, FileType::Fifo, Mode::from(0o600), 0)
                })
            }
            EntryType::Char | EntryType::Block if path.starts_with("dev") => return Ok(()),
            EntryType::Char | EntryType::Block => {
                return Err(refused("a device outside of /dev"));
            }
            other => {
                return Err(refused(&format!(
                    "of the unknown kind {:?}",
                    other.as_byte() as char
                )));
            }
        };
        result.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::LOOP | Errno::NOTDIR) => {
                refused("its path goes through a link or a file, not directories")
            }
            Some(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                refused("it is in the place of a directory")
            }
            Some(Errno::NAMETOOLONG) => refused("its name is too long for this host"),
            _ if error.kind() == io::ErrorKind::UnexpectedEof => {
                refused("the archive ends in the middle of it")
            }
            _ => Fault::Host(error),
        })
    }

    /// The directories above a path that no entry has made, the deepest first.
    fn missing(&self, path: &Path) -> Vec<PathBuf> {
        path.ancestors()
            .skip(1)
            .take_while(|parent| self.tree.ledger.get(parent).is_none())
            .map(Path::to_owned)
            .collect()
    }

    /// Makes them.
    fn parents(&mut self, path: &Path) -> io::Result<()> {
        for parent in self.missing(path).into_iter().rev() {
            self.directory(&parent, Attributes::new(Kind::Directory, 0o755))?;
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, mut attributes: Attributes) -> io::Result<()> {
        attributes.kind = Kind::Directory;
        if !path.as_os_str().is_empty() {
            self.parents(path)?;
            let (parent, name) = self.walker.parent(path)?;
            match mkdirat(parent, name, Mode::from(0o700)) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    // Another entry for the same one; never a link to one.
                    self.walker.directory(path)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.tree.ledger.set(path.to_owned(), attributes);
        Ok(())
    }

    /// Removes what an earlier entry has put there, unless it is a directory.
    fn clear(&mut self, path: &Path) -> io::Result<()> {
        self.parents(path)?;
        let (parent, name) = self.walker.parent(path)?;
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn replace(
        &mut self,
        path: &Path,
        attributes: Attributes,
        make: impl FnOnce(std::os::fd::BorrowedFd<'_>, &std::ffi::OsStr) -> rustix::io::Result<()>,
    ) -> io::Result<()> {
        self.clear(path)?;
        let (parent, name) = self.walker.parent(path)?;
        make(parent, name)?;
        let times = times(attributes.mtime);
        utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        self.tree.ledger.set(path.to_owned(), attributes);
        Ok(())
    }

    fn file(
        &mut self,
        path: &Path,
        attributes: Attributes,
        contents: &mut impl Read,
        size: u64,
    ) -> io::Result<()> {
        self.clear(path)?;
        let (parent, name) = self.walker.parent(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(parent, name, flags, Mode::from(0o600))?);
        if io::copy(contents, &mut file)? != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.flush()?;
        rustix::fs::futimens(&file, &times(attributes.mtime))?;
        self.tree.ledger.set(path.to_owned(), attributes);
        Ok(())
    }

    /// One more name of a file: the attributes are the first one's.
    fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), Fault> {
        let attributes = match self.tree.ledger.get(target) {
            Some(attributes) if attributes.kind == Kind::File => attributes.clone(),
            Some(_) => return Err("a hard link to what is no file".into()),
            None => return Err("a hard link to what is not in the archive".into()),
        };
        if path == target {
            return Ok(());
        }
        let host = Fault::Host;
        self.clear(path).map_err(host)?;
        let from = self.walker.parent(target).and_then(|(parent, name)| {
            // The ledger knows it as a file; make sure, without following.
            let about = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let regular = FileType::from_raw_mode(about.st_mode) == FileType::RegularFile;
            if regular { Ok(()) } else { Err(Errno::LOOP) }
        });
        from.map_err(|error| host(error.into()))?;
        // The walker holds one directory at a time; this is the other.
        let mut other = Walker::new(&self.tree.root).map_err(|error| host(error.into()))?;
        let linked = other.parent(target).and_then(|(from, old)| {
            let (to, new) = self.walker.parent(path)?;
            linkat(from, old, to, new, AtFlags::empty())
        });
        linked.map_err(|error| host(error.into()))?;
        self.tree.ledger.set(path.to_owned(), attributes);
        Ok(())
    }
}

fn unreadable(error: io::Error) -> Fault {
    // Faults of the host's own show when the file is read again.
    Fault::Refused(format!("it is no archive that can be read: {error}"))
}

fn times(mtime: u64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: i64::try_from(mtime).unwrap_or(0),
            tv_nsec: 0,
        },
    }
}
