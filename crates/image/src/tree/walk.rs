//! Reaching files of a tree without ever leaving it.
//!
//! Every directory on the way is opened by itself, and a symbolic link is not
//! one: whatever an archive has put into the tree, nothing outside of it is
//! reached.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{self, Errno};

/// Most directories that one path goes through.
const DEPTH: usize = 128;
/// Longest path in bytes; Linux takes no longer one in one go.
const LONGEST: usize = 4000;
/// Longest name in bytes of the file systems in use.
const LONGEST_NAME: usize = 255;

/// The path of an archive's entry, relative to the root and with plain parts
/// only; or what is wrong with it.
pub fn clean(path: &Path) -> Result<PathBuf, &'static str> {
    let mut clean = PathBuf::new();
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.len() > LONGEST {
        return Err("its path is longer than 4000 bytes");
    }
    if bytes.iter().any(u8::is_ascii_control) {
        return Err("its path has control characters");
    }
    for component in path.components() {
        match component {
            Component::Normal(part) if part.len() > LONGEST_NAME => {
                return Err("its name is longer than 255 bytes");
            }
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err("its path has '..'"),
            Component::RootDir | Component::Prefix(_) => return Err("its path is absolute"),
        }
    }
    if clean.components().count() > DEPTH {
        return Err("it is more than 128 directories deep");
    }
    Ok(clean)
}

/// The path of a layer's member, relative to the root and with plain parts
/// only; or what is wrong with it. What is a name to Linux is one here too, and
/// a slash at the beginning means nothing, as tar has it.
pub fn plain(path: &Path) -> Result<PathBuf, &'static str> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.len() > LONGEST {
        return Err("its path is longer than 4000 bytes");
    }
    if bytes.contains(&0) {
        return Err("its path has a zero byte");
    }
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) if part.len() > LONGEST_NAME => {
                return Err("its name is longer than 255 bytes");
            }
            Component::Normal(part) => plain.push(part),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            Component::ParentDir => return Err("its path has '..'"),
        }
    }
    if plain.components().count() > DEPTH {
        return Err("it is more than 128 directories deep");
    }
    Ok(plain)
}

/// Opens directories below a root, the last one at hand.
#[derive(Debug)]
pub struct Walker {
    root: OwnedFd,
    last: Option<(PathBuf, OwnedFd)>,
}

impl Walker {
    /// Below this directory.
    pub fn new(root: &Path) -> io::Result<Walker> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Walker {
            root: rustix::fs::open(root, flags, Mode::empty())?,
            last: None,
        })
    }

    /// Opens the directory at a [`clean`] path. Fails with `LOOP` or `NOTDIR`
    /// where the path goes through something else.
    pub fn directory(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let mut directory = self
                .root
                .try_clone()
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
            for part in path.components() {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                directory = openat(&directory, part.as_os_str(), flags, Mode::empty())?;
            }
            self.last = Some((path.to_owned(), directory));
        }
        match &self.last {
            Some((_, directory)) => Ok(directory.as_fd()),
            None => Err(Errno::NOENT),
        }
    }

    /// Opens the directory in which a [`clean`] path's file is, and the file's
    /// name in it.
    pub fn parent<'a>(&mut self, path: &'a Path) -> io::Result<(BorrowedFd<'_>, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::ISDIR)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.directory(parent)?, name))
    }
}
