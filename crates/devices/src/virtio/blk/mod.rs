//! virtio-blk: a disk (virtio 1.2, 5.2).
//!
//! | queue | request                                                     |
//! |-------|-------------------------------------------------------------|
//! | each  | read, write, flush, get id, discard, write zeroes           |
//!
//! `config` has what the driver is told, `request` what it can ask for.
//! Every queue has a worker, which serves one request after the other; a
//! guest that wants requests side by side uses several queues. `limit` holds
//! requests back that come too fast. A request that the host fails to do is
//! answered with an error, or waits while the machine stands still
//! ([`OnError`], [`FaultSink`]) and is then done again.

mod config;
mod request;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use croft_disk::{Disk, DiskError, SECTOR};
use croft_isolate::Role;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::limit::Limiter;
use super::{
    Kind, LogSink, Notifier, QueueHandler, RateLimitedLog, TransportState, VirtioDevice,
    copy_config,
};
use crate::saved::{DeviceState, StateError, check_version, damaged};
use request::{ID_LEN, Requests};
use state::VERSION;
pub use state::VirtioBlkState;

const NAME: &str = "virtio-blk";
/// Most queues of a disk.
const QUEUES_MAX: u16 = 16;

/// The device.
pub struct VirtioBlk {
    disk: Arc<dyn Disk>,
    queues: u16,
    write_through: bool,
    id: [u8; ID_LEN],
    size: Arc<Size>,
    limiter: Arc<Limiter>,
    on_error: OnError,
    faults: Arc<dyn FaultSink>,
    log: Arc<RateLimitedLog>,
}

/// Limits of a disk; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests per second, not 0.
    pub iops: Option<u64>,
    /// Bytes read and written per second, not 0.
    pub bytes_per_second: Option<u64>,
}

/// What is done when the host fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The machine stops if the host has no room; else the guest is told.
    #[default]
    StopIfFull,
    /// The machine stops.
    Stop,
    /// The guest is told.
    Report,
}

impl OnError {
    fn stops(self, error: &DiskError) -> bool {
        match self {
            OnError::StopIfFull => error.is_full(),
            OnError::Stop => error.is_host(),
            OnError::Report => false,
        }
    }
}

/// Stops a machine.
pub trait FaultSink: Send + Sync {
    /// The host failed as `error` says. The request waits until the machine,
    /// which is stopped soon, goes on; then it is done again. Comes on a
    /// worker's thread and must not block.
    fn disk_failed(&self, error: &DiskError);
}

/// What a disk is to the guest.
pub struct BlkOptions {
    /// Queues, 1–16.
    pub queues: u16,
    /// Serial number, the first 20 bytes of it.
    pub serial: String,
    /// Name under which requests that fail are logged.
    pub name: String,
    /// The driver is told of no cache: a write is flushed before it is done.
    pub write_through: bool,
    /// How much it may do.
    pub limits: Limits,
    /// See there.
    pub on_error: OnError,
}

/// The size that the driver is told.
#[derive(Default)]
struct Size {
    sectors: AtomicU64,
    notifier: OnceLock<Notifier>,
}

/// Works on a disk that a guest has.
#[derive(Clone)]
pub struct BlkHandle {
    disk: Arc<dyn Disk>,
    size: Arc<Size>,
}

impl BlkHandle {
    /// What is behind it.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Makes the disk `bytes` large, which is not less than it is, and tells
    /// the guest.
    pub fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        self.disk.resize(bytes)?;
        let sectors = self.disk.size() / SECTOR;
        self.size.sectors.store(sectors, Ordering::SeqCst);
        if let Some(notifier) = self.size.notifier.get() {
            notifier.config_changed();
        }
        Ok(())
    }
}

impl VirtioBlk {
    /// A disk that is `disk`, as `options` say. Lines for the operator go to
    /// `log`, failures that stop the machine to `faults`.
    pub fn new(
        disk: Arc<dyn Disk>,
        options: BlkOptions,
        log: Arc<dyn LogSink>,
        faults: Arc<dyn FaultSink>,
    ) -> Self {
        let mut id = [0; ID_LEN];
        for (place, byte) in id.iter_mut().zip(options.serial.bytes()) {
            *place = byte;
        }
        VirtioBlk {
            size: Arc::new(Size {
                sectors: AtomicU64::new(disk.size() / SECTOR),
                notifier: OnceLock::new(),
            }),
            disk,
            queues: options.queues.clamp(1, QUEUES_MAX),
            write_through: options.write_through,
            id,
            limiter: Arc::new(Limiter::new(
                options.limits.iops,
                options.limits.bytes_per_second,
            )),
            on_error: options.on_error,
            faults,
            log: Arc::new(RateLimitedLog::new(options.name, log)),
        }
    }

    /// For working on it later.
    pub fn handle(&self) -> BlkHandle {
        BlkHandle {
            disk: self.disk.clone(),
            size: self.size.clone(),
        }
    }

    fn sectors(&self) -> u64 {
        self.size.sectors.load(Ordering::SeqCst)
    }
}

impl VirtioDevice for VirtioBlk {
    const KIND: Kind = Kind {
        name: NAME,
        id: VIRTIO_ID_BLOCK as u16,
        // Mass storage, of another kind than those listed.
        class: 0x01_80_00,
    };

    fn role(&self) -> Role {
        Role::Disk
    }

    fn features(&self) -> u64 {
        config::features(self.disk.is_read_only(), self.write_through, self.queues)
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn queue_size(&self) -> u16 {
        config::QUEUE_SIZE
    }

    fn config_len(&self) -> usize {
        config::LEN
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = config::bytes(self.sectors(), self.queues);
        copy_config(&config, offset, data);
    }

    fn connect(&mut self, notifier: Notifier) {
        // A device is connected once.
        let _ = self.size.notifier.set(notifier);
    }

    fn handler(&self, _queue: u16, features: u64) -> Box<dyn QueueHandler> {
        Box::new(Requests {
            disk: self.disk.clone(),
            id: self.id,
            write_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            limiter: self.limiter.clone(),
            on_error: self.on_error,
            faults: self.faults.clone(),
            log: self.log.clone(),
        })
    }

    fn save(&self, transport: TransportState) -> DeviceState {
        DeviceState::VirtioBlk(VirtioBlkState {
            version: VERSION,
            sectors: self.sectors(),
            read_only: self.disk.is_read_only(),
            transport,
        })
    }

    fn check<'a>(&self, state: &'a DeviceState) -> Result<&'a TransportState, StateError> {
        let DeviceState::VirtioBlk(state) = state else {
            return Err(StateError::WrongDevice {
                device: NAME,
                found: state.kind(),
            });
        };
        check_version(NAME, state.version, VERSION)?;
        if (state.sectors, state.read_only) != (self.sectors(), self.disk.is_read_only()) {
            let what = format!(
                "its disk has {} sectors (read-only: {}), this one {} ({})",
                state.sectors,
                state.read_only,
                self.sectors(),
                self.disk.is_read_only()
            );
            return Err(damaged(NAME, what));
        }
        Ok(&state.transport)
    }
}
