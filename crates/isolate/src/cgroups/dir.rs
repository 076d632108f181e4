//! A group's directory, by descriptor: its files are opened beneath it, so
//! that no path is walked twice and none can be exchanged on the way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::{Errno, read, write};

use super::Error;

/// A directory of one group in one hierarchy.
#[derive(Debug)]
pub struct Dir {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// Directories are made with this mode, less the umask.
const MODE: Mode = Mode::from_raw_mode(0o755);
const DIRECTORY: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// What is asked for at a time of a file: most have less.
const STEP: usize = 4096;
/// What a file of a group can have, in bytes: none comes near.
const MOST: usize = 64 << 20;

impl Dir {
    /// The directory at a path.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let descriptor = openat(
            CWD,
            &path,
            DIRECTORY.difference(OFlags::NOFOLLOW),
            Mode::empty(),
        )?;
        Ok(Dir { descriptor, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A group directly beneath it.
    pub fn child(&self, name: &str) -> io::Result<Self> {
        let descriptor = openat(&self.descriptor, name, DIRECTORY, Mode::empty())?;
        let path = self.path.join(name);
        Ok(Dir { descriptor, path })
    }

    /// The same once more.
    pub fn again(&self) -> io::Result<Self> {
        let descriptor = self.descriptor.try_clone()?;
        let path = self.path.clone();
        Ok(Dir { descriptor, path })
    }

    /// The group directly above it.
    pub fn above(&self) -> io::Result<Self> {
        let descriptor = openat(&self.descriptor, "..", DIRECTORY, Mode::empty())?;
        let path = self.path.parent().unwrap_or(&self.path).to_owned();
        Ok(Dir { descriptor, path })
    }

    /// Makes a group beneath it; `Ok(false)` if there is one of this name.
    pub fn make(&self, name: &str) -> io::Result<bool> {
        match mkdirat(&self.descriptor, name, MODE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A file of the group.
    pub fn file(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(openat(&self.descriptor, name, flags, Mode::empty())?)
    }

    /// Whether the group has a file of this name.
    pub fn has(&self, name: &str) -> bool {
        rustix::fs::accessat(
            &self.descriptor,
            name,
            rustix::fs::Access::EXISTS,
            AtFlags::empty(),
        )
        .is_ok()
    }

    /// Writes to a file in one call, as these files want it.
    pub fn put(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let file = self.file(name, OFlags::WRONLY)?;
        write_whole(file.as_fd(), value)
    }

    /// Writes to a file; the error names it.
    pub fn write(&self, name: &str, value: &str) -> Result<(), Error> {
        self.put(name, value.as_bytes())
            .map_err(|source| self.write_error(name, value, source))
    }

    /// An error of writing to a file.
    pub fn write_error(&self, name: &str, value: &str, source: io::Error) -> Error {
        Error::Write {
            path: self.path.join(name),
            value: value.trim_end().to_owned(),
            source,
        }
    }

    /// All of a file's text.
    pub fn text(&self, name: &str) -> io::Result<String> {
        let file = self.file(name, OFlags::RDONLY)?;
        read_whole(file.as_fd())
    }

    /// All of a file's text; the error names it.
    pub fn read(&self, name: &str) -> Result<String, Error> {
        self.text(name).map_err(|source| Error::Read {
            path: self.path.join(name),
            source,
        })
    }

    /// Names of the groups directly beneath it.
    pub fn children(&self) -> Result<Vec<String>, Error> {
        let failed = |source: Errno| Error::Read {
            path: self.path.clone(),
            source: source.into(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let list = openat(&self.descriptor, ".", flags, Mode::empty()).map_err(failed)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(list).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type() != rustix::fs::FileType::Directory {
                continue;
            }
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Writes in one call; a part of it is an error.
pub fn write_whole(file: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    match write(file, value)? {
        written if written == value.len() => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::WriteZero)),
    }
}

fn read_whole(file: BorrowedFd<'_>) -> io::Result<String> {
    let mut text = Vec::new();
    loop {
        let before = text.len();
        if before > MOST {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        text.resize(before + STEP.max(before), 0);
        let got = read(file, &mut text[before..]);
        text.truncate(before + got.unwrap_or(0));
        match got {
            Ok(0) => {}
            Ok(_) | Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        return String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into());
    }
}
