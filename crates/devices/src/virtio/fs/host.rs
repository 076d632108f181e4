//! System calls below a directory: every name is one component, and no
//! symbolic link is followed.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Statx, StatxFlags, Uid,
};
use rustix::io::Errno;

/// The host's answer: an error goes to the guest as it is.
pub type Result<T> = std::result::Result<T, Errno>;

/// Longest name (NAME_MAX, limits.h).
const NAME_MAX: usize = 255;
/// Set-id bits (inode(7)).
const SET_ID: u32 = 0o6000;
/// How often a lookup is tried that another one on the host disturbed.
const TRIES: usize = 3;

/// A name within a directory.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Refuses what is not one component.
    pub fn new(name: &'a CStr) -> Result<Self> {
        let bytes = name.to_bytes();
        if bytes.len() > NAME_MAX {
            Err(Errno::NAMETOOLONG)
        } else if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            Err(Errno::INVAL)
        } else {
            Ok(Name(name))
        }
    }

    /// For system calls.
    pub fn as_c_str(&self) -> &'a CStr {
        self.0
    }
}

/// What makes a file the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    device: (u32, u32),
    inode: u64,
    kind: u16,
}

impl Key {
    /// Of a file.
    pub fn of(about: &Statx) -> Self {
        Key {
            device: (about.stx_dev_major, about.stx_dev_minor),
            inode: about.stx_ino,
            kind: about.stx_mode & 0o170_000,
        }
    }

    /// What kind of file it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(u32::from(self.kind))
    }
}

/// Attributes of an open file, `O_PATH` or not.
pub fn about(file: impl AsFd) -> Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    fs::statx(file, c"", flags, StatxFlags::BASIC_STATS)
}

fn resolve(
    directory: BorrowedFd<'_>,
    name: Name<'_>,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut tries = TRIES;
    loop {
        match fs::openat2(directory, name.0, flags, mode, within) {
            Err(Errno::AGAIN | Errno::INTR) if tries > 1 => tries -= 1,
            result => return result,
        }
    }
}

/// What has this name, without opening it.
pub fn find(directory: impl AsFd, name: Name<'_>) -> Result<(OwnedFd, Statx)> {
    let found = resolve(directory.as_fd(), name, OFlags::PATH, Mode::empty())?;
    let about = about(&found)?;
    Ok((found, about))
}

/// Opens a regular file, which must be the one that `key` says.
pub fn open(directory: impl AsFd, name: Name<'_>, key: Key, flags: OFlags) -> Result<OwnedFd> {
    if key.kind() != FileType::RegularFile {
        return Err(Errno::OPNOTSUPP);
    }
    // If it was replaced on the host by something that waits when opened.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = resolve(directory.as_fd(), name, flags, Mode::empty())?;
    if Key::of(&about(&file)?) == key {
        Ok(file)
    } else {
        Err(Errno::STALE)
    }
}

/// Makes and opens a regular file.
pub fn create(directory: impl AsFd, name: Name<'_>, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let flags = flags | OFlags::CREATE | OFlags::EXCL;
    resolve(directory.as_fd(), name, flags, mode)
}

/// Opens a directory for reading.
pub fn open_directory(directory: impl AsFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(directory, c".", flags, Mode::empty(), within)
}

/// Permissions that a guest may set on a file of `kind`: no set-id bits on
/// what could be executed on the host.
pub fn permissions(kind: FileType, mode: u32) -> Result<Mode> {
    if kind != FileType::Directory && mode & SET_ID != 0 {
        return Err(Errno::PERM);
    }
    Ok(Mode::from_raw_mode(mode & 0o7777))
}

/// Takes set-id bits away, as after a write by somebody else.
pub fn drop_set_id(file: impl AsFd) -> Result<()> {
    let mode = u32::from(about(&file)?.stx_mode);
    if mode & SET_ID == 0 {
        return Ok(());
    }
    fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777 & !SET_ID))
}

/// Sets the permissions of an `O_PATH` descriptor's file.
pub fn set_permissions(file: impl AsFd, mode: Mode) -> Result<()> {
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: fchmodat2(2) reads the path, which is a constant with its NUL,
    // and touches no other memory of ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            descriptor,
            c"".as_ptr(),
            mode.as_raw_mode(),
            libc::AT_EMPTY_PATH,
        )
    };
    match result {
        0 => Ok(()),
        _ => {
            let error = std::io::Error::last_os_error();
            Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
    }
}

/// Sets owner and group of an `O_PATH` descriptor's file.
pub fn set_owner(file: impl AsFd, user: Option<u32>, group: Option<u32>) -> Result<()> {
    // The largest number means none (chown(2)).
    if user == Some(u32::MAX) || group == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    fs::chownat(file, c"", user, group, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_components() {
        for good in [c"a", c"...", c"..a", c" ", c"\xFF\x01", c"-"] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
        for bad in [c"", c".", c"..", c"/", c"a/b", c"../a", c"a/"] {
            assert_eq!(Name::new(bad).unwrap_err(), Errno::INVAL, "{bad:?}");
        }
        let long = std::ffi::CString::new(vec![b'a'; 256]).unwrap();
        assert_eq!(Name::new(&long).unwrap_err(), Errno::NAMETOOLONG);
    }
}
