//! The APIC timer: one-shot, periodic, TSC-deadline (SDM vol. 3, 11.5.4).
//!
//! ```text
//!           initial count ≠ 0                 count reaches 0
//!  stopped ──────────────────▶ counting ──┬── one-shot ──▶ stopped
//!     ▲                          ▲        └── periodic ──▶ counting (next period)
//!     └── initial count = 0 ─────┘
//!
//!           deadline ≠ 0                TSC ≥ deadline
//!  disarmed ─────────────▶ armed ────────────────────────▶ disarmed
//! ```
//!
//! A change from or to TSC-deadline mode stops both.

use super::{LVT_MASKED, LVT_TIMER, Lapic};

/// Frequency of the timer before its divider. One tick is one nanosecond of
/// guest time, so that no rounding accumulates; Linux measures it, or is told.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// Shortest period of the periodic mode in nanoseconds. A guest that asks for
/// less gets this: otherwise it could keep the host busy with interrupts that
/// it masks.
pub const MIN_PERIOD_NS: u64 = 50_000;

/// Divide configuration: writable bits.
pub(super) const DIVIDE_WRITABLE: u32 = 0xB;

/// Timer registers apart from the LVT entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Timer {
    /// Initial count register.
    pub(super) initial: u32,
    /// Divide configuration register.
    pub(super) divide: u32,
    /// Guest time in nanoseconds when the count reaches zero; 0 = stopped.
    pub(super) expires_at: u64,
    /// IA32_TSC_DEADLINE; 0 = disarmed.
    pub(super) deadline: u64,
}

impl Timer {
    /// Nanoseconds of one count.
    fn divider(&self) -> u64 {
        match (self.divide >> 1 & 4) | (self.divide & 3) {
            7 => 1,
            code => 2 << code,
        }
    }

    fn start(&mut self, counts: u32, now: u64) {
        let length = u64::from(counts) * self.divider();
        self.expires_at = if length == 0 {
            0
        } else {
            now.saturating_add(length)
        };
    }

    fn period_ns(&self) -> u64 {
        (u64::from(self.initial) * self.divider()).max(MIN_PERIOD_NS)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    Deadline,
    /// Code 3 is reserved: never due.
    Reserved,
}

impl Mode {
    fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            2 => Mode::Deadline,
            _ => Mode::Reserved,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Mode::OneShot | Mode::Periodic)
    }
}

impl Lapic {
    fn timer_mode(&self) -> Mode {
        Mode::of(self.lvt[LVT_TIMER])
    }

    fn timer_masked(&self) -> bool {
        self.lvt[LVT_TIMER] & LVT_MASKED != 0
    }

    /// Guest time in nanoseconds when [`poll_timer`](Self::poll_timer) has
    /// something to do next, `now` if it has already; `None` when stopped,
    /// masked or in TSC-deadline mode.
    pub fn next_expiry_ns(&self, now: u64) -> Option<u64> {
        let due = self.timer_mode().counts() && !self.timer_masked() && self.timer.expires_at != 0;
        due.then(|| self.timer.expires_at.max(now))
    }

    /// Guest TSC value when [`poll_timer`](Self::poll_timer) has something to
    /// do next; `None` when disarmed, masked or in another mode.
    pub fn tsc_deadline(&self) -> Option<u64> {
        let armed = self.timer_mode() == Mode::Deadline && !self.timer_masked();
        (armed && self.timer.deadline != 0).then_some(self.timer.deadline)
    }

    /// Raises the timer's vector when due; true if it did. Periods missed
    /// since the last call become one interrupt, and the next one stays on the
    /// grid of the first.
    pub fn poll_timer(&mut self, now: u64, tsc: u64) -> bool {
        let due = match self.timer_mode() {
            Mode::Deadline => {
                let due = self.timer.deadline != 0 && tsc >= self.timer.deadline;
                if due {
                    self.timer.deadline = 0;
                }
                due
            }
            mode @ (Mode::OneShot | Mode::Periodic) => {
                let due = self.timer.expires_at != 0 && now >= self.timer.expires_at;
                if due {
                    self.timer.expires_at = match mode {
                        // A switch to this mode after an initial count of 0
                        // was written has nothing to reload.
                        Mode::Periodic if self.timer.initial != 0 => {
                            let period = self.timer.period_ns();
                            let missed = (now - self.timer.expires_at) / period;
                            let step = (missed + 1).saturating_mul(period);
                            self.timer.expires_at.saturating_add(step)
                        }
                        _ => 0,
                    };
                }
                due
            }
            Mode::Reserved => false,
        };
        due && self.raise_lvt(LVT_TIMER)
    }

    /// Reads IA32_TSC_DEADLINE: 0 when disarmed, passed or in another mode.
    pub fn read_tsc_deadline(&mut self, now: u64, tsc: u64) -> u64 {
        self.poll_timer(now, tsc);
        if self.timer_mode() == Mode::Deadline {
            self.timer.deadline
        } else {
            0
        }
    }

    /// Writes IA32_TSC_DEADLINE; 0 disarms, a passed one is due at once.
    /// Ignored in another timer mode.
    pub fn write_tsc_deadline(&mut self, value: u64, now: u64, tsc: u64) {
        self.poll_timer(now, tsc);
        if self.timer_mode() == Mode::Deadline {
            self.timer.deadline = value;
            self.poll_timer(now, tsc);
        }
    }

    /// Current count register.
    pub(super) fn timer_count(&mut self, now: u64, tsc: u64) -> u32 {
        self.poll_timer(now, tsc);
        if !self.timer_mode().counts() {
            return 0;
        }
        let left = self
            .timer
            .expires_at
            .saturating_sub(now)
            .div_ceil(self.timer.divider());
        // A stretched short period shows its initial count until it counts.
        u32::try_from(left)
            .unwrap_or(u32::MAX)
            .min(self.timer.initial)
    }

    pub(super) fn write_timer_initial(&mut self, value: u32, now: u64, tsc: u64) {
        self.poll_timer(now, tsc);
        match self.timer_mode() {
            Mode::Deadline => return,
            Mode::OneShot | Mode::Reserved => self.timer.start(value, now),
            Mode::Periodic => {
                self.timer.start(value, now);
                if value != 0 {
                    let soonest = now.saturating_add(MIN_PERIOD_NS);
                    self.timer.expires_at = self.timer.expires_at.max(soonest);
                }
            }
        }
        self.timer.initial = value;
    }

    /// A running count goes on at the new rate.
    pub(super) fn write_timer_divide(&mut self, value: u32, now: u64, tsc: u64) {
        let left = self.timer_count(now, tsc);
        self.timer.divide = value & DIVIDE_WRITABLE;
        if self.timer.expires_at != 0 && self.timer_mode().counts() {
            self.timer.start(left, now);
        }
    }

    pub(super) fn write_timer_lvt(&mut self, value: u32, now: u64, tsc: u64) {
        self.poll_timer(now, tsc);
        let was = self.timer_mode().counts();
        self.lvt[LVT_TIMER] = value;
        if was != self.timer_mode().counts() {
            self.timer.initial = 0;
            self.timer.expires_at = 0;
            self.timer.deadline = 0;
        }
    }
}
