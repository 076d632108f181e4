//! Sending.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use croft_api::agent::{DEPTH_MAX, Entry, FrameKind, Meta};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat,
};
use rustix::io::Errno;

use crate::AgentError;
use crate::connection::Sender;

use super::{at, quoted};

/// Bytes of a file sent at once.
const CHUNK: usize = 128 << 10;

/// Sends the file or tree at `path`, following it if it is a link, and the
/// end; what fails here is told to the receiver too.
pub fn send(sender: &mut Sender, path: &Path) -> Result<(), AgentError> {
    let sent = send_tree(sender, path);
    if let Err(error @ (AgentError::File { .. } | AgentError::Refused { .. })) = &sent {
        let message = error.to_string();
        sender.message(&Entry::Failed { message })?;
    }
    sent
}

/// As [`send`], what is open: a file or a directory, with the name that it has
/// for the receiver. `shown` is its path for messages.
pub fn send_open(
    sender: &mut Sender,
    file: OwnedFd,
    name: &OsStr,
    shown: &Path,
) -> Result<(), AgentError> {
    let sent = send_file(sender, file, name, shown);
    if let Err(error @ (AgentError::File { .. } | AgentError::Refused { .. })) = &sent {
        let message = error.to_string();
        sender.message(&Entry::Failed { message })?;
    }
    sent
}

fn send_file(
    sender: &mut Sender,
    file: OwnedFd,
    name: &OsStr,
    shown: &Path,
) -> Result<(), AgentError> {
    let stat = fstat(&file).map_err(at(shown))?;
    check(&stat, shown)?;
    let mut walk = Walk {
        sender,
        path: shown.to_owned(),
    };
    walk.opened(file, name, 1)?;
    sender.message(&Entry::End)
}

/// Only files and directories are copied.
fn check(stat: &Stat, path: &Path) -> Result<(), AgentError> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory => Ok(()),
        _ => Err(AgentError::Refused {
            path: quoted(path),
            problem: "is neither a file nor a directory, and is not copied",
        }),
    }
}

fn send_tree(sender: &mut Sender, path: &Path) -> Result<(), AgentError> {
    let name = match path.file_name() {
        Some(name) => name.to_owned(),
        // "/" or "..": what is in it is meant.
        None => OsString::from("root"),
    };
    let stat = statat(CWD, path, AtFlags::empty()).map_err(at(path))?;
    check(&stat, path)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty()).map_err(at(path))?;
    send_file(sender, opened, &name, path)
}

struct Walk<'a> {
    sender: &'a mut Sender,
    /// Where it is, for messages.
    path: PathBuf,
}

fn meta(name: &OsStr, stat: &Stat) -> Meta {
    Meta {
        name: name.to_owned(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: stat.st_mtime,
    }
}

impl Walk<'_> {
    fn skip(&mut self, name: &OsStr, reason: impl Into<String>) -> Result<(), AgentError> {
        self.sender.message(&Entry::Skipped {
            name: name.to_owned(),
            reason: reason.into(),
        })
    }

    /// Sends `name`, which is open.
    fn opened(&mut self, file: OwnedFd, name: &OsStr, depth: usize) -> Result<(), AgentError> {
        let stat = fstat(&file).map_err(at(&self.path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(file, name, &stat),
            FileType::Directory => self.directory(&file, name, &stat, depth),
            _ => self.skip(name, "is neither a file, a directory nor a link"),
        }
    }

    /// Sends `name` in `directory`.
    fn entry(
        &mut self,
        directory: impl AsFd,
        name: &OsStr,
        depth: usize,
    ) -> Result<(), AgentError> {
        let stat = match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return self.skip(name, error.to_string()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => match readlinkat(&directory, name, Vec::new()) {
                Ok(target) => self.sender.message(&Entry::Symlink {
                    meta: meta(name, &stat),
                    target: OsString::from_vec(target.into_bytes()),
                }),
                Err(error) => self.skip(name, error.to_string()),
            },
            FileType::RegularFile | FileType::Directory => {
                let flags = OFlags::RDONLY
                    | OFlags::NOFOLLOW
                    | OFlags::NONBLOCK
                    | OFlags::NOCTTY
                    | OFlags::CLOEXEC;
                match openat(&directory, name, flags, Mode::empty()) {
                    Ok(opened) => self.opened(opened, name, depth),
                    Err(error) => self.skip(name, error.to_string()),
                }
            }
            _ => self.skip(name, "is neither a file, a directory nor a link"),
        }
    }

    fn file(&mut self, file: OwnedFd, name: &OsStr, stat: &Stat) -> Result<(), AgentError> {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        self.sender.message(&Entry::File {
            meta: meta(name, stat),
            size,
        })?;
        let mut file = File::from(file).take(size);
        let mut bytes = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
        let mut left = size;
        while left > 0 {
            // A file that shrank, or cannot be read, ends early.
            match file.read(&mut bytes) {
                Ok(0) | Err(_) => return self.sender.data(FrameKind::File, &[]),
                Ok(count) => {
                    let there = bytes.get(..count).unwrap_or_default();
                    self.sender.data(FrameKind::File, there)?;
                    left = left.saturating_sub(count as u64);
                }
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        stat: &Stat,
        depth: usize,
    ) -> Result<(), AgentError> {
        if depth > DEPTH_MAX {
            return self.skip(name, "lies too deep");
        }
        self.path.push(name);
        self.sender.message(&Entry::Directory(meta(name, stat)))?;
        let entries = Dir::read_from(directory).map_err(at(&self.path))?;
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    self.skip(name, error.to_string())?;
                    break;
                }
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                self.entry(directory, name, depth + 1)?;
            }
        }
        self.path.pop();
        self.sender.message(&Entry::Leave)
    }
}
