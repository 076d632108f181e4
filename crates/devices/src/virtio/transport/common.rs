//! The common configuration (virtio 1.2, 4.1.4.3).
//!
//! | offset | bytes | contents                                     |
//! |--------|-------|----------------------------------------------|
//! | 0x00   | 4     | device feature select                        |
//! | 0x04   | 4     | device features, the selected half; read-only |
//! | 0x08   | 4     | driver feature select                        |
//! | 0x0C   | 4     | driver features, the selected half           |
//! | 0x10   | 2     | vector of configuration changes              |
//! | 0x12   | 2     | number of queues; read-only                  |
//! | 0x14   | 1     | device status                                |
//! | 0x15   | 1     | configuration generation; read-only          |
//! | 0x16   | 2     | queue select; the rest is about that queue   |
//! | 0x18   | 2     | size; 0 when there is no such queue          |
//! | 0x1A   | 2     | vector                                       |
//! | 0x1C   | 2     | enable                                       |
//! | 0x1E   | 2     | notification offset; read-only               |
//! | 0x20   | 8     | descriptor table                             |
//! | 0x28   | 8     | driver area                                  |
//! | 0x30   | 8     | device area                                  |
//! | 0x38   | 4     | not offered (F_NOTIF_CONFIG_DATA, F_RING_RESET) |
//!
//! Fields are written as a whole, the last three also by halves (4.1.3.1).

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FAILED,
};

use super::layout::COMMON_LEN;
use super::{DRIVER_OK, FEATURES_OK, VERSION_1, VirtioPci};
use crate::virtio::VirtioDevice;

/// Status bits that a driver sets (2.1).
const DRIVER_STATUS: u8 =
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FAILED) as u8
        | FEATURES_OK
        | DRIVER_OK;

/// Registers that belong to no queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Common {
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub driver_features: u64,
    /// Without DEVICE_NEEDS_RESET.
    pub status: u8,
    pub queue_select: u16,
}

/// The half of `features` that `select` names.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// `old` with a write of 4 or 8 bytes at byte `at` (0 or 4).
fn with_part(old: u64, at: u64, data: &[u8]) -> u64 {
    let mut bytes = old.to_le_bytes();
    if let Some(place) = bytes.get_mut(at as usize..at as usize + data.len()) {
        place.copy_from_slice(data);
    }
    u64::from_le_bytes(bytes)
}

impl<D: VirtioDevice> VirtioPci<D> {
    pub(super) fn common_read(&mut self, offset: u64, data: &mut [u8]) {
        self.try_finish_reset();
        let image = self.common_image();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    fn common_image(&self) -> [u8; COMMON_LEN] {
        let common = &self.common;
        let interrupts = &self.shared.interrupts;
        let mut image = [0; COMMON_LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let select = common.device_feature_select;
        put(0x00, &select.to_le_bytes());
        put(0x04, &half(self.offered(), select).to_le_bytes());
        let select = common.driver_feature_select;
        put(0x08, &select.to_le_bytes());
        put(0x0C, &half(common.driver_features, select).to_le_bytes());
        put(0x10, &interrupts.config_vector().to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.status()]);
        let generation = self.shared.config_generation.load(Ordering::SeqCst);
        put(0x15, &[generation]);
        let index = common.queue_select;
        put(0x16, &index.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(index)) {
            put(0x18, &queue.place.size.to_le_bytes());
            put(0x1A, &interrupts.queue_vector(index).to_le_bytes());
            put(0x1C, &u16::from(queue.enabled).to_le_bytes());
            put(0x1E, &index.to_le_bytes());
            put(0x20, &queue.place.descriptors.to_le_bytes());
            put(0x28, &queue.place.driver.to_le_bytes());
            put(0x30, &queue.place.device.to_le_bytes());
        }
        image
    }

    pub(super) fn common_write(&mut self, offset: u64, data: &[u8]) {
        self.try_finish_reset();
        if self.resetting {
            // A driver waits until the status reads as 0 (4.1.4.3.2).
            return;
        }
        let value = data
            .iter()
            .rev()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        match (offset, data.len()) {
            (0x00, 4) => self.common.device_feature_select = value as u32,
            (0x08, 4) => self.common.driver_feature_select = value as u32,
            (0x0C, 4) => self.set_driver_features(value as u32),
            (0x10, 2) => self.shared.interrupts.set_config_vector(value as u16),
            (0x14, 1) => self.set_status(value as u8),
            (0x16, 2) => self.common.queue_select = value as u16,
            (0x1A, 2) => {
                let queue = self.common.queue_select;
                self.shared.interrupts.set_queue_vector(queue, value as u16);
            }
            (0x1C, 2) if value == 1 => self.enable_queue(),
            (0x18, 2) | (0x20 | 0x28 | 0x30, 4 | 8) | (0x24 | 0x2C | 0x34, 4) => {
                self.set_queue_register(offset, data, value)
            }
            _ => {}
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.common.status & FEATURES_OK != 0 {
            return;
        }
        let features = &mut self.common.driver_features;
        let value = u64::from(value);
        match self.common.driver_feature_select {
            0 => *features = *features & !0xFFFF_FFFF | value,
            1 => *features = *features & 0xFFFF_FFFF | value << 32,
            _ => {}
        }
    }

    fn set_status(&mut self, value: u8) {
        if value == 0 {
            return self.begin_reset();
        }
        let before = self.common.status;
        let mut status = before | value & DRIVER_STATUS;
        let features = self.common.driver_features;
        if features & !self.offered() != 0 || features & VERSION_1 == 0 {
            // What was not offered, or the legacy interface (3.1.1, 6.1).
            status &= !FEATURES_OK | before;
        }
        if status & FEATURES_OK == 0 {
            status &= !DRIVER_OK;
        }
        self.common.status = status;
        if status & !before & DRIVER_OK != 0 {
            self.activate(&[]);
        }
        self.settle();
    }

    fn enable_queue(&mut self) {
        let index = usize::from(self.common.queue_select);
        match self.queues.get_mut(index) {
            Some(queue) if !queue.enabled => queue.enabled = true,
            _ => return,
        }
        if self.common.status & DRIVER_OK != 0 {
            self.shared.fail(&format!(
                "virtqueue {index} was enabled after the driver had said that it was done"
            ));
        }
    }

    /// Size and addresses, which stay as they are once the queue is enabled.
    fn set_queue_register(&mut self, offset: u64, data: &[u8], value: u64) {
        let index = self.common.queue_select;
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        let mut place = queue.place;
        match offset {
            0x18 => place.size = value as u16,
            0x20 | 0x24 => place.descriptors = with_part(place.descriptors, offset - 0x20, data),
            0x28 | 0x2C => place.driver = with_part(place.driver, offset - 0x28, data),
            _ => place.device = with_part(place.device, offset - 0x30, data),
        }
        if !queue.enabled {
            queue.place = place;
        } else if queue.place != place {
            self.shared.fail(&format!(
                "size or place of virtqueue {index} changed while it was enabled"
            ));
        }
    }
}
