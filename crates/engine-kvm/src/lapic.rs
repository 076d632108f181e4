//! Local APIC state between KVM and the seam.
//!
//! KVM shows the register page; `croft-irqchip` has a normal form of it that
//! holds nothing derived: no reserved bits, no delivery status, no current
//! count, and a fixed version. (SDM vol. 3, table 11-1; register numbers are
//! page offsets / 16.)

use croft_irqchip::LapicState;
use kvm_bindings::kvm_lapic_state;

/// Registers of a page.
const REGISTERS: usize = 64;
const ID: usize = 0x02;
const VERSION: usize = 0x03;
const TPR: usize = 0x08;
const APR: usize = 0x09;
const LDR: usize = 0x0D;
const DFR: usize = 0x0E;
const SVR: usize = 0x0F;
const ISR: usize = 0x10;
const TMR: usize = 0x18;
const IRR: usize = 0x20;
const ESR: usize = 0x28;
const ICR_LOW: usize = 0x30;
const ICR_HIGH: usize = 0x31;
const LVT_TIMER: usize = 0x32;
const INITIAL_COUNT: usize = 0x38;
const CURRENT_COUNT: usize = 0x39;
const DIVIDE: usize = 0x3E;

/// Version 0x14, highest LVT entry 5.
const VERSION_VALUE: u32 = 0x0005_0014;
/// Bits that each register of the normal form may have.
const KEPT: [(usize, u32); 13] = [
    (TPR, 0xFF),
    (SVR, 0x3FF),
    (ESR, 0xE0),
    (ICR_LOW, 0x000C_CFFF),
    (DIVIDE, 0xB),
    (LVT_TIMER, 0x7_00FF),
    (LVT_TIMER + 1, 0x1_07FF),
    (LVT_TIMER + 2, 0x1_07FF),
    (LVT_TIMER + 3, 0x1_A7FF),
    (LVT_TIMER + 4, 0x1_A7FF),
    (LVT_TIMER + 5, 0x1_00FF),
    (INITIAL_COUNT, u32::MAX),
    (ICR_HIGH, u32::MAX),
];
/// Vectors below 16 are reserved.
const LEGAL_VECTORS: u32 = 0xFFFF_0000;
/// IA32_APIC_BASE: x2APIC mode.
const X2APIC: u64 = 1 << 10;
/// LVT: masked.
const MASKED: u32 = 1 << 16;

/// The timer's mode, bits 18:17 of its LVT entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    Other,
}

fn timer_mode(registers: &[u32; REGISTERS]) -> Mode {
    match registers[LVT_TIMER] >> 17 & 3 {
        0 => Mode::OneShot,
        1 => Mode::Periodic,
        _ => Mode::Other,
    }
}

/// Nanoseconds of one count: KVM's bus runs at 1 GHz.
fn divider(registers: &[u32; REGISTERS]) -> u64 {
    let divide = registers[DIVIDE];
    match (divide >> 1 & 4) | (divide & 3) {
        7 => 1,
        code => 2 << code,
    }
}

fn page(lapic: &kvm_lapic_state) -> [u32; REGISTERS] {
    std::array::from_fn(|n| {
        let at = 16 * n;
        u32::from_le_bytes(std::array::from_fn(|byte| lapic.regs[at + byte] as u8))
    })
}

/// The seam's form at guest time `now_ns`. `deadline` is IA32_TSC_DEADLINE.
pub fn from_kvm(lapic: &kvm_lapic_state, apic_base: u64, deadline: u64, now_ns: u64) -> LapicState {
    let from = page(lapic);
    let mut registers = [0; REGISTERS];
    for (register, kept) in KEPT {
        registers[register] = from[register] & kept;
    }
    for first in [ISR, TMR, IRR] {
        registers[first..first + 8].copy_from_slice(&from[first..first + 8]);
        registers[first] &= LEGAL_VECTORS;
    }
    registers[VERSION] = VERSION_VALUE;
    registers[ID] = from[ID];
    registers[DFR] = from[DFR] | 0x0FFF_FFFF;
    registers[LDR] = if apic_base & X2APIC != 0 {
        x2apic_ldr(from[ID])
    } else {
        registers[ID] &= 0xFF00_0000;
        from[LDR] & 0xFF00_0000
    };
    derive_priorities(&mut registers);
    let count = u64::from(from[CURRENT_COUNT]);
    let timer_expires_at = match timer_mode(&registers) {
        Mode::Other => 0,
        _ if count != 0 => now_ns.saturating_add(count.saturating_mul(divider(&registers))),
        Mode::Periodic if registers[INITIAL_COUNT] != 0 => now_ns.max(1),
        _ => 0,
    };
    LapicState {
        apic_base,
        registers: registers.to_vec(),
        errors: 0,
        tsc_deadline: deadline,
        timer_expires_at,
        // KVM keeps these with the events and the vCPU's activity.
        nmi: false,
        init: false,
        startup: None,
        ext_int: false,
    }
}

/// The logical id in x2APIC mode follows from the id (SDM vol. 3, 11.12.10.2).
fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xF)
}

fn highest(registers: &[u32; REGISTERS], first: usize) -> u32 {
    (0..8)
        .rev()
        .find(|n| registers[first + n] != 0)
        .map_or(0, |n| {
            32 * n as u32 + 31 - registers[first + n].leading_zeros()
        })
}

