//! Saved state of the exit port.

use serde::{Deserialize, Serialize};

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// The exit port remembers nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugExitState {
    /// Version of this type.
    pub version: u32,
}
