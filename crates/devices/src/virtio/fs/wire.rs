//! FUSE as bytes: what requests contain and how answers are laid out
//! (Linux, include/uapi/linux/fuse.h, version 7.36).
//!
//! ```text
//! request:  length (4) · opcode (4) · unique (8) · node (8) · user (4)
//!           group (4) · process (4) · extensions (4) │ arguments │ data
//! answer:   length (4) · error (4, negative or 0) · unique (8) │ result
//! ```
//!
//! Numbers are little-endian, as guest and host are.

use std::ffi::CStr;

use rustix::fs::Statx;
use rustix::io::Errno;

use super::host::{Name, Result};

/// Protocol version.
pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 36;
/// The first version whose messages are as those here.
pub const MINOR_LEAST: u32 = 27;

/// Bytes of a request's header.
pub const REQUEST_HEADER: usize = 40;
/// Bytes of an answer's.
pub const ANSWER_HEADER: usize = 16;

/// How long a guest may believe a name and attributes, in seconds. Changes
/// on the host are seen after it.
const VALID: u64 = 1;

/// Kinds of requests.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
}

/// A request's header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub user: u32,
    pub group: u32,
}

impl Header {
    /// From its bytes.
    pub fn parse(bytes: &[u8; REQUEST_HEADER]) -> Result<Self> {
        let mut args = Args::new(bytes);
        let _length = args.u32()?;
        Ok(Header {
            opcode: args.u32()?,
            unique: args.u64()?,
            node: args.u64()?,
            user: args.u32()?,
            group: args.u32()?,
        })
    }
}

/// A request's arguments, read from front to back; what is missing is EINVAL.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a>(&'a [u8]);

impl<'a> Args<'a> {
    /// All of them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Args(bytes)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*bytes)
    }

    /// Leaves words of 4 bytes out.
    pub fn skip(&mut self, words: usize) -> Result<()> {
        (0..words).try_for_each(|_| self.u32().map(drop))
    }

    /// Text up to its NUL.
    pub fn text(&mut self) -> Result<&'a CStr> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = self.0.get(text.count_bytes() + 1..).unwrap_or_default();
        Ok(text)
    }

    /// A name within a directory.
    pub fn name(&mut self) -> Result<Name<'a>> {
        Name::new(self.text()?)
    }

    /// `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// An answer's result, written from front to back.
#[derive(Clone, Debug, Default)]
pub struct Answer(Vec<u8>);

impl Answer {
    #[must_use]
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    #[must_use]
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Zeros up to a multiple of 8 bytes.
    #[must_use]
    pub fn padded(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }

    /// Zeros.
    #[must_use]
    pub fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// `fuse_attr`.
    fn about(self, about: &Statx) -> Self {
        let device = (about.stx_rdev_major, about.stx_rdev_minor);
        // As in new_encode_dev (Linux, include/linux/kdev_t.h).
        let device = device.1 & 0xFF | device.0 << 8 | (device.1 & !0xFF) << 12;
        self.u64(about.stx_ino)
            .u64(about.stx_size)
            .u64(about.stx_blocks)
            .u64(about.stx_atime.tv_sec.cast_unsigned())
            .u64(about.stx_mtime.tv_sec.cast_unsigned())
            .u64(about.stx_ctime.tv_sec.cast_unsigned())
            .u32(about.stx_atime.tv_nsec)
            .u32(about.stx_mtime.tv_nsec)
            .u32(about.stx_ctime.tv_nsec)
            .u32(u32::from(about.stx_mode))
            .u32(about.stx_nlink)
            .u32(about.stx_uid)
            .u32(about.stx_gid)
            .u32(device)
            .u32(about.stx_blksize)
            .u32(0)
    }

    /// `fuse_attr_out`.
    pub fn attributes(self, about: &Statx) -> Self {
        self.u64(VALID).u32(0).u32(0).about(about)
    }

    /// `fuse_entry_out`.
    pub fn entry(self, node: u64, about: &Statx) -> Self {
        self.u64(node)
            .u64(0)
            .u64(VALID)
            .u64(VALID)
            .u32(0)
            .u32(0)
            .about(about)
    }

    /// `fuse_open_out`.
    pub fn opened(self, handle: u64) -> Self {
        self.u64(handle).u32(0).u32(0)
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Bytes of `fuse_entry_out`.
pub const ENTRY_LEN: usize = 128;
