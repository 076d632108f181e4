//! Near branches: JMP Jcc CALL RET LOOP JrCXZ.
//!
//! Direct targets are kept relative to the block's start, so that a block is
//! the same code wherever its page is mapped.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::moves::condition;
use super::operand::offset;
use crate::cpu::{CodeSize, Cpu, gpr, seg};
use crate::fault::Exec;
use crate::op::{Flow, Op};
use crate::word::Word;

/// How far RIP reaches: the operand size of a branch.
#[inline(always)]
fn mask(size: u8) -> u64 {
    match size {
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}

/// Checks a branch target: canonical, or inside CS's limit.
#[inline(always)]
fn check_target(cpu: &mut Cpu, target: u64) -> Exec {
    if cpu.code64() {
        if !cpu.canonical(target) {
            return Err(cpu.gp(0));
        }
    } else if target > u64::from(cpu.segs[usize::from(seg::CS)].limit) {
        return Err(cpu.gp(0));
    }
    Ok(())
}

#[inline(always)]
fn jump(cpu: &mut Cpu, target: u64) -> Exec<Flow> {
    check_target(cpu, target)?;
    cpu.set_rip(target);
    Ok(Flow::Jump)
}

/// Direct target of `op`: `imm` counts from the block's start, `dst` is the
/// operand size in bytes.
#[inline(always)]
fn direct(cpu: &Cpu, op: &Op) -> u64 {
    cpu.rip().wrapping_add(op.imm) & mask(op.dst)
}

fn jmp(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let target = direct(cpu, op);
    jump(cpu, target)
}

fn jcc<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    if condition(cpu.rflags, CC) {
        let target = direct(cpu, op);
        return jump(cpu, target);
    }
    Ok(Flow::Next)
}

/// The address after `op`, as the running code counts.
#[inline(always)]
fn fall_through(cpu: &Cpu, op: &Op) -> u64 {
    let next = op.next_rip(cpu);
    match cpu.code_size {
        CodeSize::Bits64 => next,
        CodeSize::Bits32 => next & 0xFFFF_FFFF,
        CodeSize::Bits16 => next & 0xFFFF,
    }
}

#[inline(always)]
fn push_return(cpu: &mut Cpu, op: &Op) -> Exec {
    let next = fall_through(cpu, op);
    match op.dst {
        2 => cpu.push(next as u16),
        4 => cpu.push(next as u32),
        _ => cpu.push(next),
    }
}

fn call(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let target = direct(cpu, op);
    call_to(cpu, op, target)
}

/// In 64-bit code processors push first and then look at the target: a full
/// stack goes before a bad target, and what was pushed stays below RSP.
#[inline(always)]
fn call_to(cpu: &mut Cpu, op: &Op, target: u64) -> Exec<Flow> {
    if !cpu.code64() {
        check_target(cpu, target)?;
    }
    let rsp = cpu.r64(gpr::RSP);
    push_return(cpu, op)?;
    if cpu.code64()
        && let Err(fault) = check_target(cpu, target)
    {
        cpu.set_r64(gpr::RSP, rsp);
        return Err(fault);
    }
    cpu.set_rip(target);
    Ok(Flow::Jump)
}

/// Indirect target: a register, or memory where `aux` says so.
#[inline(always)]
fn indirect(cpu: &mut Cpu, op: &Op) -> Exec<u64> {
    fn of<T: Word>(cpu: &mut Cpu, op: &Op) -> Exec<u64> {
        Ok(if op.aux != 0 {
            cpu.load::<T>(op)?.to_u64()
        } else {
            cpu.get::<T>(op.src).to_u64()
        })
    }
    match op.dst {
        2 => of::<u16>(cpu, op),
        4 => of::<u32>(cpu, op),
        _ => of::<u64>(cpu, op),
    }
}

fn jmp_indirect(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let target = indirect(cpu, op)?;
    jump(cpu, target)
}

fn call_indirect(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let target = indirect(cpu, op)?;
    call_to(cpu, op, target)
}

/// RET, with `imm` more bytes to drop.
fn ret(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let rsp = cpu.r64(gpr::RSP);
    let target = match op.dst {
        2 => cpu.pop::<u16>()?.to_u64(),
        4 => cpu.pop::<u32>()?.to_u64(),
        _ => cpu.pop::<u64>()?,
    };
    if let Err(fault) = check_target(cpu, target) {
        cpu.set_r64(gpr::RSP, rsp);
        return Err(fault);
    }
    if op.imm != 0 {
        let rsp = cpu.r64(gpr::RSP).wrapping_add(op.imm);
        cpu.set_rsp(rsp);
    }
    cpu.set_rip(target);
    Ok(Flow::Jump)
}

