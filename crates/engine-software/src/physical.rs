//! Accesses that are not RAM: ports, local APIC, chips, doorbells, and what
//! is left for the machine's bus.

use croft_engine::{CpuIo, DoorbellAddress};
use croft_irqchip::{Chips, Pit};

use crate::cpu::Cpu;
use crate::shared::lock;

/// The I/O APIC's page.
const IOAPIC: u64 = 0xFEC0_0000;

/// The widest piece of an access at `address` that is aligned and at most
/// `left` bytes (and eight).
fn piece(address: u64, left: usize) -> usize {
    let aligned = 1usize << address.trailing_zeros().min(3);
    let fits = 1usize << left.min(8).ilog2();
    aligned.min(fits)
}

impl Cpu {
    /// The machine's bus. Outside `run`, when there is none, accesses find
    /// nothing.
    fn bus(&self) -> Option<&dyn CpuIo> {
        // SAFETY: `run` sets the pointer from the reference it was given and
        // clears it before it returns.
        self.io.map(|io| unsafe { &*io.as_ptr() })
    }

    /// Reads guest-physical memory that is not RAM.
    pub fn physical_read(&mut self, gpa: u64, out: &mut [u8]) {
        let mut at = gpa;
        let mut rest = out;
        while !rest.is_empty() {
            let (part, tail) = rest.split_at_mut(piece(at, rest.len()));
            self.mmio_read(at, part);
            at = at.wrapping_add(part.len() as u64);
            rest = tail;
        }
    }

    /// Writes guest-physical memory that is not RAM.
    pub fn physical_write(&mut self, gpa: u64, data: &[u8]) {
        let mut at = gpa;
        let mut rest = data;
        while !rest.is_empty() {
            let (part, tail) = rest.split_at(piece(at, rest.len()));
            self.mmio_write(at, part);
            at = at.wrapping_add(part.len() as u64);
            rest = tail;
        }
    }

    /// The offset of `gpa` in this vCPU's local APIC page.
    fn lapic_offset(&self, gpa: u64) -> Option<u64> {
        let base = lock(&self.own.lapic).mmio_base()?;
        (gpa & !0xFFF == base).then_some(gpa & 0xFFF)
    }

    fn mmio_read(&mut self, gpa: u64, out: &mut [u8]) {
        if let Some(offset) = self.lapic_offset(gpa) {
            self.collect_pv_eoi();
            let now = self.shared.clock_ns();
            let tsc = self.tsc();
            let register = lock(&self.own.lapic).read(offset & !3, now, tsc);
            let bytes = register.to_le_bytes();
            for (byte, value) in out.iter_mut().zip(bytes.iter().skip((offset & 3) as usize)) {
                *byte = *value;
            }
        } else if gpa & !0xFFF == IOAPIC {
            lock(&self.shared.chips).mmio_read(gpa & 0xFFF, out);
        } else {
            out.fill(0xFF);
            if let Some(bus) = self.bus() {
                bus.mmio_read(gpa, out);
            }
        }
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) {
        if let Some(offset) = self.lapic_offset(gpa) {
            // Registers are 32 bits wide; other accesses are undefined
            // (SDM vol. 3, 11.4.1) and ignored here.
            if let Ok(bytes) = data.try_into() {
                let value = u32::from_le_bytes(bytes);
                self.lapic_write(offset, value);
            }
        } else if gpa & !0xFFF == IOAPIC {
            self.shared
                .with_chips(|chips, out| chips.mmio_write(gpa & 0xFFF, data, out));
        } else if !self.shared.ring(DoorbellAddress::Memory(gpa), data)
            && let Some(bus) = self.bus()
        {
            bus.mmio_write(gpa, data);
        }
    }

    fn lapic_write(&mut self, offset: u64, value: u32) {
        self.collect_pv_eoi();
        let now = self.shared.clock_ns();
        let tsc = self.tsc();
        let action = lock(&self.own.lapic).write(offset, value, now, tsc);
        self.apic_action(action);
    }

    /// Reads a port: 1, 2 or 4 bytes.
    pub fn io_read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0xFF);
        if Chips::claims_port(port) {
            let now = self.shared.clock_ns();
            self.shared
                .with_chips(|chips, out| chips.port_read(port, data, now, out));
        } else if let Some(bus) = self.bus() {
            bus.port_read(port, data);
        }
    }

    /// Writes a port: 1, 2 or 4 bytes.
    pub fn io_write(&mut self, port: u16, data: &[u8]) {
        if Chips::claims_port(port) {
            let now = self.shared.clock_ns();
            self.shared
                .with_chips(|chips, out| chips.port_write(port, data, now, out));
            if Pit::claims_port(port) {
                // The next edge may have moved.
                self.shared.notify_bsp();
            }
        } else if !self.shared.ring(DoorbellAddress::Port(port), data)
            && let Some(bus) = self.bus()
        {
            bus.port_write(port, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_split_at_their_natural_alignment() {
        assert_eq!(piece(0x1000, 8), 8);
        assert_eq!(piece(0x1000, 7), 4);
        assert_eq!(piece(0x1001, 8), 1);
        assert_eq!(piece(0x1006, 8), 2);
        assert_eq!(piece(0, 4096), 8);
    }
}
