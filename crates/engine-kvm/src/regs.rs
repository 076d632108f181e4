//! General, segment, control and debug registers between KVM and the seam.

use croft_engine::CpuState;
use croft_engine::state::{SegmentState, TableState};
use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// [`SegmentState::attributes`]: the segment is unusable.
const UNUSABLE: u32 = 1 << 16;

/// A segment register as the seam has it.
pub fn segment_from_kvm(segment: &kvm_segment) -> SegmentState {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    SegmentState {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        attributes: u32::from(segment.type_ & 0xF)
            | bit(segment.s, 4)
            | u32::from(segment.dpl & 3) << 5
            | bit(segment.present, 7)
            | bit(segment.avl, 12)
            | bit(segment.l, 13)
            | bit(segment.db, 14)
            | bit(segment.g, 15)
            | bit(segment.unusable, 16),
    }
}

/// A segment register as KVM has it.
pub fn segment_to_kvm(segment: &SegmentState) -> kvm_segment {
    let attributes = segment.attributes;
    let bit = |at: u32| (attributes >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (attributes & 0xF) as u8,
        s: bit(4),
        dpl: (attributes >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        // KVM on AMD tells unusable segments by their present bit.
        unusable: u8::from(attributes & UNUSABLE != 0 || bit(7) == 0),
        padding: 0,
    }
}

fn table_from_kvm(table: &kvm_dtable) -> TableState {
    TableState {
        base: table.base,
        limit: table.limit,
    }
}

fn table_to_kvm(table: &TableState) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        padding: [0; 3],
    }
}

/// General registers into `state`.
pub fn general_from_kvm(state: &mut CpuState, r: &kvm_regs) {
    state.registers = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    state.rip = r.rip;
    state.rflags = r.rflags;
}

/// General registers of `state`.
pub fn general_to_kvm(state: &CpuState) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = state.registers;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        // Bit 1 is always set (SDM vol. 1, 3.4.3).
        rflags: state.rflags | 2,
    }
}

/// Segment and control registers into `state`.
pub fn special_from_kvm(state: &mut CpuState, s: &kvm_sregs) {
    state.segments = [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(segment_from_kvm);
    state.tr = segment_from_kvm(&s.tr);
    state.ldtr = segment_from_kvm(&s.ldt);
    state.gdtr = table_from_kvm(&s.gdt);
    state.idtr = table_from_kvm(&s.idt);
    state.cr0 = s.cr0;
    state.cr2 = s.cr2;
    state.cr3 = s.cr3;
    state.cr4 = s.cr4;
    state.cr8 = s.cr8;
}

/// Segment and control registers of `state`. EFER stands with the MSRs.
pub fn special_to_kvm(state: &CpuState, efer: u64) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = state.segments.each_ref().map(segment_to_kvm);
    kvm_sregs {
        es,
        cs,
        ss,
        ds,
        fs,
        gs,
        tr: segment_to_kvm(&state.tr),
        ldt: segment_to_kvm(&state.ldtr),
        gdt: table_to_kvm(&state.gdtr),
        idt: table_to_kvm(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8 & 0xF,
        efer,
        apic_base: state.lapic.apic_base,
        // Interrupts on their way are set with the events.
        interrupt_bitmap: [0; 4],
    }
}

/// Debug registers into `state`.
pub fn debug_from_kvm(state: &mut CpuState, d: &kvm_debugregs) {
    state.dr = d.db;
    state.dr6 = d.dr6;
    state.dr7 = d.dr7;
}

/// Debug registers of `state`.
pub fn debug_to_kvm(state: &CpuState) -> kvm_debugregs {
    kvm_debugregs {
        db: state.dr,
        dr6: state.dr6,
        dr7: state.dr7,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment() -> impl Strategy<Value = SegmentState> {
        (any::<u16>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
            |(selector, base, limit, bits)| {
                let bits = bits & 0xF0FF;
                SegmentState {
                    selector,
                    base,
                    limit,
                    attributes: bits | if bits & 1 << 7 == 0 { UNUSABLE } else { 0 },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn registers_survive_both_ways(
            registers: [u64; 16],
            controls: [u64; 6],
            segments in prop::array::uniform8(segment()),
            tables: [(u64, u16); 2],
            dr: [u64; 4],
        ) {
            let [es, cs, ss, ds, fs, gs, tr, ldtr] = segments;
            let table = |(base, limit)| TableState { base, limit };
            let state = CpuState {
                registers,
                rip: controls[0],
                rflags: controls[1] | 2,
                segments: [es, cs, ss, ds, fs, gs],
                tr,
                ldtr,
                gdtr: table(tables[0]),
                idtr: table(tables[1]),
                cr0: controls[2],
                cr2: controls[3],
                cr3: controls[4],
                cr4: controls[5],
                cr8: controls[0] & 0xF,
                dr,
                dr6: controls[1],
                dr7: controls[2],
                ..CpuState::default()
            };
            let mut back = CpuState::default();
            general_from_kvm(&mut back, &general_to_kvm(&state));
            special_from_kvm(&mut back, &special_to_kvm(&state, 0xD01));
            debug_from_kvm(&mut back, &debug_to_kvm(&state));
            prop_assert_eq!(back, state);
        }
    }

    #[test]
    fn attributes_are_where_the_seam_wants_them() {
        let code = SegmentState {
            selector: 8,
            base: 0,
            limit: u32::MAX,
            attributes: 0xA09B,
        };
        let kvm = segment_to_kvm(&code);
        assert_eq!((kvm.type_, kvm.s, kvm.dpl, kvm.present), (11, 1, 0, 1));
        assert_eq!((kvm.l, kvm.db, kvm.g, kvm.unusable), (1, 0, 1, 0));
    }
}
