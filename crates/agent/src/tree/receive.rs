//! Receiving.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use croft_api::agent::{DEPTH_MAX, Entry, Failure, FrameKind, Meta};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat,
    fchmod, fchown, futimens, mkdirat, openat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::AgentError;
use crate::connection::Receiver;

use super::{at, is_component, quoted};

/// How what arrives is kept.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Give everything this owner and group; those that each entry has if
    /// `keep_owner`; else they are whoever receives.
    pub owner: Option<(u32, u32)>,
    /// See `owner`.
    pub keep_owner: bool,
    /// What is added to the numbers that are kept: the first id of a user
    /// namespace.
    pub shift: u32,
    /// Permission bits that an entry may have.
    pub mode: u32,
}

/// Where what arrives is put.
#[derive(Debug)]
pub struct Target {
    /// A directory that is there.
    pub directory: OwnedFd,
    /// The name that it gets in it, if not its own.
    pub name: Option<OsString>,
    /// What is in the directory that comes is put into this one, and not the
    /// directory itself.
    pub contents: bool,
    /// The directory's name for messages.
    pub shown: PathBuf,
}

/// What arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Number of files, links and directories.
    pub entries: u64,
    /// Some of what was not copied, with reasons.
    pub skipped: Vec<String>,
    /// How many were not.
    pub skips: u64,
}

/// Most skipped entries remembered by name.
const SKIPS_MAX: usize = 100;

