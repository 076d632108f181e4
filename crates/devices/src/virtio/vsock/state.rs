//! Saved state of the socket device.

use serde::{Deserialize, Serialize};

use crate::virtio::TransportState;

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// State of a socket device; its connections are not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioVsockState {
    /// Version of this type.
    pub version: u32,
    /// Its transport.
    pub transport: TransportState,
}
