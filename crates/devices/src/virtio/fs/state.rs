//! Saved state of a share.

use serde::{Deserialize, Serialize};

use crate::virtio::TransportState;

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// State of a share of which the guest knows only the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioFsState {
    /// Version of this type.
    pub version: u32,
    /// Its tag.
    pub tag: String,
    /// Whether it refuses changes.
    pub read_only: bool,
    /// The driver has begun a session.
    pub mounted: bool,
    /// Its transport.
    pub transport: TransportState,
}