/// Arbitration and processor priority (SDM vol. 3, 11.6.2.4 and 11.8.3.1).
fn derive_priorities(registers: &mut [u32; REGISTERS]) {
    let tpr = registers[TPR];
    let (request, service) = (highest(registers, IRR) >> 4, highest(registers, ISR) >> 4);
    let task = tpr >> 4;
    registers[APR] = if task >= request && task > service {
        tpr
    } else {
        (task & service).max(request) << 4
    };
    registers[APR + 1] = if task >= service { tpr } else { service << 4 };
}

/// KVM's form at guest time `now_ns`; `None` when the state has not the size
/// of a register page.
pub fn to_kvm(state: &LapicState, now_ns: u64) -> Option<kvm_lapic_state> {
    let mut registers: [u32; REGISTERS] = state.registers.as_slice().try_into().ok()?;
    let mode = timer_mode(&registers);
    let left = state
        .timer_expires_at
        .saturating_sub(now_ns)
        .div_ceil(divider(&registers));
    registers[CURRENT_COUNT] = match mode {
        Mode::Other => 0,
        _ if state.timer_expires_at == 0 => {
            // KVM takes a count of zero for one that ends now: an expired
            // timer that could interrupt is told as one never set.
            if registers[LVT_TIMER] & MASKED == 0 {
                registers[INITIAL_COUNT] = 0;
            }
            0
        }
        // KVM does not start a timer with more to go than its initial count.
        _ => u32::try_from(left)
            .unwrap_or(u32::MAX)
            .clamp(1, registers[INITIAL_COUNT].max(1)),
    };
    let mut lapic = kvm_lapic_state::default();
    for (n, register) in registers.iter().enumerate() {
        for (at, byte) in register.to_le_bytes().iter().enumerate() {
            lapic.regs[16 * n + at] = *byte as libc::c_char;
        }
    }
    Some(lapic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_irqchip::{Delivery, Destination, Lapic, Message};
    use proptest::prelude::*;

    const BASE: u64 = 0xFEE0_0900;

    /// What the other engine's APIC makes of a state.
    fn reloaded(state: &LapicState, id: u32) -> LapicState {
        let mut lapic = Lapic::new(id, true);
        lapic.restore(state).unwrap();
        lapic.save()
    }

    proptest! {
        #[test]
        fn whatever_kvm_shows_is_accepted(words: [[u32; 16]; 4], x2apic: bool, id in 0u32..255) {
            let words = words.concat();
            let mut lapic = kvm_lapic_state::default();
            for (n, word) in words.iter().enumerate() {
                let word = match (n, x2apic) {
                    (ID, true) => id,
                    (ID, false) => id << 24,
                    _ => *word,
                };
                for (at, byte) in word.to_le_bytes().iter().enumerate() {
                    lapic.regs[16 * n + at] = *byte as libc::c_char;
                }
            }
            let base = BASE | if x2apic { X2APIC } else { 0 };
            let state = from_kvm(&lapic, base, 0, 5);
            prop_assert_eq!(reloaded(&state, id), state.clone());
            // And back: only an expired timer's count may be lost.
            let back = from_kvm(&to_kvm(&state, 5).unwrap(), base, 0, 5);
            let mut expected = state.clone();
            let page: [u32; REGISTERS] = state.registers.as_slice().try_into().unwrap();
            if state.timer_expires_at == 0
                && timer_mode(&page) != Mode::Other
                && page[LVT_TIMER] & MASKED == 0
            {
                expected.registers[INITIAL_COUNT] = 0;
            }
            expected.timer_expires_at = back.timer_expires_at;
            prop_assert_eq!(back, expected);
        }
    }

    #[test]
    fn an_apic_in_use_comes_back() {
        let mut lapic = Lapic::new(3, true);
        let message = |vector| Message {
            destination: Destination::All,
            delivery: Delivery::Fixed,
            vector,
            level: vector == 0x51,
        };
        let _ = lapic.write(0xF0, 0x1FF, 0, 0);
        let _ = lapic.write(0xD0, 1 << 24, 0, 0);
        let _ = lapic.write(0x320, 0x2_0040, 0, 0);
        let _ = lapic.write(0x3E0, 0xB, 0, 0);
        let _ = lapic.write(0x380, 1_000_000, 1000, 0);
        lapic.accept(&message(0x51));
        lapic.accept(&message(0x82));
        lapic.acknowledge();
        let state = lapic.save();
        let kvm = to_kvm(&state, 400_000).unwrap();
        let back = from_kvm(&kvm, state.apic_base, 0, 400_000);
        assert_eq!(back, state);
        assert_eq!(back.timer_expires_at, 1_001_000);
    }

    #[test]
    fn an_expired_timer_does_not_expire_again() {
        let mut lapic = Lapic::new(0, true);
        let _ = lapic.write(0xF0, 0x1FF, 0, 0);
        let _ = lapic.write(0x320, 0x40, 0, 0);
        let _ = lapic.write(0x380, 1000, 0, 0);
        assert!(lapic.poll_timer(1_000_000, 0));
        let kvm = to_kvm(&lapic.save(), 1_000_000).unwrap();
        let page = page(&kvm);
        assert_eq!((page[INITIAL_COUNT], page[CURRENT_COUNT]), (0, 0));
    }

    #[test]
    fn a_damaged_page_is_refused() {
        assert!(to_kvm(&LapicState::default(), 0).is_none());
    }
}
