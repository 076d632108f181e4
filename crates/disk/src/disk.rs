//! What every disk can do.

use std::io;

use thiserror::Error;

use crate::memory::IoMemory;

/// Bytes in a sector, the unit of capacity (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// Why an operation on a disk failed. The disk stays usable.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The range reaches past the end.
    #[error("{len} bytes at {offset} reach past the end of the disk")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The disk may not be written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The file ends before the disk does.
    #[error("its file ends before byte {0}: it was made shorter meanwhile")]
    Shortened(u64),
    /// The image contradicts itself.
    #[error("its image is damaged: {0}; look at it with `qemu-img check`")]
    Damaged(String),
    /// Disks do not shrink, and not all of them grow.
    #[error("its size cannot become {wanted} bytes: {why}")]
    Resize {
        /// Bytes.
        wanted: u64,
        /// What is in the way.
        why: String,
    },
    /// A disk whose format was guessed as raw would look like another one.
    #[error("the guest would make the raw disk look like {0}; say format=raw if it may")]
    Disguise(&'static str),
    /// The host refused.
    #[error("cannot {what} {len} bytes at {offset}: {source}")]
    Host {
        /// "read", "write", …
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What the host answered.
        source: io::Error,
    },
}

impl DiskError {
    /// Whether the host has no room for what was written: it may have some
    /// later.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, DiskError::Host { source, .. }
            if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// Whether the host or the image failed, and not whoever asked for what
    /// cannot be: the same request may succeed later.
    pub fn is_host(&self) -> bool {
        matches!(
            self,
            DiskError::Host { .. } | DiskError::Shortened(_) | DiskError::Damaged(_)
        )
    }
}

/// An array of bytes on stable storage.
///
/// All methods may be called from several threads at once. They block; what
/// they do concurrently to overlapping ranges is mixed, as on a real disk.
/// A write is on stable storage after the next [`flush`](Disk::flush).
pub trait Disk: Send + Sync {
    /// Size in bytes, a multiple of [`SECTOR`]. It can grow.
    fn size(&self) -> u64;

    /// Whether every change is refused.
    fn is_read_only(&self) -> bool;

    /// Whether a range is on the disk.
    fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(DiskError::OutOfRange { offset, len }),
        }
    }

    /// Whether a range is on the disk and may be changed.
    fn check_change(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if self.is_read_only() {
            return Err(DiskError::ReadOnly);
        }
        self.check(offset, len)
    }

    /// Fills `buffers`, one after the other, from byte `offset` on.
    fn read_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError>;

    /// Writes `buffers`, one after the other, from byte `offset` on. After
    /// an error any part of the range may have been written.
    fn write_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError>;

    /// Brings everything written before to stable storage.
    fn flush(&self) -> Result<(), DiskError>;

    /// Makes the disk `size` bytes large; what is new reads as zeros. Lasting
    /// when this returns. A disk does not become smaller.
    fn resize(&self, size: u64) -> Result<(), DiskError>;

    /// The contents of a range no longer matter; they read as they were or
    /// as zeros afterwards. Storage that cannot give space back does nothing.
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// The range reads as zeros afterwards. With `unmap` its space may be
    /// given back; without, later writes to it find their space.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError>;
}
