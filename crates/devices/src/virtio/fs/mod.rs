//! virtio-fs: a directory of the host's in the guest (virtio 1.2, 5.11).
//!
//! | queue | request                                                        |
//! |-------|----------------------------------------------------------------|
//! | 0     | forgetting, which must not wait behind others                  |
//! | 1     | everything else that FUSE has                                  |
//!
//! ```text
//! request ─► wire ─► share ─┬─ names      look up, make, move, remove
//!  (queue)  (bytes)         ├─ attributes of files and of the file system
//!                           ├─ data       open, read, write, …
//!                           └─ listing    directories
//!                              │ nodes, handles: what the guest knows
//!                              ▼
//!                             host: system calls below one directory
//! ```
//!
//! # Confinement
//!
//! The device gets one descriptor, of the shared directory. Everything else
//! is reached from there, one name at a time:
//!
//! * A name from the guest has no slash and is neither empty nor a dot name.
//!   It is resolved by `openat2` from a directory that the guest reached
//!   before, with `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS` and
//!   `RESOLVE_NO_MAGICLINKS`. The host never follows a symbolic link; the
//!   guest's kernel does, in the guest's own tree.
//! * `/proc` is not used. A directory that the guest knows is an `O_PATH`
//!   descriptor; any other file is its directory and name, and whatever is
//!   found there must be the same file by device, inode number and kind, or
//!   the answer is ESTALE.
//! * Only regular files and directories are opened. Fifos, sockets and
//!   devices are the guest's kernel's business: they have attributes here
//!   and nothing else. Device files cannot be made.
//! * Read-only is decided here, for every request that changes something.
//! * Whoever runs the process is who acts. Only root can, and does, give a
//!   new file to the guest's user who made it. Set-id bits are never set on
//!   regular files, and of extended attributes only `user.` ones are there.
//! * What a guest can have this process keep is bounded: nodes, directories
//!   among them, and open files.
//!
//! # System calls
//!
//! Beside those of every queue's worker the threads of this device use:
//! `openat2`, `close`, `statx`, `fstatfs`, `readlinkat`,
//! `mknodat`, `mkdirat`, `symlinkat`, `linkat`, `unlinkat`, `renameat2`,
//! `fchmod`, `fchmodat2`, `fchownat`, `utimensat`, `ftruncate`, `fallocate`,
//! `lseek`, `preadv`, `pwritev`, `copy_file_range`, `getdents64`, `fsync`,
//! `fdatasync`, `syncfs`, `fgetxattr`, `fsetxattr`, `flistxattr`,
//! `fremovexattr`, `umask`. Below the shared directory landlock must allow
//! all of what a file and directory can suffer, but for executing.
//!
//! # Saving
//!
//! Files that the guest knows exist on the host, which may be another one
//! when it is restored, or have changed meanwhile. A machine is therefore
//! saved only while its guest knows none but the root: unmounted, or with its
//! caches dropped ([`ShareHandle::in_use`]).

mod attributes;
mod data;
mod handles;
mod host;
mod listing;
mod names;
mod nodes;
mod request;
mod share;
mod state;
#[cfg(test)]
mod tests;
mod wire;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use croft_isolate::Role;
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use super::{Kind, QueueHandler, TransportState, VirtioDevice, copy_config};
use crate::saved::{DeviceState, StateError, check_version, damaged};
use request::Requests;
use share::Share;
use state::VERSION;
pub use state::VirtioFsState;

const NAME: &str = "virtio-fs";
/// Linux cuts its requests to what a queue holds: this is 1 MiB and more.
const QUEUE_SIZE: u16 = 512;
/// Forgetting, and one for requests.
const QUEUES: u16 = 2;
/// Most bytes of a tag (5.11.4).
pub const TAG_MAX: usize = 36;
/// The tag, and the number of queues for requests.
const CONFIG_LEN: usize = TAG_MAX + 4;

