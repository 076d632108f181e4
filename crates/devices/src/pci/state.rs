//! Saved states of the host bridge and of configuration spaces.

use serde::{Deserialize, Serialize};

/// Version of [`PciHostState`] written by this Croft.
pub(super) const HOST_VERSION: u32 = 1;
/// Version of [`ConfigState`] written by this Croft.
pub(super) const CONFIG_VERSION: u32 = 1;

/// The host bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    /// Version of this type.
    pub version: u32,
    /// Configuration address (port 0xCF8).
    pub address: u32,
    /// Reset control (port 0xCF9).
    pub reset_control: u8,
    /// Slots that appeared and were not announced to the guest yet.
    pub up: u32,
    /// Slots that the guest is asked to release.
    pub down: u32,
    /// Slots with a function, to be found again at a restore.
    pub occupied: u32,
    /// The bridge's own configuration space.
    pub config: ConfigState,
}

/// A configuration space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// Version of this type.
    pub version: u32,
    /// All 256 bytes.
    pub bytes: Vec<u8>,
}
