//! The chips that a machine's vCPUs share, wired as in a PC:
//!
//! ```text
//!  PIT channel 0 ── GSI 0 ──┬──▶ PIC input 0
//!                           └──▶ I/O APIC pin 2
//!  device ── GSI n ─────────┬──▶ PIC input n (below 16)
//!                           └──▶ I/O APIC pin n
//!  PIC output ─────────────────▶ LINT0 of the vCPUs, I/O APIC pin 0 (ExtINT)
//! ```
//!
//! GSI 2 is the PIC's cascade and belongs to no device.

use crate::{ChipsState, IoApic, Message, Pics, Pit, RestoreError, ioapic};

/// GSI of the interval timer.
const GSI_TIMER: u32 = 0;
/// GSI that no device has.
const GSI_CASCADE: u32 = 2;
/// I/O APIC pin of the PIC's output.
const PIN_PIC: usize = 0;
/// I/O APIC pin of the interval timer.
const PIN_TIMER: usize = 2;

/// Where the chips' results go. Called while the chips are borrowed: it must
/// not call back into them.
pub trait Outlet {
    /// Offer `message` to every local APIC.
    fn send(&mut self, message: Message);

    /// The guest ended (EOI) the interrupt of line `gsi`. True lowers the
    /// line before it is looked at again: for lines that stay up until the
    /// EOI only.
    fn ended(&mut self, gsi: u32) -> bool;
}

/// PICs, PIT and I/O APIC.
#[derive(Clone, Debug, Default)]
pub struct Chips {
    pics: Pics,
    pit: Pit,
    ioapic: IoApic,
}

impl Chips {
    /// As after reset.
    pub fn new() -> Self {
        Self::default()
    }

    /// Back to reset. The devices' lines stay as they drive them; the timer's
    /// falls.
    pub fn reset(&mut self) {
        self.pics.reset();
        self.pit.reset();
        self.ioapic.reset();
        self.pics.set_irq(0, false);
        for pin in [PIN_TIMER, PIN_PIC] {
            // Nothing is sent: every pin is masked now.
            let _ = self.ioapic.set_line(pin, false);
        }
    }

    /// The I/O APIC, to look at how its pins are programmed.
    pub fn ioapic(&self) -> &IoApic {
        &self.ioapic
    }

    /// Drives global system interrupt `gsi`, 0–23. Unknown ones are ignored.
    pub fn set_line(&mut self, gsi: u32, level: bool, out: &mut impl Outlet) {
        self.drive(gsi, level, out);
        self.drive_pic_pin(out);
    }

    /// Whether this is a port of the PICs or the PIT.
    pub fn claims_port(port: u16) -> bool {
        Pics::claims_port(port) || Pit::claims_port(port)
    }

    /// Reads ports from `port` on, a byte each; unclaimed ones as 0xFF.
    pub fn port_read(&mut self, port: u16, data: &mut [u8], now: u64, out: &mut impl Outlet) {
        for (byte, port) in data.iter_mut().zip(port..=u16::MAX) {
            *byte = if Pics::claims_port(port) {
                let (value, ended) = self.pics.read(port);
                self.ended_at_pics(ended, out);
                value
            } else {
                self.pit.read(port, now)
            };
        }
        self.poll(now, out);
    }

    /// Writes ports from `port` on, a byte each; unclaimed ones are ignored.
    pub fn port_write(&mut self, port: u16, data: &[u8], now: u64, out: &mut impl Outlet) {
        for (&byte, port) in data.iter().zip(port..=u16::MAX) {
            if Pics::claims_port(port) {
                let ended = self.pics.write(port, byte);
                self.ended_at_pics(ended, out);
            } else {
                self.pit.write(port, byte, now);
            }
        }
        self.poll(now, out);
    }