/// RCX as the address size has it; `aux` is that size in bytes.
#[inline(always)]
fn counter(cpu: &Cpu, op: &Op) -> u64 {
    cpu.r64(gpr::RCX) & mask(op.aux)
}

fn jrcxz(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    if counter(cpu, op) == 0 {
        let target = direct(cpu, op);
        return jump(cpu, target);
    }
    Ok(Flow::Next)
}

/// LOOP, LOOPE (`src` = 1), LOOPNE (`src` = 2).
fn loop_(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    use crate::cpu::flag::ZF;
    let count = counter(cpu, op).wrapping_sub(1) & mask(op.aux);
    let zero = cpu.rflags & ZF != 0;
    let taken = count != 0
        && match op.src {
            1 => zero,
            2 => !zero,
            _ => true,
        };
    let target = direct(cpu, op);
    if taken {
        check_target(cpu, target)?;
    }
    match op.aux {
        2 => cpu.set_r16(gpr::RCX, count as u16),
        4 => cpu.set_r32(gpr::RCX, count as u32),
        _ => cpu.set_r64(gpr::RCX, count),
    }
    if taken {
        cpu.set_rip(target);
        return Ok(Flow::Jump);
    }
    Ok(Flow::Next)
}

/// Puts a direct branch's target and size into `op`.
fn take_direct(insn: &Instruction, op: &mut Op) -> bool {
    op.dst = match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ => return false,
    };
    // `insn.ip()` is the address decoding was told; `off` leads back to the
    // block's start.
    let start = insn.ip().wrapping_sub(u64::from(op.off));
    op.imm = insn.near_branch_target().wrapping_sub(start);
    true
}

fn take_indirect(insn: &Instruction, op: &mut Op) {
    if insn.op0_kind() == OpKind::Memory {
        op.aux = 1;
        op.dst = insn.memory_size().size() as u8;
    } else {
        op.src = offset(insn.op0_register());
        op.dst = insn.op0_register().size() as u8;
    }
}

pub fn lower(insn: &Instruction, op: &mut Op, size: CodeSize) -> bool {
    use iced_x86::Code;
    if insn.is_jcc_short_or_near() {
        op.run = match insn.condition_code() as u8 {
            1 => jcc::<0>,
            2 => jcc::<1>,
            3 => jcc::<2>,
            4 => jcc::<3>,
            5 => jcc::<4>,
            6 => jcc::<5>,
            7 => jcc::<6>,
            8 => jcc::<7>,
            9 => jcc::<8>,
            10 => jcc::<9>,
            11 => jcc::<10>,
            12 => jcc::<11>,
            13 => jcc::<12>,
            14 => jcc::<13>,
            15 => jcc::<14>,
            16 => jcc::<15>,
            _ => return false,
        };
        return take_direct(insn, op);
    }
    match insn.mnemonic() {
        Mnemonic::Jmp if insn.is_jmp_short_or_near() => {
            op.run = jmp;
            take_direct(insn, op)
        }
        Mnemonic::Jmp if insn.is_jmp_near_indirect() => {
            op.run = jmp_indirect;
            take_indirect(insn, op);
            true
        }
        Mnemonic::Call if insn.is_call_near() => {
            op.run = call;
            take_direct(insn, op)
        }
        Mnemonic::Call if insn.is_call_near_indirect() => {
            op.run = call_indirect;
            take_indirect(insn, op);
            true
        }
        Mnemonic::Ret => {
            op.run = ret;
            op.dst = match insn.code() {
                Code::Retnw | Code::Retnw_imm16 => 2,
                Code::Retnd | Code::Retnd_imm16 => 4,
                Code::Retnq | Code::Retnq_imm16 => 8,
                _ => return false,
            };
            op.imm = if insn.op_count() != 0 {
                insn.immediate(0) & 0xFFFF
            } else {
                0
            };
            true
        }
        _ if insn.is_jcx_short() || insn.is_loop() || insn.is_loopcc() => {
            op.run = if insn.is_jcx_short() { jrcxz } else { loop_ };
            op.src = match insn.mnemonic() {
                Mnemonic::Loope => 1,
                Mnemonic::Loopne => 2,
                _ => 0,
            };
            op.aux = address_size(insn, size);
            take_direct(insn, op)
        }
        _ => false,
    }
}

/// The address size of LOOP and JrCXZ in bytes, which decides how much of
/// RCX counts.
fn address_size(insn: &Instruction, size: CodeSize) -> u8 {
    match (insn.op_code().address_size(), size) {
        (16, _) => 2,
        (32, _) => 4,
        (64, _) => 8,
        (_, CodeSize::Bits16) => 2,
        (_, CodeSize::Bits32) => 4,
        (_, CodeSize::Bits64) => 8,
    }
}
