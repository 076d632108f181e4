//! Faults while delivering faults, stacks of handlers, NMIs.

use croft_engine::{Engine, Stop};
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::Machine;
use crate::tables::gate64;
use crate::{Failure, Outcome, check, check_eq};

guests! { "double":
    contributory_pair [Iret],
    page_fault_while_pushing [Iret],
    benign_pair [Iret],
    triple_fault [],
    triple_fault_state [TripleFaultState],
    triple_fault_from_user_mode [Iret],
    triple_fault_state_in_user_mode [Iret, TripleFaultState],
    interrupt_stack_table [Iret],
    nmi_blocks_nmis_until_iret [Iret],
    blocked_nmi_waits [],
}

const ABSENT: u64 = 0x10_0000;

fn spoil_gate(m: &Machine, vector: u8) -> Outcome {
    let entry = gate64(KERNEL_CS, crate::handlers::entry(vector), 0x0E, 0);
    m.put(IDT + 16 * u64::from(vector), entry)
}

fn contributory_pair(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    spoil_gate(&m, vector::GP)?;
    m.program(|p| {
        p.mov(rax, 0x8000_0000_0000u64)?;
        // #GP, then #NP for its gate.
        p.fault(vector::DF, 0, |a| a.mov(rax, qword_ptr(rax)))?;
        p.put(0, rsp)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, STACK, "RSP afterwards");
    check_eq!(m.get(IST1 - 16)?, STACK, "RSP in the frame on IST 1");
    check_eq!(m.get(IST1 - 48)?, 0, "error code of #DF");
    Ok(())
}

fn page_fault_while_pushing(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.map(ABSENT, 0)?;
    m.program(|p| {
        p.mov(esp, ABSENT as i32 + 0x800)?;
        p.fault(vector::DF, 0, |a| a.mov(eax, dword_ptr(ABSENT + 4)))?;
        p.put(0, rsp)?;
        // Any fault with a bad stack: #UD is benign, so only #PF is left,
        // which cannot be delivered either.
        p.fault(vector::DF, 0, |a| a.ud2())?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, ABSENT + 0x800, "RSP");
    let cr2_now = m.log()?[0].cr2;
    check!(
        cr2_now >> 12 == ABSENT >> 12 && cr2_now != ABSENT + 4,
        "CR2 is {cr2_now:#x}, the last #PF was on the stack"
    );
    Ok(())
}

fn benign_pair(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    spoil_gate(&m, vector::UD)?;
    m.program(|p| {
        // #UD is benign: #NP for its gate comes alone, EXT set.
        p.fault(vector::NP, 6 << 3 | 3, |a| a.ud2())?;
        p.done()
    })?;
    m.run()
}

fn stopped_by_triple_fault(m: &mut Machine) -> Result<croft_engine::CpuState, Failure> {
    match m.run_once()? {
        Stop::TripleFault(state) => Ok(*state),
        stop => Err(Failure::Differs(format!(
            "{stop:?} instead of a triple fault"
        ))),
    }
}

fn without_idt(engine: &dyn Engine) -> Result<(Machine, croft_engine::CpuState), Failure> {
    let mut m = Machine::long(engine)?;
    m.state(|state| state.idtr.limit = 0)?;
    m.program(|p| {
        p.mov(ebx, 0x1234)?;
        p.mark()?;
        p.ud2()
    })?;
    let state = stopped_by_triple_fault(&mut m)?;
    Ok((m, state))
}

fn triple_fault(engine: &dyn Engine) -> Outcome {
    without_idt(engine).map(drop)
}

fn triple_fault_state(engine: &dyn Engine) -> Outcome {
    let (m, state) = without_idt(engine)?;
    check_eq!(state.rip, m.mark(0) + 1, "RIP of the faulting instruction");
    check_eq!(state.registers[3], 0x1234, "RBX");
    check_eq!(state.registers[4], STACK, "RSP");
    Ok(())
}

fn without_stacks(engine: &dyn Engine) -> Result<croft_engine::CpuState, Failure> {
    let mut m = Machine::long(engine)?;
    m.map(ABSENT, 0)?;
    // Neither the stack of the entry nor that of #DF is there.
    m.put(TSS + 4, ABSENT + 0x800)?;
    m.put(TSS + 0x24, ABSENT + 0x800)?;
    m.program(|p| p.user(|p| p.hlt()))?;
    stopped_by_triple_fault(&mut m)
}

fn triple_fault_from_user_mode(engine: &dyn Engine) -> Outcome {
    without_stacks(engine).map(drop)
}

fn triple_fault_state_in_user_mode(engine: &dyn Engine) -> Outcome {
    let state = without_stacks(engine)?;
    check_eq!(state.segments[1].selector, USER_CS, "CS");
    check_eq!(state.registers[4], USER_STACK, "RSP");
    Ok(())
}

fn interrupt_stack_table(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let gate = gate64(KERNEL_CS, crate::handlers::entry(6), 0x8E, 2);
    m.put(IDT + 16 * 6, gate)?;
    m.program(|p| {
        // An unaligned stack: frames are aligned to 16 bytes.
        p.mov(rsp, STACK - 3)?;
        p.ud(|a| a.ud2())?;
        p.put(0, rsp)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, STACK - 3, "RSP");
    check_eq!(m.get(IST2 - 16)?, STACK - 3, "RSP in the frame on IST 2");
    check_eq!(m.get(IST2 - 8)?, u64::from(KERNEL_DS), "SS in the frame");
    Ok(())
}

/// Sends an NMI to itself through the x2APIC; uses RAX, RCX, RDX.
fn nmi_to_self(p: &mut crate::Program) -> Result<(), iced_x86::IcedError> {
    p.wrmsr_value(0x830, 1 << 18 | 4 << 8)
}

fn nmi_blocks_nmis_until_iret(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let (mut start, mut handler) = (p.create_label(), p.create_label());
        p.jmp(start)?;
        p.set_label(&mut handler)?;
        p.inc(rbx)?;
        p.cmp(rbx, 1)?;
        let mut leave = p.create_label();
        p.jne(leave)?;
        // Two more arrive while blocked; one is remembered.
        nmi_to_self(p)?;
        nmi_to_self(p)?;
        p.mov(r8, rbx)?;
        // A software interrupt's IRET opens NMIs early: do without.
        p.set_label(&mut leave)?;
        p.iretq()?;
        p.set_label(&mut start)?;
        // The gate of vector 2.
        p.lea(rax, ptr(handler))?;
        p.mov(word_ptr(IDT + 32), ax)?;
        p.shr(rax, 16)?;
        p.mov(word_ptr(IDT + 38), ax)?;
        p.wrmsr_value(0x1B, 0xFEE0_0D00)?;
        p.xor(ebx, ebx)?;
        nmi_to_self(p)?;
        p.nop()?;
        p.put(0, rbx)?;
        p.put(1, r8)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 2, "NMIs");
    check_eq!(m.slot(1)?, 1, "NMIs while the first was handled");
    Ok(())
}

fn blocked_nmi_waits(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.state(|state| state.events.nmi_blocked = true)?;
    m.program(|p| {
        p.wrmsr_value(0x1B, 0xFEE0_0D00)?;
        nmi_to_self(p)?;
        p.nop()?;
        p.mov(rax, qword_ptr(LOG))?;
        p.put(0, rax)?;
        p.pushfq()?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0, "NMIs while blocked");
    let state = m.saved()?;
    check!(state.events.nmi_blocked, "NMIs are not blocked any more");
    check!(state.events.nmi_pending, "the NMI is lost");
    Ok(())
}
