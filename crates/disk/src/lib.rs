//! Disks: what a block device reads and writes.
//!
//! A [`Disk`] is an array of bytes with the operations that virtual block
//! devices need. [`RawDisk`] is one over an open file or block device. Whoever
//! opens the file takes its [`lock`] first, by QEMU's convention, so that
//! neither QEMU, `qemu-img` nor another Croft works on it meanwhile.
//!
//! Memory that a guest may change at any time is never a Rust slice: it is
//! read and written through [`IoMemory`].

mod disk;
mod file;
pub mod lock;
mod memory;
mod raw;

pub use disk::{Disk, DiskError, SECTOR};
pub use file::{OpenError, check};
pub use lock::LockError;
pub use memory::{Direction, IoMemory, transfer};
pub use raw::RawDisk;
