//! Finds what a disk boots with: kernel, initrd and command line.
//!
//! A machine has no firmware. What a boot loader would do is done here, anew
//! at every start and every reset, so that a kernel which the guest installed
//! is the one that it boots next.
//!
//! ```text
//! disk ─► volumes: whole disk, GPT or MBR partitions      (partitions)
//!           └─► file systems: ext4 with its journal       (filesystem, ext4)
//!                 └─► boot directories: /boot of a root,
//!                     or the top of a boot partition      (system)
//!                       └─► choices, the first one whose files are there:
//!                           boot loader entries, grub.cfg,
//!                           extlinux.conf                 (loaders)
//!                           newest kernel, links          (kernels)
//! ```
//!
//! Everything on the disk was written by a guest, which is hostile. What is
//! read is bounded in size, number and time ([`Limits`]); it is read on a
//! thread of its own, so that whatever a disk brings about in a library, a
//! panic or a search without end, is an error here.
//!
//! The disk is only read. A file system that was not unmounted is read through
//! its journal, as its kernel would see it after recovery.

mod command_line;
mod error;
mod ext4;
mod filesystem;
mod kernels;
mod loaders;
mod partitions;
mod source;
mod system;
#[cfg(test)]
mod testing;
mod version;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use croft_disk::Disk;
use croft_isolate::Role;

pub use error::BootError;

/// What finding a system may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest kernel in bytes.
    pub kernel: u64,
    /// Largest initrd in bytes: one that is larger than the machine's memory
    /// need not be read.
    pub initrd: u64,
    /// Most bytes to read from the disk.
    pub read: u64,
    /// Longest time.
    pub time: Duration,
}

impl Default for Limits {
    /// Far above what a system in use needs: initrds of some 100 MiB, and a
    /// journal of 1 GiB that was full when the machine was killed.
    fn default() -> Self {
        Limits {
            kernel: 256 << 20,
            initrd: 1 << 30,
            read: 4 << 30,
            time: Duration::from_secs(60),
        }
    }
}

/// What a disk boots with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// The kernel.
    pub kernel: BootFile,
    /// The initrd; several are one behind the other, as boot loaders do it.
    pub initrd: Option<BootFile>,
    /// The kernel's command line.
    pub command_line: String,
    /// What said so: "the newest kernel", "grub.cfg", …
    pub chosen_by: &'static str,
}

/// A file from a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFile {
    /// Its path on its file system.
    pub path: String,
    /// Its contents.
    pub bytes: Vec<u8>,
}

/// Finds what `disk` boots with. The disk must not change meanwhile.
pub fn find(disk: Arc<dyn Disk>, limits: Limits) -> Result<System, BootError> {
    let (sender, receiver) = mpsc::channel();
    let body = move || {
        // Whoever asked may have given up.
        let _ = sender.send(search(disk, limits));
    };
    let thread = croft_isolate::spawn(Role::Disk, "bootdisk", body).map_err(BootError::Thread)?;
    // Where the disk is read the limits are looked at there; some time more
    // is for a search within what was read.
    match receiver.recv_timeout(limits.time + limits.time / 2) {
        Ok(found) => {
            let _ = thread.join();
            found
        }
        // The thread is left to itself: its machine does not start.
        Err(mpsc::RecvTimeoutError::Timeout) => Err(BootError::Time),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(BootError::Panicked),
    }
}

/// [`find`] on the caller's thread: a panic of a library is one here.
pub fn search(disk: Arc<dyn Disk>, limits: Limits) -> Result<System, BootError> {
    system::find(&source::Source::new(disk, limits), limits)
}
