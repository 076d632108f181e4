//! Rules that need no run loop: modes, delivery into hand-made tables, MSRs.

use croft_engine::cpu_model::features::ALL;
use croft_engine::cpu_model::{EngineOffer, Features, HostFeatures, build};
use croft_engine::{CpuModel, Topology};
use croft_memory::{GuestRam, Range};
use iced_x86::Decoder;

use crate::cpu::{Cpu, Segment, Table, attr, cr0, cr4, efer, flag, gpr, seg};
use crate::fault::{Raised, vector};
use crate::interrupt::{Delivery, Event, Software};
use crate::msr::index;
use crate::segment::TaskSwitch;
use crate::shared::Shared;
use crate::translate::Home;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x4000;
const TSS_NEW: u64 = 0x5000;
const STACK0: u64 = 0x8000;
const STACK3: u64 = 0xA000;
const IST1: u64 = 0xC000;
const HANDLER: u64 = 0x1_2340;

const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const CODE3: u16 = 0x1B;
const DATA3: u16 = 0x23;
const TASK: u16 = 0x28;
const TASK_NEW: u16 = 0x38;

fn vcpu() -> Home {
    let ram = GuestRam::new(&[Range {
        start: 0,
        len: 0x2_0000,
    }])
    .unwrap();
    let host = HostFeatures {
        features: Features::of(ALL),
        xcr0: 7,
    };
    let offer = EngineOffer {
        name: "test",
        emulated: Features::of(ALL),
        passed: Features::default(),
        refused: &[],
        xcr0: 7,
        tsc_khz: 2_000_000,
        apic_khz: 1_000_000,
        physical_bits: 40,
    };
    let topology = Topology { vcpus: 1 };
    let profile = build(CpuModel::SoftwareFast, topology, &host, &offer).unwrap();
    let shared = Shared::new(ram, profile, 1).unwrap();
    let own = shared.vcpus[0].clone();
    Cpu::power_up(shared, 0, own)
}

fn put(cpu: &Cpu, at: u64, words: &[u64]) {
    for (n, word) in words.iter().enumerate() {
        let at = at + 8 * n as u64;
        cpu.shared.ram.write(at, &word.to_le_bytes()).unwrap();
    }
}

