//! Why a disk cannot be booted from.

use std::io;

use croft_disk::DiskError;
use thiserror::Error;

/// Why a disk cannot be booted from. The text continues the disk's name.
#[derive(Debug, Error)]
pub enum BootError {
    /// There is nothing that we can start.
    #[error(
        "has no system that can be started without firmware: {found}; \
         a Linux kernel in an ext4 file system is needed (firmware boot is not there yet), or name a kernel with --kernel"
    )]
    Nothing {
        /// What there is.
        found: String,
    },
    /// There is a kernel, but what it needs is not known.
    #[error(
        "has the kernel {kernel}, but neither a boot loader's configuration nor a root file system that can be read \
         ({found}); name the kernel with --kernel, and root= with --append"
    )]
    NoRoot {
        /// Its path.
        kernel: String,
        /// What there is.
        found: String,
    },
    /// A file is larger than anything that boots.
    #[error(
        "{path} on it has {len} bytes, more than the {limit} that are accepted; give the machine more --memory, or another kernel with --kernel"
    )]
    TooLarge {
        /// Its path.
        path: String,
        /// Its size.
        len: u64,
        /// The most.
        limit: u64,
    },
    /// The disk could not be read.
    #[error("cannot be read: {0}")]
    Read(#[from] DiskError),
    /// A file system is damaged or has what we cannot read.
    #[error(
        "cannot be booted from: {0}; name a kernel with --kernel to start it once, so that it can be repaired"
    )]
    FileSystem(String),
    /// Too much had to be read.
    #[error("cannot be booted from: more than {0} bytes had to be read; check its file systems")]
    Bytes(u64),
    /// It took too long.
    #[error("cannot be booted from: looking for its kernel took too long; check its file systems")]
    Time,
    /// A library could not cope with it.
    #[error("cannot be booted from: its file systems are damaged; check them")]
    Panicked,
    /// The host has no thread to spare.
    #[error("cannot be searched for a kernel: {0}")]
    Thread(#[source] io::Error),
}
