//! Saved state of the entropy device.

use serde::{Deserialize, Serialize};

use crate::virtio::TransportState;

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// State of an entropy device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioRngState {
    /// Version of this type.
    pub version: u32,
    /// Its transport.
    pub transport: TransportState,
}
