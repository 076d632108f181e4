//! The I/O APIC: 24 pins (Intel 82093AA data sheet, with the EOI register of
//! version 0x20 as in the ICH).
//!
//! A level-triggered pin:
//!
//! ```text
//!          line up, unmasked: send              EOI, line down
//!  idle ────────────────────────▶ Remote IRR ────────────────────▶ idle
//!                                  ▲      │ EOI, line still up,
//!                                  └──────┘ unmasked: send again
//! ```
//!
//! An edge-triggered pin sends once for each rise; a rise while masked is
//! lost, as the data sheet says. Line levels are logical (up = asserted): the
//! polarity bit is kept for the guest and means nothing here.

use crate::{Delivery, Destination, IoApicState, Message, RestoreError};

/// Number of pins.
pub const PINS: usize = 24;
/// Physical address of the register page.
pub const BASE: u64 = 0xFEC0_0000;

/// Version 0x20, highest redirection entry 23.
const VERSION: u32 = 0x0017_0020;
const ENTRY_VECTOR: u64 = 0xFF;
const ENTRY_LOGICAL: u64 = 1 << 11;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
/// Vector, delivery and destination mode, polarity, trigger, mask,
/// destination. Delivery status (12) is always idle, Remote IRR read-only.
const ENTRY_WRITABLE: u64 = 0xFF00_0000_0001_AFFF;
const PIN_MASK: u32 = (1 << PINS) - 1;

/// What a register write leads to.
#[must_use = "interrupts are lost when an effect is dropped"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Send this.
    pub message: Option<Message>,
    /// Pins whose interrupt ended, a bit each; see [`IoApic::eoi`].
    pub ended: u32,
}

