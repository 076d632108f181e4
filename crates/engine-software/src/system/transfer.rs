//! Far transfers, software interrupts, system calls and their returns.

use iced_x86::{Code, Instruction, OpKind};

use crate::cpu::{CodeSize, Cpu, Segment, attr, efer, flag, gpr, seg};
use crate::fault::{Exec, vector};
use crate::interrupt::Software;
use crate::op::{Flow, Handler, Op};

pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    use Code::*;
    Some(match insn.code() {
        Syscall => syscall,
        Sysretq | Sysretd => sysret,
        Sysenter => sysenter,
        Sysexitq | Sysexitd => sysexit,
        Iretw | Iretd | Iretq => iret,
        Int_imm8 | Int3 | Int1 | Into => int,
        Bound_r16_m1616 | Bound_r32_m3232 => bound,
        Ud0 | Ud0_r16_rm16 | Ud0_r32_rm32 | Ud0_r64_rm64 | Ud1_r16_rm16 | Ud1_r32_rm32
        | Ud1_r64_rm64 | Ud2 | Rsm | Getsecd | Getsecq => undefined,
        Jmp_ptr1616 | Jmp_ptr1632 | Call_ptr1616 | Call_ptr1632 | Jmp_m1616 | Jmp_m1632
        | Jmp_m1664 | Call_m1616 | Call_m1632 | Call_m1664 => far_branch,
        Retfw | Retfd | Retfq | Retfw_imm16 | Retfd_imm16 | Retfq_imm16 => far_return,
        _ => return None,
    })
}

fn undefined(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    Err(cpu.ud())
}

/// The next instruction's address as the code's size sees it.
fn next(cpu: &Cpu, op: &Op) -> u64 {
    let next = op.next_rip(cpu);
    match cpu.code_size {
        CodeSize::Bits64 => next,
        CodeSize::Bits32 => next & 0xFFFF_FFFF,
        CodeSize::Bits16 => next & 0xFFFF,
    }
}

fn flat(selector: u64, attr: u32) -> Segment {
    Segment {
        selector: selector as u16,
        attr,
        limit: 0xFFFF_FFFF,
        base: 0,
    }
}

/// Flat descriptors that the fast system calls load without looking at a
/// table: code 64-bit and 32-bit, data; DPL goes in bits 6:5.
const CODE64: u32 = 0x9B | attr::L | attr::G;
const CODE32: u32 = 0x9B | attr::DB | attr::G;
const DATA: u32 = 0x93 | attr::DB | attr::G;
const USER: u32 = 3 << attr::DPL_SHIFT;

fn enter(cpu: &mut Cpu, code: Segment, stack: Segment, rip: u64) -> Exec<Flow> {
    cpu.segs[seg::CS as usize] = code;
    cpu.segs[seg::SS as usize] = stack;
    cpu.set_rip(rip);
    cpu.update_mode();
    Ok(Flow::Jump)
}

/// CS and SS as SYSCALL loads them, and as SYSRET to 64-bit code does.
pub fn system_call_segments(star: u64) -> ([Segment; 2], [Segment; 2]) {
    let (system, user) = (star >> 32 & 0xFFFC, star >> 48);
    (
        [flat(system, CODE64), flat(system.wrapping_add(8), DATA)],
        [
            flat(user.wrapping_add(16) | 3, CODE64 | USER),
            flat(user.wrapping_add(8) | 3, DATA | USER),
        ],
    )
}

/// SDM vol. 2, SYSCALL: as Intel does it, in 64-bit mode only.
fn syscall(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    if !cpu.code64() || cpu.efer & efer::SCE == 0 {
        return Err(cpu.ud());
    }
    cpu.regs[gpr::RCX] = op.next_rip(cpu);
    cpu.regs[gpr::R11] = cpu.rflags;
    cpu.rflags = cpu.rflags & !(cpu.msrs.sfmask | flag::RF) | flag::FIXED;
    // With TF masked there is no trap after SYSCALL itself.
    cpu.step_cancelled = cpu.was_stepping && cpu.rflags & flag::TF == 0;
    let ([code, stack], _) = system_call_segments(cpu.msrs.star);
    let entry = cpu.msrs.lstar;
    enter(cpu, code, stack, entry)
}