/// Why a directory is not shared.
#[derive(Debug, Error)]
pub enum ShareError {
    /// Its tag cannot be one.
    #[error("tag '{0}' is empty or longer than {TAG_MAX} bytes; choose another")]
    Tag(String),
    /// The host does not tell what it is.
    #[error("the directory of share '{tag}' cannot be used: {source}")]
    Directory {
        /// Its tag.
        tag: String,
        /// What the host answered.
        source: std::io::Error,
    },
}

/// What the machine asks of a share; clones are of the same one.
#[derive(Clone)]
pub struct ShareHandle {
    tag: Arc<str>,
    share: Arc<Share>,
}

impl ShareHandle {
    /// Its tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Whether the guest refuses changes.
    pub fn is_read_only(&self) -> bool {
        self.share.is_read_only()
    }

    /// Whether the guest knows files of it, so that the machine cannot be
    /// saved.
    pub fn in_use(&self) -> bool {
        self.share.in_use()
    }
}

impl std::fmt::Debug for ShareHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShareHandle({:?})", self.tag)
    }
}

/// The device.
pub struct VirtioFs {
    handle: ShareHandle,
    config: [u8; CONFIG_LEN],
}

impl VirtioFs {
    /// Shares `directory`, an `O_PATH` descriptor will do, as `tag`. The
    /// machine has `count` shares, between which descriptors are divided.
    pub fn new(
        directory: OwnedFd,
        tag: &str,
        read_only: bool,
        count: usize,
    ) -> Result<Self, ShareError> {
        let mut config = [0; CONFIG_LEN];
        if tag.is_empty() || tag.len() > TAG_MAX || tag.contains('\0') {
            return Err(ShareError::Tag(tag.escape_debug().to_string()));
        }
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_MAX..].copy_from_slice(&u32::from(QUEUES - 1).to_le_bytes());
        let share =
            Share::new(directory, read_only, count).map_err(|source| ShareError::Directory {
                tag: tag.to_owned(),
                source: source.into(),
            })?;
        Ok(VirtioFs {
            handle: ShareHandle {
                tag: tag.into(),
                share: Arc::new(share),
            },
            config,
        })
    }

    /// For the machine.
    pub fn handle(&self) -> ShareHandle {
        self.handle.clone()
    }
}

impl VirtioDevice for VirtioFs {
    const KIND: Kind = Kind {
        name: NAME,
        id: VIRTIO_ID_FS as u16,
        // Mass storage, of another kind than those listed.
        class: 0x01_80_00,
    };

    fn role(&self) -> Role {
        Role::Share
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        QUEUES
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn config_len(&self) -> usize {
        CONFIG_LEN
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn handler(&self, _queue: u16, _features: u64) -> Box<dyn QueueHandler> {
        Box::new(Requests {
            share: self.handle.share.clone(),
        })
    }

    fn reset(&mut self) {
        self.handle.share.forget_all();
    }

    fn save(&self, transport: TransportState) -> DeviceState {
        DeviceState::VirtioFs(VirtioFsState {
            version: VERSION,
            tag: self.handle.tag.as_ref().to_owned(),
            read_only: self.handle.is_read_only(),
            mounted: self.handle.share.is_mounted(),
            transport,
        })
    }

    fn check<'a>(&self, state: &'a DeviceState) -> Result<&'a TransportState, StateError> {
        let DeviceState::VirtioFs(state) = state else {
            return Err(StateError::WrongDevice {
                device: NAME,
                found: state.kind(),
            });
        };
        check_version(NAME, state.version, VERSION)?;
        let mine = (self.handle.tag(), self.handle.is_read_only());
        if (state.tag.as_str(), state.read_only) != mine {
            let what = format!(
                "it is of share '{}' (read-only: {}), this one is '{}' ({})",
                state.tag.escape_debug(),
                state.read_only,
                mine.0,
                mine.1
            );
            return Err(damaged(NAME, what));
        }
        Ok(&state.transport)
    }

    fn restore(&mut self, state: &DeviceState) {
        if let DeviceState::VirtioFs(state) = state {
            self.handle.share.forget_all();
            self.handle.share.set_mounted(state.mounted);
        }
    }
}
