//! Saved state of the power-management block.

use serde::{Deserialize, Serialize};

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// PM1a, the PM timer's interrupt and GPE0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmState {
    /// Version of this type.
    pub version: u32,
    /// PM1 status.
    pub pm1_status: u16,
    /// PM1 enable.
    pub pm1_enable: u16,
    /// PM1 control.
    pub pm1_control: u16,
    /// GPE0 status.
    pub gpe_status: u16,
    /// GPE0 enable.
    pub gpe_enable: u16,
    /// Guest time (nanoseconds) up to which timer carries were worked out.
    pub seen_ns: u64,
}
