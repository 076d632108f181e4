//! #DB: single step and debug registers (SDM vol. 3, chapter 18).

use croft_engine::Engine;
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::Machine;
use crate::{Outcome, check_eq};

guests! { "debug_registers":
    single_step [Iret],
    between_iterations [Iret],
    stack_segment_load_holds_traps_back [Iret],
    code_breakpoint [Iret],
    resume_flag [Iret],
    data_breakpoints [Iret],
    port_breakpoint [Iret, PortBreakpoints],
    general_detect [Iret],
    aliases_of_dr6_and_dr7 [Iret],
    saved_registers [],
    int1 [Iret],
}

const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
const DR6_FIXED: u64 = 0xFFFF_0FF0;

fn single_step(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(ecx, 3)?;
        p.mov(esi, DATA as i32)?;
        p.mov(edi, DATA as i32 + 64)?;
        p.push((flag::FIXED | flag::TF) as i32)?;
        p.popfq()?;
        p.mark()?;
        p.rep().movsb()?;
        p.inc(ecx)?;
        p.push(2)?;
        p.popfq()?;
        p.mark()?;
        p.done()
    })?;
    m.run_to_end()?;
    let (start, end) = (m.mark(0), m.mark(1));
    // NOP of the mark, each repetition, INC, PUSH, and POPF itself.
    let rep = start + 1;
    let wanted = [rep, rep, rep, rep + 2, rep + 4, rep + 6, end];
    let log = m.log()?;
    let found: Vec<u64> = log.iter().map(|record| record.rip).collect();
    check_eq!(found, wanted, "addresses of the traps");
    for record in &log {
        check_eq!(record.vector, u64::from(vector::DB), "vector");
        check_eq!(record.dr6 & BS, BS, "DR6.BS");
    }
    check_eq!(log[0].rflags & flag::TF, flag::TF, "TF in the frame");
    check_eq!(log[6].rflags & flag::TF, 0, "TF in the last frame");
    Ok(())
}

/// What comes between two iterations of a repeated instruction finds RF set
/// (SDM vol. 3, 18.3.1.1), and the flags that were there before it.
fn between_iterations(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(ecx, 3)?;
        p.mov(edi, DATA as i32)?;
        p.mov(eax, 1)?;
        p.push((flag::FIXED | flag::TF | flag::ZF) as i32)?;
        p.popfq()?;
        p.mark()?;
        p.repne().scasb()?;
        p.push(2)?;
        p.popfq()?;
        p.done()
    })?;
    m.run_to_end()?;
    let rep = m.mark(0) + 1;
    let log = m.log()?;
    let found: Vec<u64> = log[..4].iter().map(|record| record.rip).collect();
    check_eq!(found, [rep, rep, rep, rep + 2], "addresses of the traps");
    let resumes: Vec<bool> = log[..4].iter().map(|r| r.rflags & flag::RF != 0).collect();
    check_eq!(resumes, [false, true, true, false], "RF in the frames");
    let zero: Vec<bool> = log[..4].iter().map(|r| r.rflags & flag::ZF != 0).collect();
    check_eq!(zero, [true, true, true, false], "ZF in the frames");
    Ok(())
}

fn stack_segment_load_holds_traps_back(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(eax, i32::from(KERNEL_DS))?;
        p.push((flag::FIXED | flag::TF) as i32)?;
        p.popfq()?;
        p.mark()?;
        p.mov(ss, eax)?;
        p.nop()?;
        p.push(2)?;
        p.popfq()?;
        p.done()
    })?;
    m.run_to_end()?;
    let start = m.mark(0);
    let found: Vec<u64> = m.log()?.iter().map(|record| record.rip).collect();
    let wanted = [start + 1, start + 4, start + 6, start + 7];
    check_eq!(found, wanted, "addresses of the traps");
    Ok(())
}

fn code_breakpoint(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.nop()?;
        p.fault(vector::DB, 0, |a| a.inc(r8))?;
        p.put(0, r8)?;
        p.done()
    })?;
    let at = m.due(0);
    m.state(|state| {
        state.dr[2] = at;
        state.dr7 = 0x400 | 1 << 5;
        state.registers[8] = 5;
    })?;
    m.run()?;
    let record = m.log()?[0];
    check_eq!(record.dr6 & 0xF, 1 << 2, "DR6");
    check_eq!(record.rflags & flag::RF, 0, "RF in the frame");
    check_eq!(m.slot(0)?, 5, "the instruction did not execute");
    Ok(())
}

fn resume_flag(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let mut again = p.create_label();
        p.push(i32::from(KERNEL_DS))?;
        p.push(STACK as i32)?;
        p.push((flag::FIXED | flag::RF) as i32)?;
        p.push(i32::from(KERNEL_CS))?;
        p.mov(rax, qword_ptr(DATA))?;
        p.push(rax)?;
        p.iretq()?;
        p.set_label(&mut again)?;
        p.fault(vector::DB, 0, |a| a.inc(r8))?;
        let mut out = p.create_label();
        p.cmp(r9, 0)?;
        p.jne(out)?;
        // Once more, without RF.
        p.inc(r9)?;
        p.jmp(again)?;
        p.set_label(&mut out)?;
        p.done()
    })?;
    let at = m.due(0);
    m.put(DATA, at)?;
    m.state(|state| {
        state.dr[0] = at;
        state.dr7 = 0x402;
    })?;
    m.run()?;
    check_eq!(m.log()?[0].dr6 & 0xF, 1, "DR6");
    let executed = m.saved()?.registers[8];
    check_eq!(executed, 1, "INC was executed once, with RF");
    Ok(())
}

