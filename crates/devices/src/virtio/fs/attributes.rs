//! Attributes of files and of the file system.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    self, AtFlags, FileType, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use super::host::{self, Result};
use super::nodes::{Node, Pinned};
use super::share::Share;
use super::wire::{Answer, Args, Header};

/// What GETATTR's flags can say: by handle.
const BY_HANDLE: u32 = 1 << 0;

/// What SETATTR changes.
mod valid {
    pub const MODE: u32 = 1 << 0;
    pub const USER: u32 = 1 << 1;
    pub const GROUP: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ACCESSED: u32 = 1 << 4;
    pub const MODIFIED: u32 = 1 << 5;
    pub const HANDLE: u32 = 1 << 6;
    pub const ACCESSED_NOW: u32 = 1 << 7;
    pub const MODIFIED_NOW: u32 = 1 << 8;
    pub const DROP_SET_ID: u32 = 1 << 11;
}

/// The only extended attributes that there are.
const XATTRS: &[u8] = b"user.";
/// Most bytes of a value, and of a list (XATTR_SIZE_MAX, limits.h).
const XATTR_MAX: usize = 64 << 10;
/// Most bytes of a name.
const XATTR_NAME_MAX: usize = 255;

impl Share {
    pub(super) fn get_attributes(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        let flags = args.u32()?;
        args.skip(1)?;
        let about = if flags & BY_HANDLE != 0 {
            host::about(&*self.file(args.u64()?)?)?
        } else {
            host::about(self.node(header.node)?.pin()?)?
        };
        Ok(Answer::default().attributes(&about))
    }

    pub(super) fn set_attributes(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let wanted = args.u32()?;
        args.skip(1)?;
        let handle = args.u64()?;
        let size = args.u64()?;
        let _lock_owner = args.u64()?;
        let (accessed, modified, _) = (args.u64()?, args.u64()?, args.u64()?);
        let (accessed_ns, modified_ns, _) = (args.u32()?, args.u32()?, args.u32()?);
        let mode = args.u32()?;
        args.skip(1)?;
        let (user, group) = (args.u32()?, args.u32()?);
        let has = |bit: u32| wanted & bit != 0;

        let node = self.node(header.node)?;
        let open = match has(valid::HANDLE) {
            true => Some(self.file(handle)?),
            false => None,
        };
        let file = match &open {
            Some(open) => Pinned::Open(open.clone()),
            None => node.pin()?,
        };
        if has(valid::MODE) {
            let mode = host::permissions(node.kind(), mode)?;
            match host::set_permissions(&file, mode) {
                // Linux before 6.6.
                Err(Errno::NOSYS) => fs::fchmod(reopen(&node)?, mode)?,
                result => result?,
            }
        }
        if has(valid::USER | valid::GROUP) {
            let user = has(valid::USER).then_some(user);
            let group = has(valid::GROUP).then_some(group);
            host::set_owner(&file, user, group)?;
        }
        if has(valid::SIZE) {
            match open.filter(|open| open.is_writable()) {
                Some(open) => truncate(&open.file, size)?,
                None => truncate(node.open(OFlags::WRONLY)?, size)?,
            }
        }
        if has(valid::DROP_SET_ID) && node.kind() == FileType::RegularFile {
            let mode = u32::from(host::about(&file)?.stx_mode);
            if mode & 0o6000 != 0 {
                let mode = host::permissions(node.kind(), mode & 0o1777)?;
                host::set_permissions(&file, mode)?;
            }
        }
        let times = Timestamps {
            last_access: time(
                (has(valid::ACCESSED), has(valid::ACCESSED_NOW)),
                (accessed, accessed_ns),
            )?,
            last_modification: time(
                (has(valid::MODIFIED), has(valid::MODIFIED_NOW)),
                (modified, modified_ns),
            )?,
        };
        if has(valid::ACCESSED | valid::MODIFIED | valid::ACCESSED_NOW | valid::MODIFIED_NOW) {
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            fs::utimensat(&file, c"", &times, flags)?;
        }
        Ok(Answer::default().attributes(&host::about(&file)?))
    }

