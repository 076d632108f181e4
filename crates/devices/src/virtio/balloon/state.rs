//! Saved state of the balloon.

use serde::{Deserialize, Serialize};

use crate::virtio::TransportState;

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// State of a balloon; which pages are in it only the driver knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioBalloonState {
    /// Version of this type.
    pub version: u32,
    /// Pages that it is to have.
    pub target: u32,
    /// Pages that it has, as the driver says.
    pub actual: u32,
    /// What the driver fills free pages with.
    pub poison: u32,
    /// Its transport.
    pub transport: TransportState,
}
