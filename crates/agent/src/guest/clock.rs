//! The guest's clock.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::task::Refusal;

/// By how much it may be off, in nanoseconds: what is less is for NTP, which
/// does not make time jump.
const TOLERANCE: i128 = 1_000_000_000;

/// Sets it to `wanted` nanoseconds since 1970 if it is off by more.
pub fn set(wanted: u64) -> Result<(), Refusal> {
    let now = clock_gettime(ClockId::Realtime);
    let now = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    if (now - i128::from(wanted)).abs() <= TOLERANCE {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: (wanted / 1_000_000_000).cast_signed(),
        tv_nsec: (wanted % 1_000_000_000).cast_signed(),
    };
    clock_settime(ClockId::Realtime, time)
        .map_err(|error| Refusal::other(format!("the guest's clock cannot be set: {error}")))
}
