//! A session: what the guest may ask, and what of it changes something.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, Statx};
use rustix::io::Errno;
use rustix::process::umask;

use super::handles::{Handles, OpenFile};
use super::host::{self, Name, Result};
use super::nodes::{Node, Nodes};
use super::wire::{Answer, Args, ENTRY_LEN, Header, MAJOR, MINOR, MINOR_LEAST, opcode};
use crate::lock;

/// Directories that all shares of a machine hold open at most, and files: of
/// the descriptors that a machine's process may have most are theirs.
const DIRECTORIES_MAX: usize = 48 << 10;
const FILES_MAX: usize = 8 << 10;
/// Most bytes of one write; Linux asks for at most 256 pages of data.
pub const WRITE_MAX: u32 = 1 << 20;

/// Flags of a session (FUSE_INIT).
mod flag {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    pub const ALL: u32 = ASYNC_READ
        | ATOMIC_O_TRUNC
        | BIG_WRITES
        | AUTO_INVAL_DATA
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | ASYNC_DIO
        | PARALLEL_DIROPS
        | MAX_PAGES
        | HANDLE_KILLPRIV_V2;
}

/// A shared directory, and what its guest knows of it.
pub struct Share {
    read_only: bool,
    mounted: AtomicBool,
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
}

impl Share {
    /// Of a directory, one of `count` that a machine shares.
    pub fn new(directory: OwnedFd, read_only: bool, count: usize) -> Result<Self> {
        let part = |all: usize| all / count.max(1);
        Ok(Share {
            read_only,
            mounted: AtomicBool::new(false),
            nodes: Mutex::new(Nodes::new(directory, part(DIRECTORIES_MAX))?),
            handles: Mutex::new(Handles::new(part(FILES_MAX))),
        })
    }

    /// Refuses every change.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The guest has begun a session.
    pub fn is_mounted(&self) -> bool {
        self.mounted.load(Ordering::SeqCst)
    }

    /// Restores that.
    pub fn set_mounted(&self, mounted: bool) {
        self.mounted.store(mounted, Ordering::SeqCst);
    }

    /// The guest knows more than the root.
    pub fn in_use(&self) -> bool {
        !lock(&self.nodes).is_empty() || !lock(&self.handles).is_empty()
    }

    /// There is no guest any more.
    pub fn forget_all(&self) {
        self.set_mounted(false);
        lock(&self.handles).close_all();
        lock(&self.nodes).forget_all();
    }

    /// Answers a request that has neither data of its own nor room for some;
    /// what comes back fits into `room` bytes.
    pub fn answer(&self, header: &Header, mut args: Args<'_>, room: usize) -> Result<Answer> {
        let args = &mut args;
        if header.opcode == opcode::INIT {
            return self.begin(args);
        }
        if !self.is_mounted() {
            return Err(Errno::IO);
        }
        match header.opcode {
            opcode::DESTROY => {
                self.forget_all();
                Ok(Answer::default())
            }
            opcode::LOOKUP => self.look_up(header, args),
            opcode::GETATTR => self.get_attributes(header, args),
            opcode::SETATTR => self.set_attributes(header, args),
            opcode::READLINK => self.read_link(header),
            opcode::SYMLINK => self.make_symlink(header, args),
            opcode::MKNOD => self.make_node(header, args),
            opcode::MKDIR => self.make_directory(header, args),
            opcode::UNLINK => self.remove(header, args, false),
            opcode::RMDIR => self.remove(header, args, true),
            opcode::RENAME => self.rename(header, args, false),
            opcode::RENAME2 => self.rename(header, args, true),
            opcode::LINK => self.make_link(header, args),
            opcode::OPEN => self.open(header, args),
            opcode::CREATE => self.create(header, args),
            opcode::RELEASE | opcode::RELEASEDIR => {
                lock(&self.handles).close(args.u64()?);
                Ok(Answer::default())
            }
            opcode::FLUSH => self.file(args.u64()?).map(|_| Answer::default()),
            opcode::FSYNC => self.sync(args),
            opcode::OPENDIR => self.open_directory(header),
            opcode::READDIR => self.list(args, room, None),
            opcode::READDIRPLUS => self.list(args, room, Some(header.node)),
            opcode::FSYNCDIR => self.sync_directory(args),
            opcode::STATFS => self.file_system(header),
            opcode::SYNCFS => self.sync_file_system(),
            opcode::SETXATTR => self.set_xattr(header, args),
            opcode::GETXATTR => self.get_xattr(header, args, room),
            opcode::LISTXATTR => self.list_xattrs(header, args, room),
            opcode::REMOVEXATTR => self.remove_xattr(header, args),
            opcode::FALLOCATE => self.allocate(args),
            opcode::LSEEK => self.seek(args),
            opcode::COPY_FILE_RANGE => self.copy(args),
            _ => Err(Errno::NOSYS),
        }
    }

