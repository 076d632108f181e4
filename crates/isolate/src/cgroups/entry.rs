//! How a new process comes into a group: by itself, which costs a fraction of
//! what it costs to be moved.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, write};

use super::{Error, Group, Version};

/// The way into a group, opened beforehand: the child needs no rights and no
/// memory to take it.
#[derive(Debug)]
pub struct Entry {
    /// The directory in version 2.
    unified: Option<OwnedFd>,
    /// `tasks` of each hierarchy of version 1.
    old: Vec<OwnedFd>,
}

impl Group {
    /// The way into the group.
    pub fn entry(&self) -> Result<Entry, Error> {
        let mut entry = Entry {
            unified: None,
            old: Vec::with_capacity(self.places.len()),
        };
        for place in &self.places {
            let failed = |source| Error::Read {
                path: place.dir.path().join("tasks"),
                source,
            };
            match place.version {
                Version::One => {
                    let tasks = place.dir.file("tasks", OFlags::WRONLY).map_err(failed)?;
                    entry.old.push(tasks);
                }
                Version::Two => {
                    let dir = place.dir.as_fd().try_clone_to_owned().map_err(failed)?;
                    entry.unified = Some(dir);
                }
            }
        }
        Ok(entry)
    }
}

impl Entry {
    /// For `clone3` with `CLONE_INTO_CGROUP` (Linux 5.7): the directory in
    /// version 2, if the host has one. It says nothing of version 1.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// The child enters the groups of version 1. Only a process with a single
    /// thread may call this. It allocates nothing.
    ///
    /// `tasks` and `0`, not `cgroup.procs`: the kernel then need not stop all
    /// forks of the host, which takes milliseconds.
    pub fn enter(&self) -> Result<(), Errno> {
        self.old
            .iter()
            .try_for_each(|tasks| put_self(tasks.as_fd()))
    }

    /// The child enters the group of version 2, where it was not cloned into
    /// it. It allocates nothing.
    pub fn enter_unified(&self) -> Result<(), Errno> {
        let Some(dir) = &self.unified else {
            return Ok(());
        };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        put_self(openat(dir, c"cgroup.procs", flags, Mode::empty())?.as_fd())
    }
}

/// Writes `0`, which is whoever writes.
fn put_self(file: BorrowedFd<'_>) -> Result<(), Errno> {
    match write(file, b"0")? {
        1 => Ok(()),
        _ => Err(Errno::IO),
    }
}
