//! PIC and I/O APIC state between KVM and the seam.

use croft_irqchip::{IoApicState, PicState};
use kvm_bindings::{kvm_ioapic_state, kvm_pic_state};

/// Inputs that may be level-triggered: not 0, 1, 2, 8 and 13 (82371SB, ELCR).
const ELCR_WRITABLE: [u8; 2] = [0xF8, 0xDE];
/// Pins of the I/O APIC.
pub const PINS: usize = 24;
/// Physical address of the I/O APIC's page.
const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Bits of a redirection entry with a meaning, Remote IRR (14) included.
const ENTRY: u64 = 0xFF00_0000_0001_EFFF;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
/// I/O APIC pin at which the PIC's output hangs on the other engine.
const PIN_PIC: u32 = 1 << 0;

/// One 8259A as the seam has it; `slave` says which of the two.
pub fn pic_from_kvm(pic: &kvm_pic_state, slave: bool) -> PicState {
    PicState {
        irr: pic.irr,
        imr: pic.imr,
        isr: pic.isr,
        lines: pic.last_irr,
        base: pic.irq_base & 0xF8,
        elcr: pic.elcr & ELCR_WRITABLE[usize::from(slave)],
        priority_add: pic.priority_add & 7,
        init_step: pic.init_state & 3,
        // KVM does not know chips that stand alone.
        single: false,
        needs_icw4: pic.init4 != 0,
        auto_eoi: pic.auto_eoi != 0,
        rotate_on_auto_eoi: pic.rotate_on_auto_eoi != 0,
        special_fully_nested: pic.special_fully_nested_mode != 0,
        special_mask: pic.special_mask != 0,
        poll: pic.poll != 0,
        read_isr: pic.read_reg_select != 0,
    }
}

/// One 8259A as KVM has it.
pub fn pic_to_kvm(pic: &PicState, slave: bool) -> kvm_pic_state {
    let mask = ELCR_WRITABLE[usize::from(slave)];
    kvm_pic_state {
        last_irr: pic.lines,
        irr: pic.irr,
        imr: pic.imr,
        isr: pic.isr,
        priority_add: pic.priority_add & 7,
        irq_base: pic.base & 0xF8,
        read_reg_select: pic.read_isr.into(),
        poll: pic.poll.into(),
        special_mask: pic.special_mask.into(),
        init_state: pic.init_step & 3,
        auto_eoi: pic.auto_eoi.into(),
        rotate_on_auto_eoi: pic.rotate_on_auto_eoi.into(),
        special_fully_nested_mode: pic.special_fully_nested.into(),
        init4: pic.needs_icw4.into(),
        elcr: pic.elcr & mask,
        elcr_mask: mask,
    }
}

/// Level-triggered pins of redirection entries.
fn level_pins(entries: &[u64]) -> u32 {
    (0..)
        .zip(entries)
        .filter(|(_, entry)| *entry & ENTRY_LEVEL != 0)
        .fold(0, |pins, (pin, _)| pins | 1 << pin)
}

/// The I/O APIC as the seam has it. KVM shows no level of an edge-triggered
/// pin: `driven` says which pins are up as far as the partition knows.
pub fn ioapic_from_kvm(ioapic: &kvm_ioapic_state, driven: u32) -> IoApicState {
    let entries: Vec<u64> = ioapic
        .redirtbl
        .iter()
        .map(|entry| {
            // SAFETY: both views of the entry are plain bits.
            let bits = unsafe { entry.bits } & ENTRY;
            if bits & ENTRY_LEVEL == 0 {
                bits & !ENTRY_REMOTE_IRR
            } else {
                bits
            }
        })
        .collect();
    let level = level_pins(&entries);
    let lines = (ioapic.irr & level | driven & !level) & ((1 << PINS) - 1);
    IoApicState {
        id: (ioapic.id & 0xF) as u8,
        select: ioapic.ioregsel as u8,
        irr: lines & level,
        lines,
        entries,
    }
}

/// The I/O APIC as KVM has it; `None` when entries are missing. Only
/// level-triggered pins are shown as asserted: KVM would send a second
/// interrupt for each edge-triggered one.
pub fn ioapic_to_kvm(ioapic: &IoApicState) -> Option<kvm_ioapic_state> {
    let entries: &[u64; PINS] = ioapic.entries.as_slice().try_into().ok()?;
    let mut kvm = kvm_ioapic_state {
        base_address: IOAPIC_BASE,
        ioregsel: ioapic.select.into(),
        id: ioapic.id.into(),
        irr: ioapic.lines & level_pins(entries) & !PIN_PIC,
        ..Default::default()
    };
    for (to, from) in kvm.redirtbl.iter_mut().zip(entries) {
        to.bits = *from & ENTRY;
    }
    Some(kvm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_irqchip::{IoApic, Pics, PicsState};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_a_pic_shows_is_accepted_and_comes_back(bytes: [[u8; 15]; 2]) {
            let pic = |b: [u8; 15], slave: bool| pic_from_kvm(&kvm_pic_state {
                last_irr: b[0], irr: b[1], imr: b[2], isr: b[3], priority_add: b[4],
                irq_base: b[5], read_reg_select: b[6], poll: b[7], special_mask: b[8],
                init_state: b[9], auto_eoi: b[10], rotate_on_auto_eoi: b[11],
                special_fully_nested_mode: b[12], init4: b[13], elcr: b[14], elcr_mask: 0,
            }, slave);
            let state = PicsState { master: pic(bytes[0], false), slave: pic(bytes[1], true) };
            prop_assert_eq!(&pic_from_kvm(&pic_to_kvm(&state.master, false), false), &state.master);
            prop_assert_eq!(&pic_from_kvm(&pic_to_kvm(&state.slave, true), true), &state.slave);
            Pics::new().restore(&state).unwrap();
        }

        #[test]
        fn whatever_an_ioapic_shows_is_accepted_and_comes_back(
            entries in any::<[u64; PINS]>(),
            (id, select, irr, driven) in any::<(u32, u32, u32, u32)>(),
        ) {
            let mut kvm = kvm_ioapic_state { id, ioregsel: select, irr, ..Default::default() };
            for (to, from) in kvm.redirtbl.iter_mut().zip(entries) {
                to.bits = from;
            }
            let state = ioapic_from_kvm(&kvm, driven);
            IoApic::new().restore(&state).unwrap();
            let mut back = ioapic_from_kvm(&ioapic_to_kvm(&state).unwrap(), state.lines);
            back.lines |= state.lines & PIN_PIC;
            back.irr |= state.irr & PIN_PIC;
            prop_assert_eq!(back, state);
        }
    }

    #[test]
    fn a_damaged_ioapic_is_refused() {
        assert!(ioapic_to_kvm(&IoApicState::default()).is_none());
    }
}