    fn begin(&self, args: &mut Args<'_>) -> Result<Answer> {
        let (major, minor) = (args.u32()?, args.u32()?);
        let (ahead, flags) = (args.u32()?, args.u32()?);
        if major < MAJOR || major == MAJOR && minor < MINOR_LEAST {
            return Err(Errno::PROTO);
        }
        if major == MAJOR {
            // The guest says which permissions a new file has; nobody else
            // in this process makes files.
            umask(Mode::empty());
            self.forget_all();
            self.set_mounted(true);
        }
        // A guest of a later major version begins once more with this one.
        Ok(Answer::default()
            .u32(MAJOR)
            .u32(MINOR.min(minor))
            .u32(ahead)
            .u32(flags & flag::ALL)
            // Requests in the background at most, and when that is many.
            .u16(64)
            .u16(48)
            .u32(WRITE_MAX)
            // Times have nanoseconds.
            .u32(1)
            .u16((WRITE_MAX >> 12) as u16)
            .zeros(34))
    }

    /// Takes lookups back.
    pub fn forget(&self, header: &Header, args: &mut Args<'_>) -> Result<()> {
        if header.opcode == opcode::FORGET {
            lock(&self.nodes).forget(header.node, args.u64()?);
            return Ok(());
        }
        let count = args.u32()?;
        args.skip(1)?;
        let mut nodes = lock(&self.nodes);
        for _ in 0..count {
            let (id, lookups) = (args.u64()?, args.u64()?);
            nodes.forget(id, lookups);
        }
        Ok(())
    }

    /// Refuses what changes something, where that is not wanted.
    pub(super) fn writable(&self) -> Result<()> {
        if self.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(())
        }
    }

    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>> {
        lock(&self.nodes).get(id)
    }

    pub(super) fn nodes(&self) -> std::sync::MutexGuard<'_, Nodes> {
        lock(&self.nodes)
    }

    pub(super) fn handles(&self) -> std::sync::MutexGuard<'_, Handles> {
        lock(&self.handles)
    }

    pub(super) fn file(&self, handle: u64) -> Result<Arc<OpenFile>> {
        lock(&self.handles).file(handle)
    }

    /// Looks a name up and counts that.
    pub(super) fn enter(&self, directory: &Arc<Node>, name: Name<'_>) -> Result<(u64, Statx)> {
        let (file, about) = host::find(directory.directory()?, name)?;
        let id = self.nodes().look_up(directory, name, file, &about)?;
        Ok((id, about))
    }

    /// The answer to a lookup, and to whatever makes a file.
    pub(super) fn entry(&self, directory: &Arc<Node>, name: Name<'_>) -> Result<Answer> {
        let (id, about) = self.enter(directory, name)?;
        let answer = Answer::default().entry(id, &about);
        debug_assert_eq!(answer.len(), ENTRY_LEN);
        Ok(answer)
    }
}