/// The I/O APIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u8,
    select: u8,
    entries: [u64; PINS],
    lines: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// As after reset: every pin masked.
    pub fn new() -> Self {
        IoApic {
            id: 0,
            select: 0,
            entries: [ENTRY_MASKED; PINS],
            lines: 0,
        }
    }

    /// Back to reset. The devices' lines stay as they drive them.
    pub fn reset(&mut self) {
        *self = IoApic {
            lines: self.lines,
            ..Self::new()
        };
    }

    /// The redirection entry of `pin`.
    pub fn entry(&self, pin: usize) -> Option<u64> {
        self.entries.get(pin).copied()
    }

    /// The message that `pin` sends as it is programmed, masked or not;
    /// `None` for a reserved delivery mode or an unknown pin.
    pub fn message(&self, pin: usize) -> Option<Message> {
        let entry = self.entry(pin)?;
        let delivery = match Delivery::from_bits((entry >> 8) as u32)? {
            Delivery::Startup => return None,
            other => other,
        };
        Some(Message {
            destination: Destination::from_xapic((entry >> 56) as u8, entry & ENTRY_LOGICAL != 0),
            delivery,
            vector: (entry & ENTRY_VECTOR) as u8,
            level: waits_for_eoi(entry),
        })
    }

    /// Drives `pin`; returns what is to be sent. Unknown pins are ignored.
    pub fn set_line(&mut self, pin: usize, level: bool) -> Option<Message> {
        let entry = self.entry(pin)?;
        let bit = 1 << pin;
        let rose = level && self.lines & bit == 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if waits_for_eoi(entry) {
            self.service(pin)
        } else if rose && entry & ENTRY_MASKED == 0 {
            self.message(pin)
        } else {
            None
        }
    }

    /// Ends the level-triggered interrupt `vector` on all pins that wait for
    /// it; returns these pins, a bit each. The owner notifies their devices,
    /// which may lower their lines, and then calls
    /// [`redeliver`](Self::redeliver) with the same pins.
    #[must_use = "pins still asserted are lost without redeliver"]
    pub fn eoi(&mut self, vector: u8) -> u32 {
        let mut ended = 0;
        for (pin, entry) in self.entries.iter_mut().enumerate() {
            if *entry & ENTRY_REMOTE_IRR != 0 && *entry & ENTRY_VECTOR == u64::from(vector) {
                *entry &= !ENTRY_REMOTE_IRR;
                ended |= 1 << pin;
            }
        }
        ended
    }

    /// Sends again for those of `pins` that are level-triggered, unmasked and
    /// still asserted.
    pub fn redeliver(&mut self, pins: u32, mut send: impl FnMut(Message)) {
        for pin in (0..PINS).filter(|pin| pins & 1 << pin != 0) {
            if let Some(message) = self.service(pin) {
                send(message);
            }
        }
    }

    /// Reads the 32-bit register at `offset` of the page.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => self.select.into(),
            0x10 => match self.select {
                0 | 2 => u32::from(self.id) << 24,
                1 => VERSION,
                select => match self.entry_half(select) {
                    Some((pin, high)) => (self.entries[pin] >> if high { 32 } else { 0 }) as u32,
                    None => 0,
                },
            },
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset` of the page.
    pub fn write(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            0x00 => {
                self.select = value as u8;
                Effect::default()
            }
            0x10 => {
                if self.select == 0 {
                    self.id = (value >> 24) as u8 & 0xF;
                    return Effect::default();
                }
                let message = self
                    .entry_half(self.select)
                    .and_then(|(pin, high)| self.program(pin, high, value));
                Effect { message, ended: 0 }
            }
            0x40 => Effect {
                message: None,
                ended: self.eoi(value as u8),
            },
            _ => Effect::default(),
        }
    }

    /// Complete state.
    pub fn save(&self) -> IoApicState {
        let level = |pin: &usize| self.entries[*pin] & ENTRY_LEVEL != 0;
        let irr = (0..PINS)
            .filter(level)
            .fold(0, |irr, pin| irr | self.lines & 1 << pin);
        IoApicState {
            id: self.id,
            select: self.select,
            entries: self.entries.to_vec(),
            lines: self.lines,
            irr,
        }
    }

    /// Counterpart of [`save`](Self::save). Checks everything before it
    /// changes anything.
    pub fn restore(&mut self, state: &IoApicState) -> Result<(), RestoreError> {
        let entries: [u64; PINS] =
            state
                .entries
                .as_slice()
                .try_into()
                .map_err(|_| RestoreError::Length {
                    what: "I/O APIC redirection entries",
                    found: state.entries.len(),
                    expected: PINS,
                })?;
        for entry in entries {
            let impossible = entry & !(ENTRY_WRITABLE | ENTRY_REMOTE_IRR) != 0
                || entry & ENTRY_REMOTE_IRR != 0 && entry & ENTRY_LEVEL == 0;
            if impossible {
                return Err(RestoreError::Value {
                    what: "I/O APIC redirection entry",
                    value: entry,
                });
            }
        }
        if state.id > 0xF {
            return Err(RestoreError::Value {
                what: "I/O APIC id",
                value: state.id.into(),
            });
        }
        if state.lines & !PIN_MASK != 0 {
            return Err(RestoreError::Value {
                what: "I/O APIC lines",
                value: state.lines.into(),
            });
        }
        *self = IoApic {
            id: state.id,
            select: state.select,
            entries,
            lines: state.lines,
        };
        Ok(())
    }

    /// Entry and half that an index register value of 0x10–0x3F selects.
    fn entry_half(&self, select: u8) -> Option<(usize, bool)> {
        let index = select.checked_sub(0x10)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, index % 2 != 0))
    }

    fn program(&mut self, pin: usize, high: bool, value: u32) -> Option<Message> {
        let (shift, half) = if high {
            (32, !0 << 32)
        } else {
            (0, 0xFFFF_FFFF)
        };
        let writable = ENTRY_WRITABLE & half;
        let entry = &mut self.entries[pin];
        *entry = *entry & !writable | u64::from(value) << shift & writable;
        if !waits_for_eoi(*entry) {
            // Linux clears a stuck Remote IRR by a switch to edge and back.
            *entry &= !ENTRY_REMOTE_IRR;
        }
        self.service(pin)
    }

    /// Sends for a level-triggered pin that is asserted, unmasked and not
    /// waiting for an EOI.
    fn service(&mut self, pin: usize) -> Option<Message> {
        let entry = self.entry(pin)?;
        let blocked = entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) != 0;
        if blocked || !waits_for_eoi(entry) || self.lines & 1 << pin == 0 {
            return None;
        }
        let message = self.message(pin)?;
        self.entries[pin] |= ENTRY_REMOTE_IRR;
        Some(message)
    }
}

/// Level-triggered with a vector. The other delivery modes are edges whatever
/// the trigger bit says (82093AA, 3.2.4).
fn waits_for_eoi(entry: u64) -> bool {
    entry & ENTRY_LEVEL != 0 && entry >> 8 & 7 <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(io: &mut IoApic, pin: u8, entry: u64) -> Option<Message> {
        // Linux writes the high half first, then the low one with the mask.
        let mut message = None;
        for (select, value) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry)] {
            assert_eq!(io.write(0, select.into()), Effect::default());
            message = io.write(0x10, value as u32).message.or(message);
        }
        message
    }

    fn read(io: &mut IoApic, select: u32) -> u32 {
        assert_eq!(io.write(0, select), Effect::default());
        io.read(0x10)
    }

    #[test]
    fn identification_as_linux_probes_it() {
        let mut io = IoApic::new();
        assert_eq!(read(&mut io, 1), 0x0017_0020);
        assert_eq!(io.write(0, 0), Effect::default());
        assert_eq!(io.write(0x10, 0xFF00_0000), Effect::default());
        assert_eq!(read(&mut io, 0), 0x0F00_0000);
        assert_eq!(read(&mut io, 2), 0x0F00_0000);
        assert_eq!(read(&mut io, 0x10), 0x0001_0000);
        assert_eq!(read(&mut io, 0x40), 0);
    }

    #[test]
    fn edges() {
        let mut io = IoApic::new();
        assert_eq!(io.set_line(4, true), None);
        assert_eq!(
            program(&mut io, 4, 0x0100_0000_0000_0834),
            None,
            "a masked rise is lost"
        );
        assert_eq!(io.set_line(4, false), None);
        let sent = io.set_line(4, true).unwrap();
        assert_eq!(sent.destination, Destination::Logical(1));
        assert_eq!((sent.vector, sent.level), (0x34, false));
        assert_eq!(io.set_line(4, true), None);
        assert_eq!(io.eoi(0x34), 0);
    }

    #[test]
    fn levels_wait_for_the_eoi() {
        let mut io = IoApic::new();
        assert_eq!(program(&mut io, 10, 0xA051), None);
        let sent = io.set_line(10, true).unwrap();
        assert!(sent.level);
        assert_eq!(read(&mut io, 0x10 + 20), 0xE051);
        assert_eq!(io.set_line(10, false), None);
        assert_eq!(io.set_line(10, true), None, "Remote IRR holds it back");
        assert_eq!(io.eoi(0x51), 1 << 10);
        let mut again = Vec::new();
        io.redeliver(1 << 10, |message| again.push(message));
        assert_eq!(again, [sent]);
        assert_eq!(io.write(0x40, 0x51).ended, 1 << 10);
        assert_eq!(io.set_line(10, false), None);
        io.redeliver(1 << 10, |_| panic!("the line is down"));
    }

    #[test]
    fn unmask_sends_an_asserted_level_and_edge_clears_remote_irr() {
        let mut io = IoApic::new();
        assert_eq!(program(&mut io, 11, 0x1_8060), None);
        assert_eq!(io.set_line(11, true), None);
        assert_eq!(program(&mut io, 11, 0x8060).unwrap().vector, 0x60);
        assert_eq!(program(&mut io, 11, 0x1_0060), None);
        assert_eq!(read(&mut io, 0x10 + 22), 0x1_0060);
        assert_eq!(program(&mut io, 11, 0x8060).unwrap().vector, 0x60);
    }

    #[test]
    fn other_delivery_modes_are_edges() {
        let mut io = IoApic::new();
        assert_eq!(program(&mut io, 0, 0xFF00_0000_0000_8700), None);
        let sent = io.set_line(0, true).unwrap();
        assert_eq!((sent.delivery, sent.level), (Delivery::ExtInt, false));
        assert_eq!(sent.destination, Destination::All);
        assert_eq!(program(&mut io, 1, 0x300), None);
        assert_eq!(io.set_line(1, true), None, "reserved mode");
        assert_eq!(io.set_line(24, true), None);
    }

    #[test]
    fn damaged_state_is_refused() {
        let mut io = IoApic::new();
        let good = io.save();
        for damage in [
            (|s: &mut IoApicState| s.entries.truncate(23)) as fn(&mut IoApicState),
            |s| s.entries[3] |= 1 << 20,
            |s| s.entries[3] |= ENTRY_REMOTE_IRR,
            |s| s.id = 16,
            |s| s.lines = 1 << 24,
        ] {
            let mut bad = good.clone();
            damage(&mut bad);
            assert!(io.restore(&bad).is_err());
        }
        assert_eq!(io.restore(&good), Ok(()));
    }
}