fn sysret(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    if !cpu.code64() || cpu.efer & efer::SCE == 0 {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let wide = op.insn().code() == Code::Sysretq;
    let target = cpu.regs[gpr::RCX];
    if wide && !cpu.canonical(target) {
        return Err(cpu.gp(0));
    }
    // RF and VM are cleared, reserved bits stay fixed.
    cpu.rflags = cpu.regs[gpr::R11] & 0x3C_7FD7 | flag::FIXED;
    let (_, [code, stack]) = system_call_segments(cpu.msrs.star);
    if wide {
        enter(cpu, code, stack, target)
    } else {
        let code = flat(cpu.msrs.star >> 48 | 3, CODE32 | USER);
        enter(cpu, code, stack, target & 0xFFFF_FFFF)
    }
}

fn sysenter(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    let selector = cpu.msrs.sysenter_cs & 0xFFFC;
    if !cpu.protected() || selector == 0 {
        return Err(cpu.gp(0));
    }
    cpu.rflags &= !(flag::VM | flag::IF | flag::RF);
    let (code, mask) = if cpu.long_mode {
        (CODE64, u64::MAX)
    } else {
        (CODE32, 0xFFFF_FFFF)
    };
    cpu.regs[gpr::RSP] = cpu.msrs.sysenter_esp & mask;
    let entry = cpu.msrs.sysenter_eip & mask;
    let stack = flat(selector.wrapping_add(8), DATA);
    enter(cpu, flat(selector, code), stack, entry)
}

fn sysexit(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let selector = cpu.msrs.sysenter_cs & 0xFFFC;
    if !cpu.protected() || selector == 0 || cpu.cpl != 0 {
        return Err(cpu.gp(0));
    }
    let (rsp, rip) = (cpu.regs[gpr::RCX], cpu.regs[gpr::RDX]);
    if op.insn().code() == Code::Sysexitq {
        if !cpu.canonical(rsp) || !cpu.canonical(rip) {
            return Err(cpu.gp(0));
        }
        cpu.regs[gpr::RSP] = rsp;
        let code = flat(selector.wrapping_add(32) | 3, CODE64 | USER);
        let stack = flat(selector.wrapping_add(40) | 3, DATA | USER);
        return enter(cpu, code, stack, rip);
    }
    cpu.regs[gpr::RSP] = rsp & 0xFFFF_FFFF;
    let code = flat(selector.wrapping_add(16) | 3, CODE32 | USER);
    let stack = flat(selector.wrapping_add(24) | 3, DATA | USER);
    enter(cpu, code, stack, rip & 0xFFFF_FFFF)
}

/// Ends a transfer that may have been a task switch. Where the new task has
/// faulted, RIP stands in it already; the run loop will add what it adds to
/// the block's start for a trap.
fn finish(cpu: &mut Cpu, op: &Op, result: Exec) -> Exec<Flow> {
    if result.is_err() && cpu.raised.trap {
        let ahead = u64::from(op.off) + u64::from(op.len);
        cpu.set_rip(cpu.rip().wrapping_sub(ahead));
    }
    result.map(|()| Flow::Jump)
}

fn iret(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let size = match op.insn().code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    let next = next(cpu, op);
    let result = cpu.interrupt_return(size, next);
    finish(cpu, op, result)
}

fn int(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let next = next(cpu, op);
    let (number, kind) = match op.insn().code() {
        Code::Int3 => (vector::BP, Software::Trap),
        Code::Int1 => (vector::DB, Software::Icebp),
        Code::Into if cpu.rflags & flag::OF == 0 => return Ok(Flow::Next),
        Code::Into => (vector::OF, Software::Trap),
        _ => (op.insn().immediate8(), Software::Int),
    };
    let result = cpu.software_interrupt(number, kind, next);
    finish(cpu, op, result)
}

fn bound(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let index = cpu.register(op.insn().op0_register());
    let inside = if op.insn().code() == Code::Bound_r16_m1616 {
        let at = cpu.linear(op, 4, false)?;
        let bounds = cpu.read::<u32>(at)?;
        (bounds as i16..=(bounds >> 16) as i16).contains(&(index as i16))
    } else {
        let at = cpu.linear(op, 8, false)?;
        let bounds = cpu.read::<u64>(at)?;
        (bounds as i32..=(bounds >> 32) as i32).contains(&(index as i32))
    };
    if !inside {
        return Err(cpu.raise(vector::BR));
    }
    Ok(Flow::Next)
}

/// Operand size of a far pointer's offset in bytes.
fn offset_size(code: Code) -> u64 {
    use Code::*;
    match code {
        Jmp_ptr1616 | Call_ptr1616 | Jmp_m1616 | Call_m1616 => 2,
        Jmp_m1664 | Call_m1664 => 8,
        _ => 4,
    }
}

fn far_branch(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let insn = op.insn();
    let size = offset_size(insn.code());
    let (selector, offset) = match insn.op0_kind() {
        OpKind::FarBranch16 => (insn.far_branch_selector(), u64::from(insn.far_branch16())),
        OpKind::FarBranch32 => (insn.far_branch_selector(), u64::from(insn.far_branch32())),
        _ => {
            let (offset, selector) = super::segments::read_far_pointer(cpu, op, size)?;
            (selector, offset)
        }
    };
    let call = matches!(
        insn.code(),
        Code::Call_ptr1616
            | Code::Call_ptr1632
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    );
    let next = next(cpu, op);
    let result = cpu.far_branch(call, selector, offset, size, next);
    finish(cpu, op, result)
}

fn far_return(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let insn = op.insn();
    let size = match insn.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let release = if insn.op_count() == 1 {
        u64::from(insn.immediate16())
    } else {
        0
    };
    cpu.far_return(size, release)?;
    Ok(Flow::Jump)
}
