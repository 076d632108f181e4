//! Saved state of the test device.

use serde::{Deserialize, Serialize};

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// Everything a guest can have stored in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestDevState {
    /// Version of this type.
    pub version: u32,
    /// The four ports that hold what was written.
    pub ports: [u8; 4],
    /// Interrupt lines driven high, a bit each.
    pub lines: u32,
    /// The memory, without its trailing zeros.
    pub memory: Vec<u8>,
}
