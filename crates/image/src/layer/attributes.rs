//! A file's owner, mode, times and extended attributes, on the file itself.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fsetxattr, futimens, utimensat,
};
use rustix::io::{self, Errno};

use super::Rights;
use super::reader::Member;

/// What a file is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions, with the set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes by name.
    pub extended: BTreeMap<String, Vec<u8>>,
}

impl Attributes {
    /// Of a member.
    pub fn of(member: &mut Member) -> Attributes {
        Attributes {
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            extended: std::mem::take(&mut member.extended),
        }
    }

    /// Of a directory that nobody said anything of.
    pub fn plain() -> Attributes {
        Attributes {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            extended: BTreeMap::new(),
        }
    }

    fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.mtime.0,
            tv_nsec: self.mtime.1.into(),
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }

    /// Gives them to an open file or directory: how many attributes were left
    /// out, for want of a right or because the file system has none such.
    pub fn set(&self, file: impl AsFd, rights: Rights) -> io::Result<u64> {
        let file = file.as_fd();
        let mut left = 0;
        if rights.owners {
            let (uid, gid) = self.ids();
            fchown(file, Some(uid), Some(gid))?;
        }
        // After the owner, a change of which takes set-id bits and
        // capabilities away.
        fchmod(file, Mode::from(self.mode))?;
        for (name, value) in &self.extended {
            match fsetxattr(file, name, value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::NOTSUP | Errno::NOSPC | Errno::TOOBIG)
                    if name.starts_with("user.") || !rights.owners =>
                {
                    left += 1;
                }
                Err(error) => return Err(error),
            }
        }
        futimens(file, &self.times())?;
        Ok(left)
    }

    /// Gives owner and times to what was just made in a directory of ours and
    /// cannot be opened.
    pub fn set_at(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        is_link: bool,
        rights: Rights,
    ) -> io::Result<()> {
        if rights.owners {
            let (uid, gid) = self.ids();
            chownat(
                directory,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        if !is_link {
            chmodat(directory, name, Mode::from(self.mode), AtFlags::empty())?;
        }
        utimensat(directory, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn ids(&self) -> (Uid, Gid) {
        (Uid::from_raw(self.uid), Gid::from_raw(self.gid))
    }
}