fn get64(cpu: &Cpu, at: u64) -> u64 {
    let mut bytes = [0; 8];
    cpu.shared.ram.read(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn get32(cpu: &Cpu, at: u64) -> u32 {
    get64(cpu, at) as u32
}

fn flat(selector: u16, attr: u32) -> Segment {
    Segment {
        selector,
        attr,
        limit: u32::MAX,
        base: 0,
    }
}

/// Tables for 64-bit (`long`) or 32-bit code at CPL `cpl`; paging is off, so
/// that linear is physical.
fn protected(long: bool, cpl: u8) -> Home {
    let mut cpu = vcpu();
    let size: u64 = if long { 0x0020 } else { 0x0040 };
    let code = 0x008F_9B00_0000_FFFF | size << 48;
    let user = 0x008F_FB00_0000_FFFF | size << 48;
    put(
        &cpu,
        GDT,
        &[
            0,
            code,
            0x00CF_9300_0000_FFFF,
            user,
            0x00CF_F300_0000_FFFF,
            0x0000_8B00_0000_0067 | TSS << 16,
            0,
            0x0000_8900_0000_0067 | TSS_NEW << 16,
        ],
    );
    cpu.gdtr = Table {
        base: GDT,
        limit: 0x3F,
    };
    cpu.idtr = Table {
        base: IDT,
        limit: 0xFFF,
    };
    cpu.cr0 = cr0::PE | cr0::ET;
    if long {
        cpu.efer = efer::LME | efer::LMA | efer::SCE;
    }
    cpu.tr = Segment {
        selector: TASK,
        attr: 0x8B,
        limit: 0x67,
        base: TSS,
    };
    let level = u32::from(cpl) << attr::DPL_SHIFT;
    let (cs, ss) = if cpl == 3 {
        (CODE3, DATA3)
    } else {
        (CODE0, DATA0)
    };
    let mode = if long { attr::L } else { attr::DB };
    for which in [seg::ES, seg::DS, seg::FS, seg::GS, seg::SS] {
        cpu.segs[usize::from(which)] = flat(ss, 0x93 | attr::DB | attr::G | level);
    }
    cpu.segs[usize::from(seg::CS)] = flat(cs, 0x9B | mode | attr::G | level);
    cpu.rflags = flag::FIXED | flag::IF | flag::ZF;
    cpu.regs[gpr::RSP] = if cpl == 3 { STACK3 } else { STACK0 };
    cpu.set_rip(0x1_0000);
    cpu.update_mode();
    if long {
        put(&cpu, TSS + 4, &[STACK0]);
        put(&cpu, TSS + 0x24, &[IST1]);
    } else {
        put(&cpu, TSS + 4, &[STACK0 | u64::from(DATA0) << 32]);
    }
    cpu
}

/// A gate of `kind` (with P and DPL) in the IDT.
fn gate(cpu: &Cpu, vector: u8, kind: u64, ist: u64) {
    let low =
        HANDLER & 0xFFFF | u64::from(CODE0) << 16 | ist << 32 | kind << 40 | (HANDLER >> 16) << 48;
    if cpu.long_mode {
        put(cpu, IDT + 16 * u64::from(vector), &[low, 0]);
    } else {
        put(cpu, IDT + 8 * u64::from(vector), &[low]);
    }
}

fn exception(vector: u8, error: u32) -> Event {
    Event::Exception(Raised {
        vector,
        error: Some(error),
        ..Raised::default()
    })
}

#[test]
fn reset_is_where_the_manual_says() {
    let cpu = vcpu();
    let cs = cpu.segs[usize::from(seg::CS)];
    assert_eq!(cs.base + cpu.rip(), 0xFFFF_FFF0);
    assert_eq!((cpu.rflags, cpu.cr0), (2, 0x6000_0010));
    assert_eq!((cpu.dr6, cpu.dr7), (0xFFFF_0FF0, 0x400));
}

#[test]
fn a_fault_in_user_code_goes_to_the_kernel_stack_and_back() {
    let mut cpu = protected(true, 3);
    gate(&cpu, vector::GP, 0x8E, 0);
    assert_eq!(cpu.deliver(exception(vector::GP, 0x1234)), Delivery::Done);
    assert_eq!((cpu.rip(), cpu.cpl), (HANDLER, 0));
    let rsp = cpu.regs[gpr::RSP];
    assert_eq!(rsp, STACK0 - 48);
    let frame: Vec<_> = (0..6).map(|n| get64(&cpu, rsp + 8 * n)).collect();
    let flags = flag::FIXED | flag::IF | flag::ZF | flag::RF;
    let (cs, ss) = (u64::from(CODE3), u64::from(DATA3));
    assert_eq!(frame, [0x1234, 0x1_0000, cs, flags, STACK3, ss]);
    assert_eq!(cpu.rflags & flag::IF, 0);
    cpu.regs[gpr::RSP] += 8;
    cpu.interrupt_return(8, 0).unwrap();
    assert_eq!((cpu.rip(), cpu.cpl), (0x1_0000, 3));
    assert_eq!((cpu.regs[gpr::RSP], cpu.rflags), (STACK3, flags));
}

#[test]
fn ist_switches_the_stack_without_a_change_of_privilege() {
    let mut cpu = protected(true, 0);
    cpu.regs[gpr::RSP] = STACK0 - 3;
    gate(&cpu, 0x41, 0x8F, 1);
    assert_eq!(cpu.deliver(Event::Interrupt(0x41)), Delivery::Done);
    assert_eq!(cpu.regs[gpr::RSP], IST1 - 40);
    assert_eq!(get64(&cpu, IST1 - 16), STACK0 - 3);
    assert_ne!(cpu.rflags & flag::IF, 0, "a trap gate leaves IF");
}

#[test]
fn faults_while_delivering_escalate() {
    let mut cpu = protected(true, 0);
    gate(&cpu, vector::DF, 0x8E, 1);
    // No gate for #GP: #GP again, thus #DF.
    assert_eq!(cpu.deliver(exception(vector::GP, 0)), Delivery::Done);
    assert_eq!(get64(&cpu, cpu.regs[gpr::RSP]), 0, "error code of #DF");
    let mut cpu = protected(true, 0);
    cpu.idtr.limit = 0;
    let before = cpu.regs;
    assert_eq!(cpu.deliver(exception(vector::PF, 0)), Delivery::TripleFault);
    assert_eq!(cpu.regs, before);
}

#[test]
fn a_missing_gate_of_an_interrupt_says_so() {
    let mut cpu = protected(true, 0);
    gate(&cpu, vector::NP, 0x8E, 0);
    gate(&cpu, 0x50, 0x0E, 0);
    assert_eq!(cpu.deliver(Event::Interrupt(0x50)), Delivery::Done);
    // Index, IDT, and EXT.
    assert_eq!(get64(&cpu, cpu.regs[gpr::RSP]), 0x50 << 3 | 0b11);
}

#[test]
fn users_need_permission_for_software_interrupts() {
    let mut cpu = protected(true, 3);
    gate(&cpu, 0x80, 0x8E, 0);
    assert!(cpu.software_interrupt(0x80, Software::Int, 0).is_err());
    assert_eq!(
        (cpu.raised.vector, cpu.raised.error),
        (vector::GP, Some(0x80 << 3 | 2))
    );
    gate(&cpu, 0x80, 0xEE, 0);
    cpu.software_interrupt(0x80, Software::Int, 0x1_0002)
        .unwrap();
    assert_eq!(get64(&cpu, cpu.regs[gpr::RSP]), 0x1_0002);
}

#[test]
fn protected_mode_switches_to_the_tss_stack() {
    let mut cpu = protected(false, 3);
    gate(&cpu, vector::PF, 0x8E, 0);
    let event = Event::Exception(Raised {
        vector: vector::PF,
        error: Some(6),
        cr2: 0xDEAD_B000,
        ..Raised::default()
    });
    assert_eq!(cpu.deliver(event), Delivery::Done);
    assert_eq!((cpu.cr2, cpu.cpl), (0xDEAD_B000, 0));
    let rsp = cpu.regs[gpr::RSP];
    assert_eq!(rsp, STACK0 - 24);
    let frame: Vec<_> = (0..6).map(|n| get32(&cpu, rsp + 4 * n)).collect();
    assert_eq!(frame[..3], [6, 0x1_0000, u32::from(CODE3)]);
    assert_eq!(frame[4..], [STACK3 as u32, u32::from(DATA3)]);
    cpu.regs[gpr::RSP] += 4;
    cpu.interrupt_return(4, 0).unwrap();
    assert_eq!((cpu.cpl, cpu.regs[gpr::RSP]), (3, STACK3));
}

#[test]
fn real_mode_uses_the_vector_table() {
    let mut cpu = vcpu();
    cpu.segs[usize::from(seg::CS)].base = 0xF_0000;
    cpu.regs[gpr::RSP] = 0x9000;
    cpu.set_rip(0x100);
    cpu.rflags |= flag::IF;
    put(&cpu, 8 * 4, &[0x0200_0034]);
    assert_eq!(cpu.deliver(Event::Interrupt(8)), Delivery::Done);
    assert_eq!((cpu.rip(), cpu.segs[1].base), (0x34, 0x2000));
    assert_eq!(get64(&cpu, 0x9000 - 6) & 0xFFFF_FFFF_FFFF, 0x0202_F000_0100);
    cpu.interrupt_return(2, 0).unwrap();
    assert_eq!((cpu.rip(), cpu.segs[1].selector), (0x100, 0xF000));
}

#[test]
fn virtual_8086_mode_is_entered_and_left() {
    let mut cpu = protected(false, 0);
    let flags = flag::FIXED | flag::VM | flag::IF;
    let frame = [0x10u32, 0x100, flags as u32, 0xFF0, 0x200, 1, 2, 3, 4];
    let rsp = STACK0 - 64;
    for (n, word) in frame.iter().enumerate() {
        let at = rsp + 4 * n as u64;
        cpu.shared.ram.write(at, &word.to_le_bytes()).unwrap();
    }
    cpu.regs[gpr::RSP] = rsp;
    cpu.interrupt_return(4, 0).unwrap();
    assert!(cpu.vm86() && cpu.cpl == 3);
    assert_eq!(cpu.segs.map(|s| s.selector), [1, 0x100, 0x200, 2, 3, 4]);
    gate(&cpu, vector::GP, 0x8E, 0);
    assert_eq!(cpu.deliver(exception(vector::GP, 0)), Delivery::Done);
    assert!(!cpu.vm86() && cpu.cpl == 0);
    let rsp = cpu.regs[gpr::RSP];
    assert_eq!(rsp, STACK0 - 40);
    assert_eq!(get32(&cpu, rsp + 36), 4, "GS");
    assert_eq!(cpu.segs[usize::from(seg::GS)].selector, 0);
}

#[test]
fn a_task_switch_saves_one_task_and_loads_the_other() {
    let mut cpu = protected(false, 0);
    let word = |cpu: &Cpu, at: u64, value: u32| {
        cpu.shared
            .ram
            .write(TSS_NEW + at, &value.to_le_bytes())
            .unwrap();
    };
    word(&cpu, 0x20, 0x3000);
    word(&cpu, 0x24, 2);
    word(&cpu, 0x28, 0xAAAA);
    word(&cpu, 0x38, STACK3 as u32);
    for n in 0..6 {
        word(&cpu, 0x48 + 4 * n, u32::from(DATA0));
    }
    word(&cpu, 0x4C, u32::from(CODE0));
    cpu.switch_task(TaskSwitch::Call, TASK_NEW, 0x1_0005)
        .unwrap();
    assert_eq!((cpu.rip(), cpu.regs[gpr::RAX]), (0x3000, 0xAAAA));
    assert_eq!(get32(&cpu, TSS + 0x20), 0x1_0005);
    assert_eq!(get32(&cpu, TSS_NEW) & 0xFFFF, u32::from(TASK));
    assert_ne!(cpu.rflags & flag::NT, 0);
    assert_ne!(cpu.cr0 & cr0::TS, 0);
    cpu.interrupt_return(4, 0x3001).unwrap();
    assert_eq!((cpu.rip(), cpu.tr.selector), (0x1_0005, TASK));
    assert_eq!(cpu.regs[gpr::RSP], STACK0);
}

#[test]
fn segment_loads_are_checked() {
    let mut cpu = protected(false, 3);
    let mut load = |which, selector| {
        cpu.load_segment(which, selector)
            .map_err(|_| (cpu.raised.vector, cpu.raised.error.unwrap()))
    };
    assert_eq!(load(seg::DS, DATA3), Ok(()));
    assert_eq!(load(seg::DS, 0), Ok(()));
    assert_eq!(load(seg::DS, DATA0), Err((vector::GP, 0x10)));
    assert_eq!(load(seg::SS, 0), Err((vector::GP, 0)));
    assert_eq!(load(seg::ES, 0x4B), Err((vector::GP, 0x48)));
    assert_eq!(load(seg::ES, 0x07), Err((vector::GP, 0x04)));
}

#[test]
fn segments_lost_to_lower_privilege_keep_their_bases() {
    let mut cpu = protected(true, 3);
    cpu.segs[usize::from(seg::GS)] = Segment {
        base: 0x5000,
        ..flat(DATA0, 0xC093)
    };
    cpu.drop_privileged_segments();
    let gs = cpu.segs[usize::from(seg::GS)];
    assert_eq!((gs.selector, gs.base), (0, 0x5000));
    assert_ne!(gs.attr & attr::UNUSABLE, 0);
}

#[test]
fn control_registers_refuse_what_contradicts_itself() {
    let mut cpu = vcpu();
    assert!(cpu.write_cr0(cr0::PG).is_err());
    assert!(cpu.write_cr0(cr0::NW).is_err());
    assert!(cpu.write_cr4(cr4::VME).is_err());
    assert!(cpu.write_cr4(cr4::PCIDE).is_err(), "outside IA-32e mode");
    cpu.write_msr(index::EFER, efer::LME).unwrap();
    assert!(cpu.write_cr0(cr0::PG | cr0::PE).is_err(), "without PAE");
    cpu.write_cr4(cr4::PAE).unwrap();
    cpu.write_cr3(0x3000).unwrap();
    cpu.write_cr0(cr0::PG | cr0::PE).unwrap();
    assert!(cpu.long_mode);
    assert!(cpu.write_cr4(0).is_err(), "PAE in IA-32e mode");
    assert!(cpu.write_msr(index::EFER, 0).is_err(), "LME with paging");
    cpu.write_cr4(cr4::PAE | cr4::PCIDE).unwrap();
    assert!(cpu.write_cr0(cr0::PE).is_err(), "paging off with PCIDE");
    assert!(cpu.write_cr3(1 << 40).is_err());
    cpu.write_cr3(1 << 63 | 0x3001).unwrap();
    assert_eq!(cpu.cr3, 0x3001);
}

#[test]
fn msrs_check_what_is_written() {
    let mut cpu = vcpu();
    let canonical = 0xFFFF_8000_0000_0000;
    for msr in [index::LSTAR, index::GS_BASE, index::SYSENTER_EIP] {
        cpu.write_msr(msr, canonical).unwrap();
        assert!(cpu.write_msr(msr, canonical >> 1).is_err());
        assert_eq!(cpu.read_msr(msr).unwrap(), canonical);
    }
    assert!(cpu.write_msr(index::EFER, 1 << 1).is_err());
    assert!(cpu.write_msr(index::PAT, 2).is_err());
    assert!(cpu.write_msr(index::MTRR_CAP, 0).is_err());
    assert!(cpu.read_msr(index::PRED_CMD).is_err());
    assert!(cpu.read_msr(0xDEAD).is_err());
    assert_ne!(cpu.read_msr(index::ARCH_CAPABILITIES).unwrap(), 0);
}

#[test]
fn the_tsc_keeps_what_was_written() {
    let mut cpu = vcpu();
    cpu.shared.clock.pause();
    cpu.write_msr(index::TSC, 1 << 50).unwrap();
    assert_eq!(cpu.read_msr(index::TSC).unwrap(), 1 << 50);
    cpu.write_msr(index::TSC_ADJUST, 5).unwrap();
    assert_eq!(cpu.tsc(), cpu.shared.clock.tsc().wrapping_add(5));
}

#[test]
fn the_paravirtual_clock_is_written_whole() {
    let mut cpu = vcpu();
    cpu.write_msr(index::KVM_SYSTEM_TIME_NEW, 0x6001).unwrap();
    assert_eq!(get32(&cpu, 0x6000), 2, "even version");
    let (mul, shift) = crate::pv::time_scale(2_000_000);
    assert_eq!(get32(&cpu, 0x6018), mul);
    assert_eq!(
        get64(&cpu, 0x601C) & 0xFFFF,
        1 << 8 | u64::from(shift as u8)
    );
    // Nothing happens where there is no memory.
    cpu.write_msr(index::KVM_SYSTEM_TIME_NEW, u64::MAX).unwrap();
    cpu.write_msr(index::KVM_WALL_CLOCK_NEW, u64::MAX).unwrap();
}

#[test]
fn state_comes_back() {
    let mut cpu = protected(true, 3);
    cpu.write_msr(index::STAR, 0x0023_0010_0000_0000).unwrap();
    cpu.regs[5] = 77;
    cpu.shadow = true;
    cpu.inject = Some(Raised {
        vector: vector::UD,
        ..Raised::default()
    });
    // LMA goes with paging in a state that is consistent.
    cpu.cr0 |= cr0::PG;
    cpu.cr4 |= cr4::PAE;
    let state = cpu.save_state();
    let mut other = vcpu();
    other.restore_state(&state).unwrap();
    assert_eq!(other.save_state(), state);
    let mut bad = state.clone();
    bad.cr4 |= cr4::VME;
    assert!(other.restore_state(&bad).is_err());
    bad = state.clone();
    bad.version += 1;
    assert!(other.restore_state(&bad).is_err());
    assert_eq!(other.save_state(), state);
}

#[test]
fn only_announced_instructions_are_allowed() {
    let cpu = vcpu();
    let allowed = |bytes: &[u8]| {
        let insn = Decoder::new(64, bytes, 0).decode();
        cpu.shared.features.allows(&insn)
    };
    assert!(allowed(&[0xC5, 0xFD, 0xFE, 0xC0]), "vpaddd ymm");
    assert!(allowed(&[0xF3, 0x0F, 0x1E, 0xFA]), "endbr64");
    assert!(allowed(&[0xF3, 0x0F, 0x1E, 0xC8]), "rdsspd");
    assert!(allowed(&[0x0F, 0x01, 0xC1]), "vmcall");
    assert!(!allowed(&[0x0F, 0x01, 0xC8]), "monitor");
    assert!(!allowed(&[0x62, 0xF1, 0x7D, 0x48, 0xFE, 0xC0]), "avx-512");
    assert!(!allowed(&[0x0F, 0xC7, 0x30]), "vmptrld");
}
