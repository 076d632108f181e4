//! Saved state of pvpanic.

use serde::{Deserialize, Serialize};

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// pvpanic remembers nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvpanicState {
    /// Version of this type.
    pub version: u32,
}