/// Receives a file or tree, up to its end, and puts it into `destination`
/// under the name that it has, if that is a directory, else there.
pub fn receive(
    receiver: &mut Receiver,
    destination: &Path,
    policy: Policy,
) -> Result<Arrival, AgentError> {
    let (parent, name) = place(destination)?;
    let top = openat(
        CWD,
        &parent,
        directory_flags() & !OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .map_err(at(&parent))?;
    let target = Target {
        directory: top,
        name,
        contents: false,
        shown: parent,
    };
    receive_into(receiver, target, policy)
}

/// As [`receive`], to a directory that is open.
pub fn receive_into(
    receiver: &mut Receiver,
    target: Target,
    policy: Policy,
) -> Result<Arrival, AgentError> {
    let mut sink = Sink {
        receiver,
        policy,
        levels: vec![Level {
            directory: target.directory,
            finish: None,
        }],
        path: target.shown,
        rename: target.name,
        contents: target.contents,
        arrival: Arrival::default(),
    };
    sink.run()?;
    Ok(sink.arrival)
}

/// The directory that the first entry is put into, and the name it gets there
/// if not its own.
fn place(destination: &Path) -> Result<(PathBuf, Option<OsString>), AgentError> {
    // Links that the user names are followed.
    let resolved = destination.canonicalize();
    let destination = resolved.as_deref().unwrap_or(destination);
    if destination.is_dir() {
        return Ok((destination.to_owned(), None));
    }
    let problem = || AgentError::Refused {
        path: quoted(destination),
        problem: "is no place for a file",
    };
    let name = destination.file_name().ok_or_else(problem)?;
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((parent.to_owned(), Some(name.to_owned())))
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// A directory that is being filled.
struct Level {
    directory: OwnedFd,
    /// What it gets when it is full, if it was made by us.
    finish: Option<Meta>,
}

struct Sink<'a> {
    receiver: &'a mut Receiver,
    policy: Policy,
    levels: Vec<Level>,
    /// Of the innermost level, for messages.
    path: PathBuf,
    /// Name of the first entry.
    rename: Option<OsString>,
    /// The first entry is the directory that is there.
    contents: bool,
    arrival: Arrival,
}

impl Sink<'_> {
    fn run(&mut self) -> Result<(), AgentError> {
        loop {
            match self.receiver.message::<Entry>()? {
                Entry::Directory(meta) => {
                    let name = self.name(&meta)?;
                    self.enter(&name, meta)?;
                }
                Entry::File { meta, size } => {
                    let name = self.name(&meta)?;
                    self.file(&name, &meta, size)?;
                }
                Entry::Symlink { meta, target } => {
                    let name = self.name(&meta)?;
                    self.symlink(&name, &meta, &target)?;
                }
                Entry::Skipped { name, reason } => {
                    self.arrival.skips += 1;
                    if self.arrival.skipped.len() < SKIPS_MAX {
                        let reason: String = reason.escape_debug().take(200).collect();
                        let text = format!("{}: {reason}", quoted(self.path.join(name)));
                        self.arrival.skipped.push(text);
                    }
                }
                Entry::Failed { message } => {
                    return Err(AgentError::failed(Failure::Other, &message));
                }
                Entry::Leave => self.leave()?,
                Entry::End if self.levels.len() == 1 => return Ok(()),
                Entry::End => return Err(self.receiver.damaged("an end within a directory")),
            }
        }
    }

    /// The name that an entry gets.
    fn name(&mut self, meta: &Meta) -> Result<OsString, AgentError> {
        self.arrival.entries += 1;
        if self.levels.len() == 1 && self.arrival.entries > 1 {
            return Err(self.receiver.damaged("more than one tree"));
        }
        let name = self.rename.take().unwrap_or_else(|| meta.name.clone());
        match is_component(&name) {
            true => Ok(name),
            false => Err(self.receiver.damaged("a name that is a path")),
        }
    }

    fn directory(&self) -> Result<&OwnedFd, AgentError> {
        let level = self.levels.last().map(|level| &level.directory);
        level.ok_or_else(|| self.receiver.damaged("an end too many"))
    }

    fn owner(&self, meta: &Meta) -> Option<(Uid, Gid)> {
        let shifted = |id: u32| id.saturating_add(self.policy.shift);
        let kept = self.policy.keep_owner;
        let kept = kept.then(|| (shifted(meta.uid), shifted(meta.gid)));
        let (uid, gid) = self.policy.owner.or(kept)?;
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    fn mode(&self, meta: &Meta) -> Mode {
        Mode::from_raw_mode(meta.mode & self.policy.mode & 0o7777)
    }

    fn enter(&mut self, name: &OsStr, meta: Meta) -> Result<(), AgentError> {
        if self.levels.len() > DEPTH_MAX {
            return Err(self.receiver.damaged("a tree that is too deep"));
        }
        let contents = std::mem::take(&mut self.contents);
        let around = self.directory()?;
        if contents {
            let directory = around.try_clone().map_err(|source| AgentError::File {
                path: quoted(&self.path),
                source,
            })?;
            // Only the end follows its leaving: what becomes of the path then
            // is of no interest.
            self.levels.push(Level {
                directory,
                finish: None,
            });
            return Ok(());
        }
        let path = self.path.join(name);
        let made = match mkdirat(around, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(at(&path)(error)),
        };
        let directory =
            openat(around, name, directory_flags(), Mode::empty()).map_err(at(&path))?;
        self.path = path;
        self.levels.push(Level {
            directory,
            finish: made.then_some(meta),
        });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), AgentError> {
        if self.levels.len() < 2 {
            return Err(self.receiver.damaged("an end too many"));
        }
        let Some(level) = self.levels.pop() else {
            return Ok(());
        };
        if let Some(meta) = &level.finish {
            self.keep(level.directory.as_fd(), meta)?;
        }
        self.path.pop();
        Ok(())
    }

    /// Gives an open file or directory what its entry says. The owner first:
    /// a change of it takes permissions away.
    fn keep(&self, file: impl AsFd, meta: &Meta) -> Result<(), AgentError> {
        if let Some((uid, gid)) = self.owner(meta) {
            fchown(&file, Some(uid), Some(gid)).map_err(at(&self.path))?;
        }
        fchmod(&file, self.mode(meta)).map_err(at(&self.path))?;
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: meta.modified,
                tv_nsec: 0,
            },
        };
        // A time that the file system does not have is no reason to fail.
        let _ = futimens(&file, &times);
        Ok(())
    }

    /// A name in the innermost directory that nothing has yet.
    fn temporary(&self) -> Result<OsString, AgentError> {
        let mut random = [0u8; 8];
        let drawn = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        drawn.map_err(at(&self.path))?;
        let number = u64::from_le_bytes(random);
        Ok(OsString::from(format!(".croft-{number:016x}")))
    }

    /// Refuses to put something in place of what is neither a file nor a
    /// link: of a directory, and of a device such as `/dev/null`.
    fn check_replaced(&self, name: &OsStr) -> Result<(), AgentError> {
        match statat(self.directory()?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile | FileType::Symlink => Ok(()),
                FileType::Directory => Err(self.refused(name, "is a directory")),
                _ => Err(self.refused(name, "is neither a file nor a directory")),
            },
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(at(&self.path.join(name))(error)),
        }
    }

    fn refused(&self, name: &OsStr, problem: &'static str) -> AgentError {
        AgentError::Refused {
            path: quoted(self.path.join(name)),
            problem,
        }
    }

    /// A file is written under another name first: whoever looks sees the old
    /// one or the new one.
    fn file(&mut self, name: &OsStr, meta: &Meta, size: u64) -> Result<(), AgentError> {
        self.check_replaced(name)?;
        let path = self.path.join(name);
        let temporary = self.temporary()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(self.directory()?, &temporary, flags, mode).map_err(at(&path))?;
        let mut file = File::from(file);
        let written = self.contents(&mut file, &path, size).and_then(|()| {
            self.keep(&file, meta)?;
            let directory = self.directory()?;
            renameat(directory, &temporary, directory, name).map_err(at(&path))
        });
        if written.is_err() {
            // Nothing is left of it.
            let _ = unlinkat(self.directory()?, &temporary, AtFlags::empty());
        }
        written
    }

    fn contents(&mut self, file: &mut File, path: &Path, size: u64) -> Result<(), AgentError> {
        let mut left = size;
        while left > 0 {
            let frame = self.receiver.frame()?;
            let frame = frame.ok_or_else(|| self.receiver.damaged("half a file"))?;
            let len = frame.bytes.len() as u64;
            if frame.kind != FrameKind::File || len > left {
                return Err(self.receiver.damaged("something else than a file's data"));
            }
            if len == 0 {
                return Err(AgentError::Refused {
                    path: quoted(path),
                    problem: "became shorter, or unreadable, while it was copied",
                });
            }
            file.write_all(&frame.bytes)
                .map_err(|source| AgentError::File {
                    path: quoted(path),
                    source,
                })?;
            left -= len;
        }
        Ok(())
    }

    fn symlink(&mut self, name: &OsStr, meta: &Meta, target: &OsStr) -> Result<(), AgentError> {
        self.check_replaced(name)?;
        let path = self.path.join(name);
        let temporary = self.temporary()?;
        let directory = self.directory()?;
        symlinkat(target, directory, &temporary).map_err(at(&path))?;
        let mut kept = Ok(());
        if let Some((uid, gid)) = self.owner(meta) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            kept = chownat(directory, &temporary, Some(uid), Some(gid), flags);
        }
        let kept = kept.and_then(|()| renameat(directory, &temporary, directory, name));
        if kept.is_err() {
            let _ = unlinkat(directory, &temporary, AtFlags::empty());
        }
        kept.map_err(at(&path))
    }
}
