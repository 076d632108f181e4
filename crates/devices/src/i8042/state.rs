//! Saved state of the keyboard controller.

use serde::{Deserialize, Serialize};

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// An 8042 without keyboard or mouse, and port 0x92.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    /// Version of this type.
    pub version: u32,
    /// Configuration byte.
    pub config: u8,
    /// Output port.
    pub output_port: u8,
    /// Port 0x92.
    pub port_92: u8,
    /// Command that waits for its data byte.
    pub command: Option<u8>,
    /// The last write went to the command port.
    pub last_was_command: bool,
    /// Byte for the guest, with its status bits.
    pub output: Option<(u8, u8)>,
}
