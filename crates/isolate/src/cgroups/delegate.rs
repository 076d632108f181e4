//! A part of the hierarchies that belongs to a container: an init such as
//! systemd makes groups of its own beneath its own.

use std::io;

use rustix::fs::{AtFlags, Gid, Uid, chownat};
use rustix::io::Errno;

use super::dir::Dir;
use super::{Controllers, Error, Group, Version};

/// Files that whoever a group is delegated to may write
/// (`/sys/kernel/cgroup/delegate`, Linux `cgroup-v2.rst`, "Delegation"); all
/// others limit the group and stay the host's.
const FILES: [&str; 5] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.subtree_control",
    "memory.oom.group",
    "memory.reclaim",
];
/// The same of version 1.
const FILES_1: [&str; 3] = ["cgroup.procs", "tasks", "cgroup.clone_children"];

impl Group {
    /// Gives the group's inside to an owner, who can then make groups in it
    /// and move its own processes among them, within the limits of this one:
    /// all of version 2, and of version 1 systemd's hierarchy, which has no
    /// limits. Controllers of version 1 are not safe to delegate.
    pub fn delegate(&self, uid: Uid, gid: Gid) -> Result<(), Error> {
        for place in &self.places {
            let files: &[&str] = match place.version {
                Version::Two => &FILES,
                Version::One if place.controllers == Controllers::SYSTEMD => &FILES_1,
                Version::One => continue,
            };
            give(&place.dir, files, uid, gid).map_err(|source| Error::Write {
                path: place.dir.path().to_owned(),
                value: format!("owner {}:{}", uid.as_raw(), gid.as_raw()),
                source,
            })?;
        }
        Ok(())
    }
}

fn give(dir: &Dir, files: &[&str], uid: Uid, gid: Gid) -> io::Result<()> {
    for file in files {
        match chownat(dir, *file, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
            // Not every kernel and controller has them all.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(chownat(dir, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}
