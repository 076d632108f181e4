//! The 8254 interval timer and port 0x61 (Intel 8254 data sheet; 82371SB data
//! sheet for NMI status and control).
//!
//! Nothing ticks: counts, outputs and edges follow from the time at which a
//! count was loaded. Of the chip's fine print two things are simplified: a
//! count is loaded with the write of its last byte, not one clock later; and a
//! control word that raises OUT makes no interrupt, only counting does.

mod channel;
#[cfg(test)]
mod tests;

use crate::{PitState, RestoreError};
use channel::Channel;

/// Input clock in Hz: the PC's 14.31818 MHz crystal divided by 12.
pub const PIT_HZ: u64 = 1_193_182;
/// Edges of channel 0 are reported at least this far apart, in nanoseconds:
/// with a count of 2 a guest could otherwise keep the host busy.
pub const MIN_EDGE_NS: u64 = 50_000;
/// The refresh bit of port 0x61 toggles each 15.085 µs.
const REFRESH_NS: u64 = 15_085;

/// What [`Pit::poll`] found at the output of channel 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq0 {
    /// It rose since the last report: one interrupt, however often it did.
    pub rose: bool,
    /// Its level now.
    pub level: bool,
}

/// The interval timer. All times are guest nanoseconds.
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    speaker: bool,
    last_edge_at: Option<u64>,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// As after reset: no channel counts before it is programmed.
    pub fn new() -> Self {
        // The gates of channels 0 and 1 are wired to be open.
        let channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
        Pit {
            channels,
            speaker: false,
            last_edge_at: None,
        }
    }

    /// Back to reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Whether this is a port of the timer: 0x40–0x43, 0x61.
    pub fn claims_port(port: u16) -> bool {
        matches!(port, 0x40..=0x43 | 0x61)
    }

    /// Reads a byte from `port`.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].read(now),
            0x61 => {
                let channel = &mut self.channels[2];
                channel.settle(now);
                u8::from(channel.0.gate)
                    | u8::from(self.speaker) << 1
                    | (((now / REFRESH_NS) & 1) as u8) << 4
                    | u8::from(channel.output(now)) << 5
            }
            _ => 0xFF,
        }
    }

    /// Writes a byte to `port`.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].write(value, now),
            0x43 if value >> 6 == 3 => self.read_back(value, now),
            0x43 => self.channels[usize::from(value >> 6) % 3].control(value, now),
            0x61 => {
                self.speaker = value & 2 != 0;
                self.channels[2].set_gate(value & 1 != 0, now);
            }
            _ => {}
        }
    }

    fn read_back(&mut self, value: u8, now: u64) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << index == 0 {
                continue;
            }
            channel.settle(now);
            if value & 0x20 == 0 {
                channel.latch_count(now);
            }
            if value & 0x10 == 0 {
                channel.latch_status(now);
            }
        }
    }

    /// When [`poll`](Self::poll) has an edge to report next, `now` if it has
    /// one already.
    pub fn next_edge_ns(&self, now: u64) -> Option<u64> {
        let next = self.channels[0].next_edge(now)?;
        Some(next.max(self.soonest()))
    }

    /// What channel 0 drives into IRQ 0. Edges since the last report, also
    /// after a long stall, are one; reports keep [`MIN_EDGE_NS`] apart.
    pub fn poll(&mut self, now: u64) -> Irq0 {
        let soonest = self.soonest();
        let channel = &mut self.channels[0];
        channel.settle(now);
        let rose = channel.0.edge_due && now >= soonest;
        if rose {
            channel.0.edge_due = false;
            self.last_edge_at = Some(now);
        }
        Irq0 {
            rose,
            level: channel.output(now),
        }
    }

    fn soonest(&self) -> u64 {
        self.last_edge_at
            .map_or(0, |at| at.saturating_add(MIN_EDGE_NS))
    }

    /// Complete state.
    pub fn save(&self) -> PitState {
        PitState {
            channels: self.channels.each_ref().map(|channel| channel.0.clone()),
            speaker: self.speaker,
            last_edge_at: self.last_edge_at,
        }
    }

    /// Counterpart of [`save`](Self::save). Checks everything before it
    /// changes anything.
    pub fn restore(&mut self, state: &PitState) -> Result<(), RestoreError> {
        let [first, second, third] = &state.channels;
        self.channels = [
            Channel::from_state(first)?,
            Channel::from_state(second)?,
            Channel::from_state(third)?,
        ];
        self.speaker = state.speaker;
        self.last_edge_at = state.last_edge_at;
        Ok(())
    }
}
