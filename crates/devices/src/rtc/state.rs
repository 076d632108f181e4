//! Saved state of the real-time clock.

use serde::{Deserialize, Serialize};

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// An MC146818 and its CMOS memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Version of this type.
    pub version: u32,
    /// Selected register, 0–127.
    pub index: u8,
    /// The NMI mask bit of the index port.
    pub nmi_masked: bool,
    /// All 128 registers; those of the time hold it only while it is frozen.
    pub registers: Vec<u8>,
    /// Nanoseconds that the guest's time is ahead of the wall clock.
    pub offset_ns: i64,
    /// Guest's calendar time (nanoseconds since 1970) up to which the update
    /// and alarm flags were worked out.
    pub seen_time_ns: u64,
    /// Guest time (nanoseconds) up to which the periodic flag was worked out.
    pub seen_now_ns: u64,
}