    pub(super) fn file_system(&self, header: &Header) -> Result<Answer> {
        let about = fs::fstatvfs(self.node(header.node)?.pin()?)?;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(Answer::default()
            .u64(about.f_blocks)
            .u64(about.f_bfree)
            .u64(about.f_bavail)
            .u64(about.f_files)
            .u64(about.f_ffree)
            .u32(narrow(about.f_bsize))
            .u32(narrow(about.f_namemax))
            .u32(narrow(about.f_frsize))
            .zeros(28))
    }

    pub(super) fn sync_file_system(&self) -> Result<Answer> {
        let root = self.node(super::nodes::ROOT)?;
        fs::syncfs(host::open_directory(root.directory()?)?)?;
        Ok(Answer::default())
    }

    pub(super) fn set_xattr(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let node = self.node(header.node)?;
        let (size, flags) = (args.u32()?, args.u32()?);
        let name = xattr(args.text()?)?;
        if size as usize > XATTR_MAX {
            return Err(Errno::TOOBIG);
        }
        let value = args.bytes(size as usize)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        fs::fsetxattr(reopen(&node)?, name, value, flags)?;
        Ok(Answer::default())
    }

    pub(super) fn get_xattr(
        &self,
        header: &Header,
        args: &mut Args<'_>,
        room: usize,
    ) -> Result<Answer> {
        let node = self.node(header.node)?;
        let size = args.u32()?;
        args.skip(1)?;
        let name = xattr(args.text()?)?;
        let file = reopen(&node)?;
        let mut value = vec![0; XATTR_MAX];
        let len = fs::fgetxattr(file, name, &mut *value)?;
        value.truncate(len);
        sized(&value, size, room)
    }

    pub(super) fn list_xattrs(
        &self,
        header: &Header,
        args: &mut Args<'_>,
        room: usize,
    ) -> Result<Answer> {
        let node = self.node(header.node)?;
        let size = args.u32()?;
        let file = reopen(&node)?;
        let mut list = vec![0; XATTR_MAX];
        let len = fs::flistxattr(file, &mut *list)?;
        list.truncate(len);
        let ours = list
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| name.starts_with(XATTRS));
        sized(&ours.flatten().copied().collect::<Vec<_>>(), size, room)
    }

    pub(super) fn remove_xattr(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let node = self.node(header.node)?;
        let name = xattr(args.text()?)?;
        fs::fremovexattr(reopen(&node)?, name)?;
        Ok(Answer::default())
    }
}

/// A length for who asks with size 0, else the value.
fn sized(value: &[u8], size: u32, room: usize) -> Result<Answer> {
    if size == 0 {
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        Ok(Answer::default().u32(len).u32(0))
    } else if value.len() > (size as usize).min(room) {
        Err(Errno::RANGE)
    } else {
        Ok(Answer::default().bytes(value))
    }
}

fn xattr(name: &CStr) -> Result<&CStr> {
    if name.count_bytes() > XATTR_NAME_MAX {
        Err(Errno::RANGE)
    } else if name.to_bytes().starts_with(XATTRS) {
        Ok(name)
    } else {
        Err(Errno::OPNOTSUPP)
    }
}

/// A descriptor that is not `O_PATH`, for what needs one.
fn reopen(node: &Arc<Node>) -> Result<OwnedFd> {
    match node.kind() {
        FileType::Directory => host::open_directory(node.directory()?),
        FileType::RegularFile => match node.open(OFlags::RDONLY) {
            Err(Errno::ACCESS) => node.open(OFlags::WRONLY),
            result => result,
        },
        _ => Err(Errno::OPNOTSUPP),
    }
}

fn truncate(file: impl AsFd, size: u64) -> Result<()> {
    // The host's limit.
    let size = i64::try_from(size).map_err(|_| Errno::FBIG)?;
    fs::ftruncate(file, size.cast_unsigned())
}

/// A time to set: this one, or now, or none.
fn time((given, now): (bool, bool), (seconds, ns): (u64, u32)) -> Result<Timespec> {
    let tv_nsec = match (given || now, now) {
        (false, _) => UTIME_OMIT,
        (true, true) => UTIME_NOW,
        (true, false) if ns < 1_000_000_000 => ns.into(),
        (true, false) => return Err(Errno::INVAL),
    };
    Ok(Timespec {
        tv_sec: seconds.cast_signed(),
        tv_nsec,
    })
}
