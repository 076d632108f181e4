//! Saved state of a NIC.

use serde::{Deserialize, Serialize};

use super::filter::Filter;
use crate::virtio::TransportState;

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// State of a NIC; what is behind it is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioNetState {
    /// Version of this type.
    pub version: u32,
    /// The MTU that the driver was told.
    pub mtu: u16,
    /// Which frames the driver wants, and the address it has.
    pub filter: Filter,
    /// Pairs of queues in use.
    pub pairs: u16,
    /// What the driver takes over, as bits of features.
    pub offloads: u64,
    /// The driver is asked to announce itself.
    pub announce: bool,
    /// Its transport.
    pub transport: TransportState,
}
