//! One counter of the 8254.

use super::PIT_HZ;
use crate::{PitChannelState, RestoreError};

const NS: u128 = 1_000_000_000;

/// Whole clocks in `ns`.
pub(super) fn clocks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(PIT_HZ) / NS) as u64
}

/// Nanoseconds until `clocks` have passed.
pub(super) fn nanoseconds(clocks: u64) -> u64 {
    let ns = (u128::from(clocks) * NS).div_ceil(PIT_HZ.into());
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// One counter. Its saved form has the same fields, explained there.
#[derive(Clone, Debug)]
pub(super) struct Channel(pub(super) PitChannelState);

impl Channel {
    pub(super) fn new(gate: bool) -> Self {
        Channel(PitChannelState {
            reload: 0x1_0000,
            access: 3,
            gate,
            ..Default::default()
        })
    }

    fn reload(&self) -> u64 {
        self.0.reload.max(1).into()
    }

    fn running(&self) -> bool {
        self.0.armed
            && match self.0.mode {
                1 | 5 => self.0.triggered,
                _ => self.0.gate,
            }
    }

    fn elapsed(&self, now: u64) -> u64 {
        let since = if self.running() {
            clocks(now.saturating_sub(self.0.loaded_at))
        } else {
            0
        };
        self.0.counted.saturating_add(since)
    }

    /// Rising edges of OUT since the load.
    fn edges(&self, now: u64) -> u64 {
        if !self.running() {
            return self.0.edges_seen;
        }
        let (elapsed, reload) = (self.elapsed(now), self.reload());
        match self.0.mode {
            0 | 1 => (elapsed >= reload).into(),
            2 | 3 => elapsed / reload,
            _ => (elapsed > reload).into(),
        }
    }

    /// Notices edges up to `now`, and lets a waiting reload value take effect
    /// if its time came.
    pub(super) fn settle(&mut self, now: u64) {
        self.notice(now);
        if matches!(self.0.mode, 2 | 3)
            && self.running()
            && self.elapsed(now) >= self.reload()
            && let Some(next) = self.0.next_reload.take()
        {
            let period = nanoseconds(self.reload().saturating_sub(self.0.counted));
            self.restart(next, self.0.loaded_at.saturating_add(period));
            self.notice(now);
        }
    }

    fn notice(&mut self, now: u64) {
        let edges = self.edges(now);
        self.0.edge_due |= edges > self.0.edges_seen;
        self.0.edges_seen = edges;
    }

    fn restart(&mut self, reload: u32, at: u64) {
        self.0.reload = reload;
        self.0.loaded_at = at;
        self.0.counted = 0;
        self.0.edges_seen = 0;
    }

    fn load(&mut self, written: u16, now: u64) {
        self.settle(now);
        let reload = match (written, self.0.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (count, false) => count.into(),
            (count, true) => from_bcd(count),
        };
        match self.0.mode {
            1 | 5 if self.0.triggered => self.0.next_reload = Some(reload),
            1 | 5 => self.0.reload = reload,
            2 | 3 if self.running() => {
                // So that the period under way is the first since the load.
                let periods = self.elapsed(now) / self.reload();
                let passed = nanoseconds(periods.saturating_mul(self.reload()));
                self.restart(self.0.reload, self.0.loaded_at.saturating_add(passed));
                self.0.next_reload = Some(reload);
            }
            _ => {
                self.0.next_reload = None;
                self.restart(reload, now);
            }
        }
        self.0.armed = true;
    }

    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.0.gate {
            return;
        }
        self.settle(now);
        match (self.0.mode, gate) {
            (0 | 4, false) => self.0.counted = self.elapsed(now),
            (0 | 4, true) => self.0.loaded_at = now,
            (2 | 3, false) => self.0.counted = self.elapsed(now) % self.reload(),
            (1 | 5, false) => {}
            (_, true) => {
                let reload = self.0.next_reload.take().unwrap_or(self.0.reload);
                self.restart(reload, now);
                self.0.triggered = self.0.armed;
            }
            _ => {}
        }
        self.0.gate = gate;
    }

    pub(super) fn output(&self, now: u64) -> bool {
        let (elapsed, reload) = (self.elapsed(now), self.reload());
        match self.0.mode {
            0 => self.0.armed && elapsed >= reload,
            1 => !self.running() || elapsed >= reload,
            2 => !self.running() || elapsed % reload != reload - 1,
            3 => !self.running() || elapsed % reload < reload.div_ceil(2),
            _ => !self.running() || elapsed != reload,
        }
    }

    fn count(&self, now: u64) -> u16 {
        let (elapsed, reload) = (self.elapsed(now), self.reload());
        let modulus = if self.0.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.0.mode {
            2 => reload - elapsed % reload,
            3 => {
                let half = reload.div_ceil(2);
                let position = elapsed % reload;
                let position = if position < half {
                    position
                } else {
                    position - half
                };
                (reload & !1).saturating_sub(2 * position)
            }
            _ => reload % modulus + modulus - elapsed % modulus,
        } % modulus;
        if self.0.bcd {
            to_bcd(value as u16)
        } else {
            value as u16
        }
    }

    fn status(&self, now: u64) -> u8 {
        let null = !self.0.armed || self.0.next_reload.is_some();
        u8::from(self.output(now)) << 7
            | u8::from(null) << 6
            | (self.0.access & 3) << 4
            | (self.0.mode & 7) << 1
            | u8::from(self.0.bcd)
    }

    pub(super) fn control(&mut self, value: u8, now: u64) {
        if value & 0x30 == 0 {
            return self.latch_count(now);
        }
        self.settle(now);
        self.0 = PitChannelState {
            reload: self.0.reload,
            access: value >> 4 & 3,
            mode: match value >> 1 & 7 {
                mode @ 6..=7 => mode - 4,
                mode => mode,
            },
            bcd: value & 1 != 0,
            gate: self.0.gate,
            edge_due: self.0.edge_due,
            ..Default::default()
        };
    }

    pub(super) fn latch_count(&mut self, now: u64) {
        if self.0.latched.is_none() {
            self.0.latched = Some(self.count(now));
        }
    }

    pub(super) fn latch_status(&mut self, now: u64) {
        if self.0.latched_status.is_none() {
            self.0.latched_status = Some(self.status(now));
        }
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        self.settle(now);
        if let Some(status) = self.0.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .0
            .latched
            .unwrap_or_else(|| self.count(now))
            .to_le_bytes();
        let (value, last) = match (self.0.access, self.0.read_high) {
            (1, _) => (low, true),
            (2, _) => (high, true),
            (_, false) => (low, false),
            (_, true) => (high, true),
        };
        self.0.read_high = !last;
        if last {
            self.0.latched = None;
        }
        value
    }

    pub(super) fn write(&mut self, value: u8, now: u64) {
        match (self.0.access, self.0.write_low.take()) {
            (1, _) => self.load(value.into(), now),
            (2, _) => self.load(u16::from(value) << 8, now),
            (_, Some(low)) => self.load(u16::from_le_bytes([low, value]), now),
            (_, None) => {
                self.settle(now);
                self.0.write_low = Some(value);
                // In mode 0 the first byte stops the count.
                self.0.armed &= self.0.mode != 0;
            }
        }
    }

    /// When the next rising edge is to be noticed.
    pub(super) fn next_edge(&self, now: u64) -> Option<u64> {
        if self.0.edge_due || self.edges(now) > self.0.edges_seen {
            return Some(now);
        }
        if !self.running() {
            return None;
        }
        let (elapsed, reload) = (self.elapsed(now), self.reload());
        let target = match self.0.mode {
            2 | 3 => (elapsed / reload).saturating_add(1).saturating_mul(reload),
            0 | 1 if elapsed < reload => reload,
            4 | 5 if elapsed <= reload => reload + 1,
            _ => return None,
        };
        let left = nanoseconds(target.saturating_sub(self.0.counted));
        Some(self.0.loaded_at.saturating_add(left).max(now))
    }

    pub(super) fn from_state(state: &PitChannelState) -> Result<Self, RestoreError> {
        let bad = |what, value: u64| Err(RestoreError::Value { what, value });
        for reload in [Some(state.reload), state.next_reload]
            .into_iter()
            .flatten()
        {
            if !(1..=0x1_0000).contains(&reload) {
                return bad("PIT reload value", reload.into());
            }
        }
        if state.mode > 5 {
            return bad("PIT mode", state.mode.into());
        }
        if !(1..=3).contains(&state.access) {
            return bad("PIT access mode", state.access.into());
        }
        Ok(Channel(state.clone()))
    }
}

fn from_bcd(bcd: u16) -> u32 {
    (0..4).rev().fold(0, |value, digit| {
        value * 10 + u32::from(bcd >> (4 * digit) & 0xF)
    })
}

fn to_bcd(value: u16) -> u16 {
    [1000, 100, 10, 1]
        .iter()
        .fold(0, |bcd, weight| bcd << 4 | (value / weight % 10))
}
