//! What a guest gets that knows it runs under a hypervisor: KVM's clock and
//! its shortcut for the end of an interrupt. Layouts: Linux
//! `arch/x86/include/asm/pvclock-abi.h` and
//! `Documentation/virt/kvm/x86/msr.rst`.
//!
//! # Clock
//! Guest nanoseconds are the guest TSC over its frequency (see
//! [`crate::clock`]), so one conversion, written once, holds for ever and for
//! all vCPUs: no update is due after a pause or a migration.
//!
//! # End of interrupt
//! ```text
//! inject, nothing else to come ─► bit set in guest memory
//!        guest handler ends ──┬─ bit still set: clears it, no EOI write
//!                             └─ bit clear: writes EOI as usual
//! collect: bit clear ─► the EOI happened, tell the local APIC
//!          bit set   ─► clear it; the guest will write EOI
//! ```

use std::time::{SystemTime, UNIX_EPOCH};

use crate::cpu::Cpu;
use crate::shared::lock;

/// `PVCLOCK_TSC_STABLE_BIT`: readings on all vCPUs agree.
const TSC_STABLE: u8 = 1;
/// Enable bit of the system-time and PV EOI registers.
const ENABLED: u64 = 1;

/// Multiplier and shift with which `ticks` of a TSC of `khz` become
/// nanoseconds: `((ticks << shift) * mul) >> 32`, a negative shift going
/// right.
pub fn time_scale(khz: u32) -> (u32, i8) {
    let mut rate = u64::from(khz.max(1)) * 1000;
    let mut shift = 0i8;
    // The multiplier is a fraction of 2^32 in [0.5, 1).
    while rate > 2 * 1_000_000_000 {
        rate >>= 1;
        shift -= 1;
    }
    while rate <= 1_000_000_000 {
        rate <<= 1;
        shift += 1;
    }
    // Recomputed from the unshifted frequency: nothing is lost by shifting.
    let numerator = 1_000_000_000u128 << 32;
    let hz = u128::from(khz.max(1)) * 1000;
    let mul = if shift < 0 {
        (numerator << -shift) / hz
    } else {
        (numerator >> shift) / hz
    };
    (mul as u32, shift)
}

impl Cpu {
    /// The guest memory at `address` holds a version counter in its first
    /// four bytes: odd while the rest is being written.
    fn write_versioned(&mut self, address: u64, body: &[u8]) {
        let ram = &self.shared.ram;
        let mut bytes = [0; 4];
        if ram.read(address, &mut bytes).is_err() {
            return;
        }
        let odd = u32::from_le_bytes(bytes) | 1;
        // An address that is not RAM is the guest's mistake; it sees no clock.
        let _ = ram
            .write(address, &odd.to_le_bytes())
            .and_then(|()| ram.write(address.wrapping_add(4), body))
            .and_then(|()| ram.write(address, &odd.wrapping_add(1).to_le_bytes()));
    }

    /// `struct pvclock_wall_clock`: the time of day at guest time zero.
    pub(crate) fn write_wall_clock(&mut self) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let start = now.saturating_sub(u128::from(self.shared.clock_ns()));
        let mut body = [0; 8];
        body[..4].copy_from_slice(&((start / 1_000_000_000) as u32).to_le_bytes());
        body[4..].copy_from_slice(&((start % 1_000_000_000) as u32).to_le_bytes());
        self.write_versioned(self.msrs.kvm_wall_clock, &body);
    }

    /// `struct pvclock_vcpu_time_info`, if the guest enabled it. Call it
    /// after a restore too.
    pub(crate) fn write_system_time(&mut self) {
        let register = self.msrs.kvm_system_time;
        if register & ENABLED == 0 {
            return;
        }
        let (mul, shift) = time_scale(self.shared.clock.tsc_khz());
        let mut body = [0; 28];
        // Offsets in the structure, less the version's four bytes: TSC at 8,
        // nanoseconds at 16, multiplier at 24, shift at 28, flags at 29.
        body[4..12].copy_from_slice(&self.msrs.tsc_adjust.to_le_bytes());
        body[12..20].copy_from_slice(&self.shared.clock.offset_ns().to_le_bytes());
        body[20..24].copy_from_slice(&mul.to_le_bytes());
        body[24] = shift as u8;
        body[25] = TSC_STABLE;
        self.write_versioned(register & !ENABLED, &body);
    }

    /// After an interrupt was injected: lets the guest end it without an EOI
    /// write where that is safe.
    pub fn offer_pv_eoi(&mut self) {
        let register = self.msrs.kvm_pv_eoi;
        if register & ENABLED == 0 || !lock(&self.own.lapic).eoi_can_wait() {
            return;
        }
        self.msrs.pv_eoi_pending = self.shared.ram.write(register & !0b11, &[1]).is_ok();
    }

    /// Before anybody looks at the local APIC: takes note of an end of
    /// interrupt that the guest signalled through memory, and takes the offer
    /// back otherwise.
    pub fn collect_pv_eoi(&mut self) {
        if !self.msrs.pv_eoi_pending {
            return;
        }
        self.msrs.pv_eoi_pending = false;
        let address = self.msrs.kvm_pv_eoi & !0b11;
        let mut bits = [0];
        if self.shared.ram.read(address, &mut bits).is_err() {
            return;
        }
        if bits[0] & 1 != 0 {
            // RAM that was readable a line ago is writable too.
            let _ = self.shared.ram.write(address, &[bits[0] & !1]);
        } else {
            self.end_of_interrupt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(ticks: u64, khz: u32) -> u64 {
        let (mul, shift) = time_scale(khz);
        let ticks = u128::from(ticks);
        let shifted = if shift < 0 {
            ticks >> -shift
        } else {
            ticks << shift
        };
        ((shifted * u128::from(mul)) >> 32) as u64
    }

    #[test]
    fn the_scale_turns_ticks_into_nanoseconds() {
        for khz in [
            1, 999_999, 1_000_000, 1_000_001, 2_299_998, 2_000_000, 4_000_000, 5_123_456,
        ] {
            let (mul, _) = time_scale(khz);
            assert!(mul >= 1 << 31, "{khz}: {mul:#x} wastes precision");
            let hour = convert(u64::from(khz) * 1000 * 3600, khz);
            assert!(hour.abs_diff(3_600_000_000_000) < 10_000, "{khz}: {hour}");
        }
    }
}
