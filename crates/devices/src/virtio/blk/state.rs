//! Saved state of the block device.

use serde::{Deserialize, Serialize};

use crate::virtio::TransportState;

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// State of a block device; what is on the disk is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioBlkState {
    /// Version of this type.
    pub version: u32,
    /// Size of the disk in sectors.
    pub sectors: u64,
    /// Whether the disk refuses changes.
    pub read_only: bool,
    /// Its transport.
    pub transport: TransportState,
}
