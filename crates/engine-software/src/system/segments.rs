//! Moves to and from segment registers, far pointer loads, FS and GS bases.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{Cpu, cr4, gpr, seg};
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op};

pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    use Code::*;
    Some(match insn.code() {
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 => mov_to,
        Mov_rm16_Sreg | Mov_r32m16_Sreg | Mov_r64m16_Sreg => mov_from,
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS => push::<2>,
        Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS => push::<4>,
        Pushq_FS | Pushq_GS => push::<8>,
        Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS => pop::<2>,
        Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS => pop::<4>,
        Popq_FS | Popq_GS => pop::<8>,
        Les_r16_m1616 | Les_r32_m1632 | Lds_r16_m1616 | Lds_r32_m1632 | Lss_r16_m1616
        | Lss_r32_m1632 | Lss_r64_m1664 | Lfs_r16_m1616 | Lfs_r32_m1632 | Lfs_r64_m1664
        | Lgs_r16_m1616 | Lgs_r32_m1632 | Lgs_r64_m1664 => load_far,
        Swapgs => swapgs,
        Rdfsbase_r32 | Rdfsbase_r64 | Rdgsbase_r32 | Rdgsbase_r64 => read_base,
        Wrfsbase_r32 | Wrfsbase_r64 | Wrgsbase_r32 | Wrgsbase_r64 => write_base,
        _ => return None,
    })
}

/// The segment number of a segment register.
fn number(register: Register) -> u8 {
    register.number() as u8
}

/// After MOV SS and POP SS, interrupts and debug traps wait for the next
/// instruction, which is meant to load the stack pointer.
fn after_load(cpu: &mut Cpu, which: u8) -> Flow {
    if which == seg::SS {
        cpu.shadow = true;
        cpu.shadow_ss = true;
        cpu.recheck = true;
        return Flow::End;
    }
    Flow::Next
}

fn mov_to(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let which = number(op.insn().op0_register());
    if which == seg::CS || which > seg::GS {
        return Err(cpu.ud());
    }
    let selector = cpu.operand16(op, 1)?;
    cpu.load_segment(which, selector)?;
    Ok(after_load(cpu, which))
}

fn mov_from(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let which = number(op.insn().op1_register());
    let Some(segment) = cpu.segs.get(usize::from(which)) else {
        return Err(cpu.ud());
    };
    let selector = u64::from(segment.selector);
    cpu.set_operand16(op, 0, selector)?;
    Ok(Flow::Next)
}

fn push<const SIZE: u64>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let which = usize::from(number(op.insn().op0_register()));
    let selector = cpu.segs[which % 6].selector;
    match SIZE {
        2 => cpu.push::<u16>(selector)?,
        // As Intel's processors do it, the upper half of the slot stays.
        4 => push_narrow(cpu, selector)?,
        _ => cpu.push::<u64>(u64::from(selector))?,
    }
    Ok(Flow::Next)
}

/// PUSH of a selector with 32-bit operand size: moves the pointer by 4 and
/// writes 2 bytes (SDM vol. 2, PUSH).
fn push_narrow(cpu: &mut Cpu, selector: u16) -> Exec {
    let rsp = cpu.regs[gpr::RSP].wrapping_sub(4) & cpu.stack_mask;
    let at = cpu.linear_at(seg::SS, rsp, 2, true)?;
    cpu.write::<u16>(at, selector)?;
    cpu.set_rsp(rsp);
    Ok(())
}

fn pop<const SIZE: u64>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let which = number(op.insn().op0_register());
    let rsp = cpu.regs[gpr::RSP];
    let selector = match SIZE {
        2 => cpu.pop::<u16>()?,
        4 => cpu.pop::<u32>()? as u16,
        _ => cpu.pop::<u64>()? as u16,
    };
    // The pointer moves by the old stack's size, and not at all on a fault.
    let popped = std::mem::replace(&mut cpu.regs[gpr::RSP], rsp);
    cpu.load_segment(which, selector)?;
    cpu.regs[gpr::RSP] = popped;
    Ok(after_load(cpu, which))
}

/// A far pointer in memory: offset of `size` bytes, then the selector.
pub(super) fn read_far_pointer(cpu: &mut Cpu, op: &Op, size: u64) -> Exec<(u64, u16)> {
    let at = cpu.linear(op, size + 2, false)?;
    let mut bytes = [0; 10];
    let (used, _) = bytes.split_at_mut(size as usize + 2);
    cpu.read_bytes(at, used)?;
    let (offset, selector) = used.split_at(size as usize);
    let offset = offset
        .iter()
        .rev()
        .fold(0, |all, byte| all << 8 | u64::from(*byte));
    let selector = u16::from(selector[0]) | u16::from(selector[1]) << 8;
    Ok((offset, selector))
}

fn load_far(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let insn = op.insn();
    if insn.op1_kind() != OpKind::Memory {
        return Err(cpu.ud());
    }
    let which = match insn.mnemonic() {
        Mnemonic::Les => seg::ES,
        Mnemonic::Lds => seg::DS,
        Mnemonic::Lss => seg::SS,
        Mnemonic::Lfs => seg::FS,
        _ => seg::GS,
    };
    let register = insn.op0_register();
    let (offset, selector) = read_far_pointer(cpu, op, register.size() as u64)?;
    cpu.load_segment(which, selector)?;
    cpu.set_register(register, offset);
    Ok(if which == seg::SS {
        Flow::End
    } else {
        Flow::Next
    })
}

fn swapgs(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    if !cpu.code64() {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    std::mem::swap(
        &mut cpu.segs[seg::GS as usize].base,
        &mut cpu.msrs.kernel_gs_base,
    );
    Ok(Flow::Next)
}

/// FS or GS, as the mnemonic says; #UD where FSGSBASE is not enabled.
fn base_segment(cpu: &mut Cpu, op: &Op) -> Exec<usize> {
    if !cpu.code64() || cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    Ok(match op.insn().mnemonic() {
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => usize::from(seg::FS),
        _ => usize::from(seg::GS),
    })
}

fn read_base(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let which = base_segment(cpu, op)?;
    let base = cpu.segs[which].base;
    cpu.set_register(op.insn().op0_register(), base);
    Ok(Flow::Next)
}

fn write_base(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let which = base_segment(cpu, op)?;
    let base = cpu.register(op.insn().op0_register());
    if !cpu.canonical(base) {
        return Err(cpu.gp(0));
    }
    cpu.segs[which].base = base;
    Ok(Flow::Next)
}
