//! Disks: what a block device reads and writes.
//!
//! ```text
//! virtio-blk ──► Disk ─┬─ RawDisk ──────────────► Storage ──► file
//!                      └─ Qcow2Disk ─┬─ data ───►    │
//!                                    └─ imago ──►    ┘  one for each layer
//! ```
//!
//! A [`Disk`] is an array of bytes with the operations that virtual block
//! devices need. [`open`] makes one of a chain of files that are open already:
//! the disk's own and those below it. Nothing here opens a file by its name.
//! Whoever opens the files takes their [`lock`] first, by QEMU's convention,
//! so that neither QEMU, `qemu-img` nor another Croft works on them meanwhile.
//!
//! Memory that a guest may change at any time is never a Rust slice: it is
//! read and written through [`IoMemory`].
//!
//! # System calls
//!
//! In use, a disk needs `preadv`, `pwritev`, `fdatasync`, `fallocate`,
//! `ftruncate` (an image that becomes longer), `fstat`, `lseek` (the size of a
//! block device), and what Rust's allocator and locks need (`mmap`, `munmap`,
//! `mremap`, `madvise`, `brk`, `futex`). Opening it needs no others. Locking
//! (`fcntl`) and probing (`pread64`) are for whoever opens the files.

mod direct;
mod disk;
#[cfg(test)]
mod durability;
mod file;
pub mod lock;
mod memory;
mod open;
mod probe;
mod qcow2;
mod raw;
mod storage;
#[cfg(test)]
mod testing;
mod volatile;

pub use disk::{Disk, DiskError, SECTOR};
pub use file::{LAYERS_MAX, OpenError, Qcow2Error, check, check_kind};
pub use lock::LockError;
pub use memory::{Direction, IoMemory, transfer};
pub use open::{
    Cache, Layer, OpenOptions, TestStorage, create, create_overlay, open, open_storage,
};
pub use probe::{Format, probe};
pub use qcow2::Qcow2Disk;
pub use raw::RawDisk;
pub use storage::{FileStorage, Storage};
