//! virtio-blk: a disk (virtio 1.2, 5.2).
//!
//! | queue | request                                                     |
//! |-------|-------------------------------------------------------------|
//! | each  | read, write, flush, get id, discard, write zeroes           |
//!
//! `config` has what the driver is told, `request` what it can ask for.
//! Every queue has a worker, which serves one request after the other; a
//! guest that wants requests side by side uses several queues.

mod config;
mod request;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use croft_disk::{Disk, SECTOR};
use croft_isolate::Role;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::{
    Kind, LogSink, QueueHandler, RateLimitedLog, TransportState, VirtioDevice, copy_config,
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
    id: [u8; ID_LEN],
    config: [u8; config::LEN],
    log: Arc<RateLimitedLog>,
}

impl VirtioBlk {
    /// A disk of `queues` queues (1–16). `serial` is what the guest is told
    /// as its serial number, the first 20 bytes of it. Requests that fail
    /// are logged under `name`.
    pub fn new(
        disk: Arc<dyn Disk>,
        queues: u16,
        serial: &str,
        name: &str,
        log: Arc<dyn LogSink>,
    ) -> Self {
        let queues = queues.clamp(1, QUEUES_MAX);
        let mut id = [0; ID_LEN];
        for (place, byte) in id.iter_mut().zip(serial.bytes()) {
            *place = byte;
        }
        VirtioBlk {
            config: config::bytes(disk.size() / SECTOR, queues),
            disk,
            queues,
            id,
            log: Arc::new(RateLimitedLog::new(name.to_owned(), log)),
        }
    }

    fn sectors(&self) -> u64 {
        self.disk.size() / SECTOR
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
        config::features(self.disk.is_read_only(), self.queues)
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn queue_size(&self) -> u16 {
        config::QUEUE_SIZE
    }

    fn config_len(&self) -> usize {
        self.config.len()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn handler(&self, _queue: u16, features: u64) -> Box<dyn QueueHandler> {
        Box::new(Requests {
            disk: self.disk.clone(),
            id: self.id,
            write_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
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
