//! Saved state of the transport.

use serde::{Deserialize, Serialize};

use super::DRIVER_OK;
use crate::pci::ConfigState;

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// State of a virtio function, apart from its kind's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Version of this type.
    pub version: u32,
    /// PCI configuration space.
    pub config: ConfigState,
    /// Device status, DEVICE_NEEDS_RESET included.
    pub status: u8,
    /// ISR status.
    pub isr: u8,
    /// Selects which half of the offered features is read.
    pub device_feature_select: u32,
    /// Selects which half of the driver's features is written.
    pub driver_feature_select: u32,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// Selects a queue.
    pub queue_select: u16,
    /// Vector of configuration changes.
    pub config_vector: u16,
    /// Configuration generation.
    #[serde(default)]
    pub config_generation: u8,
    /// The driver was not told yet that the configuration changed.
    #[serde(default)]
    pub config_changed: bool,
    /// The MSI-X table.
    pub vectors: Vec<VectorState>,
    /// The queues, in order.
    pub queues: Vec<QueueState>,
}

impl TransportState {
    /// The driver has finished setting the device up.
    pub fn driver_at_work(&self) -> bool {
        self.status & DRIVER_OK != 0
    }
}

/// State of an MSI-X vector; masked at power-on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control: bit 0 masks.
    pub control: u32,
    /// A message waits.
    pub pending: bool,
}

impl Default for VectorState {
    fn default() -> Self {
        VectorState {
            address: 0,
            data: 0,
            control: 1,
            pending: false,
        }
    }
}

impl VectorState {
    /// As in the table.
    pub(super) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    pub(super) fn set_bytes(&mut self, bytes: [u8; 16]) {
        let word = |at: usize| {
            let bytes = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            u32::from_le_bytes(bytes)
        };
        self.address = u64::from(word(4)) << 32 | u64::from(word(0));
        self.data = word(8);
        self.control = word(12) & 1;
    }
}

/// State of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries.
    pub size: u16,
    /// MSI-X vector.
    pub vector: u16,
    /// The driver enabled it.
    pub enabled: bool,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the driver area.
    pub driver: u64,
    /// Address of the device area.
    pub device: u64,
    /// Position in the available ring.
    pub next_avail: u16,
    /// Position in the used ring.
    pub next_used: u16,
}