    /// Reads from `offset` of the I/O APIC's page at [`ioapic::BASE`]. The
    /// registers have 32 bits; bytes beyond read as 0.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        let register = self.ioapic.read(offset & !3).to_le_bytes();
        let bytes = register
            .iter()
            .skip((offset & 3) as usize)
            .chain(std::iter::repeat(&0));
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = *value;
        }
    }

    /// Writes to `offset` of the I/O APIC's page. Narrow writes are extended
    /// with zeros, misaligned ones ignored.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8], out: &mut impl Outlet) {
        let mut register = [0; 4];
        for (byte, value) in register.iter_mut().zip(data) {
            *byte = *value;
        }
        let effect = self.ioapic.write(offset, u32::from_le_bytes(register));
        if let Some(message) = effect.message {
            out.send(message);
        }
        self.ended_at_ioapic(effect.ended, out);
    }

    /// A local APIC ended a level-triggered vector.
    pub fn eoi(&mut self, vector: u8, out: &mut impl Outlet) {
        let ended = self.ioapic.eoi(vector);
        self.ended_at_ioapic(ended, out);
    }

    /// Brings the timer's interrupt up to `now`.
    pub fn poll(&mut self, now: u64, out: &mut impl Outlet) {
        let irq0 = self.pit.poll(now);
        if irq0.rose {
            self.drive(GSI_TIMER, false, out);
            self.drive(GSI_TIMER, true, out);
        }
        if !irq0.level {
            self.drive(GSI_TIMER, false, out);
        }
        self.drive_pic_pin(out);
    }

    /// Guest time in nanoseconds when [`poll`](Self::poll) is due next. May
    /// change with every port write.
    pub fn next_event_ns(&self, now: u64) -> Option<u64> {
        self.pit.next_edge_ns(now)
    }

    /// The PIC's INTR output, for a vCPU that
    /// [`accepts_pic_interrupts`](crate::Lapic::accepts_pic_interrupts).
    pub fn intr(&self) -> bool {
        self.pics.output()
    }

    /// Acknowledges the PIC; returns the vector.
    pub fn acknowledge_pic(&mut self, out: &mut impl Outlet) -> u8 {
        let (vector, ended) = self.pics.acknowledge();
        self.ended_at_pics(ended, out);
        self.drive_pic_pin(out);
        vector
    }

    /// Complete state.
    pub fn save(&self) -> ChipsState {
        ChipsState {
            pics: self.pics.save(),
            pit: self.pit.save(),
            ioapic: self.ioapic.save(),
        }
    }

    /// Counterpart of [`save`](Self::save). Checks everything before it
    /// changes anything.
    pub fn restore(&mut self, state: &ChipsState) -> Result<(), RestoreError> {
        let mut chips = Chips::new();
        chips.pics.restore(&state.pics)?;
        chips.pit.restore(&state.pit)?;
        chips.ioapic.restore(&state.ioapic)?;
        *self = chips;
        Ok(())
    }

    fn drive(&mut self, gsi: u32, level: bool, out: &mut impl Outlet) {
        let Ok(line) = u8::try_from(gsi) else {
            return;
        };
        let pin = match gsi {
            GSI_TIMER => PIN_TIMER,
            GSI_CASCADE => return,
            _ => usize::from(line),
        };
        self.pics.set_irq(line, level);
        if let Some(message) = self.ioapic.set_line(pin, level) {
            out.send(message);
        }
    }

    fn drive_pic_pin(&mut self, out: &mut impl Outlet) {
        if let Some(message) = self.ioapic.set_line(PIN_PIC, self.pics.output()) {
            out.send(message);
        }
    }

    /// PIC inputs and GSIs have the same numbers.
    fn ended_at_pics(&mut self, inputs: u16, out: &mut impl Outlet) {
        for gsi in (0..16).filter(|gsi| inputs & 1 << gsi != 0) {
            if out.ended(gsi) {
                self.drive(gsi, false, out);
            }
        }
    }

    fn ended_at_ioapic(&mut self, pins: u32, out: &mut impl Outlet) {
        for pin in (0..ioapic::PINS).filter(|pin| pins & 1 << pin != 0) {
            let gsi = match pin {
                PIN_PIC => continue,
                PIN_TIMER => GSI_TIMER,
                _ => pin as u32,
            };
            if out.ended(gsi) {
                self.drive(gsi, false, out);
            }
        }
        self.ioapic.redeliver(pins, |message| out.send(message));
        self.drive_pic_pin(out);
    }
}