fn data_breakpoints(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.state(|state| {
        state.dr = [DATA, DATA + 16, DATA + 32, 0];
        // 0: write, 4 bytes; 1: read or write, 8 bytes; 2: write, 1 byte.
        state.dr7 = 0x400 | 0b10_10_10 | 0b1101 << 16 | 0b1011 << 20 | 0b0001 << 24;
    })?;
    m.program(|p| {
        p.mov(eax, dword_ptr(DATA))?;
        p.trap(vector::DB, |a| a.mov(dword_ptr(DATA), eax))?;
        // Any overlap counts.
        p.trap(vector::DB, |a| a.mov(byte_ptr(DATA + 3), al))?;
        p.trap(vector::DB, |a| a.mov(qword_ptr(DATA - 7), rax))?;
        p.mov(byte_ptr(DATA + 4), al)?;
        p.trap(vector::DB, |a| a.mov(al, byte_ptr(DATA + 20)))?;
        p.trap(vector::DB, |a| a.inc(dword_ptr(DATA + 18)))?;
        p.mov(byte_ptr(DATA + 33), al)?;
        p.trap(vector::DB, |a| a.mov(byte_ptr(DATA + 32), al))?;
        p.done()
    })?;
    m.run()?;
    let found: Vec<u64> = m.log()?.iter().map(|r| r.dr6 & 0xF).collect();
    check_eq!(found, [1, 1, 1, 2, 2, 4], "DR6");
    Ok(())
}

fn port_breakpoint(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.state(|state| {
        state.cr4 |= creg::DE;
        state.dr[3] = 0x60;
        state.dr7 = 0x400 | 1 << 7 | 0b0010 << 28;
    })?;
    m.program(|p| {
        p.in_(al, 0x61)?;
        p.trap(vector::DB, |a| a.in_(al, 0x60))?;
        p.trap(vector::DB, |a| a.out(0x60, al))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.log()?[0].dr6 & 0xF, 8, "DR6");
    Ok(())
}

fn general_detect(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.state(|state| state.dr7 = 0x400 | 1 << 13)?;
    m.program(|p| {
        p.fault(vector::DB, 0, |a| a.mov(rax, dr0))?;
        // Delivery cleared GD.
        p.mov(rax, dr7)?;
        p.put(0, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.log()?[0].dr6 & BD, BD, "DR6.BD");
    check_eq!(m.slot(0)?, 0x400, "DR7");
    Ok(())
}

fn aliases_of_dr6_and_dr7(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(eax, 0x4001)?;
        p.mov(dr4, rax)?;
        p.mov(rbx, dr6)?;
        p.put(0, rbx)?;
        p.mov(rax, 0x8000_0000_0000u64)?;
        p.mov(dr1, rax)?;
        p.mov(rbx, dr1)?;
        p.put(1, rbx)?;
        p.mov(rax, cr4)?;
        p.bts(rax, 3)?;
        p.mov(cr4, rax)?;
        p.ud(|a| a.mov(rax, dr4))?;
        p.ud(|a| a.mov(dr5, rax))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, DR6_FIXED | 0x4001, "DR6 through DR4");
    check_eq!(m.slot(1)?, 0x8000_0000_0000, "DR1 keeps 64 bits");
    Ok(())
}

fn saved_registers(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let dr = [DATA, DATA + 0x1008, 0x7FFF_0000_0000, STACK - 16];
    // Set but not enabled, so that nothing stops the guest.
    let control = 0x400 | 0b1101 << 16 | 0b0001 << 24;
    m.state(|state| {
        state.dr = dr;
        state.dr6 = DR6_FIXED | BS | 2;
        state.dr7 = control;
    })?;
    m.program(|p| {
        for (slot, register) in [dr0, dr1, dr2, dr3, dr6, dr7].into_iter().enumerate() {
            p.mov(rax, register)?;
            p.put(slot as u64, rax)?;
        }
        p.mov(eax, 0x1234)?;
        p.mov(dr1, rax)?;
        p.mov(eax, 0x1_4002)?;
        p.mov(dr6, rax)?;
        p.mov(eax, 0x500)?;
        p.mov(dr7, rax)?;
        p.done()
    })?;
    m.run()?;
    for (slot, wanted) in dr.into_iter().enumerate() {
        check_eq!(m.slot(slot as u64)?, wanted, "DR{slot} in the guest");
    }
    check_eq!(m.slot(4)?, DR6_FIXED | BS | 2, "DR6 in the guest");
    check_eq!(m.slot(5)?, control, "DR7 in the guest");
    let state = m.saved()?;
    check_eq!(state.dr, [dr[0], 0x1234, dr[2], dr[3]], "saved DR0 to DR3");
    check_eq!(state.dr6, DR6_FIXED | BS | 2, "saved DR6");
    check_eq!(state.dr7, 0x500, "saved DR7");
    Ok(())
}

fn int1(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.trap(vector::DB, |a| a.int1())?;
        // The gate's privilege is not asked for.
        p.user(|p| p.trap(vector::DB, |a| a.int1()))?;
        p.user(|p| p.gp(1 << 3 | 2, |a| a.int(1)))?;
        p.done()
    })?;
    m.run()
}
