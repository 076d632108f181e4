//! SHL SHR SAR ROL ROR RCL RCR, SHLD SHRD.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::host::{self, Int};
use super::operand::{NEXT, is_immediate, modify, modify_at, offset, single, sized};
use crate::cpu::{Cpu, gpr};
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op, op_flag};

trait Shift: 'static {
    fn run<T: Int>(a: T, count: u8, flags: &mut u64) -> T;
}

macro_rules! shifts {
    ($($name:ident: $method:ident;)*) => {$(
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn run<T: Int>(a: T, count: u8, flags: &mut u64) -> T {
                T::$method(a, count, flags)
            }
        }
    )*};
}

shifts! {
    Shl: shl;
    Shr: shr;
    Sar: sar;
    Rol: rol;
    Ror: ror;
    Rcl: rcl;
    Rcr: rcr;
}

/// `aux` is 1 when the count is CL rather than the immediate.
#[inline(always)]
fn count(cpu: &Cpu, op: &Op) -> u8 {
    if op.aux != 0 {
        cpu.r64(gpr::RCX) as u8
    } else {
        op.imm as u8
    }
}

fn reg<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let count = count(cpu, op);
    let result = O::run(cpu.get::<T>(op.dst), count, &mut cpu.rflags);
    cpu.put(op.dst, result);
    NEXT
}

fn mem<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let count = count(cpu, op);
    modify::<T>(cpu, op, |a, flags| O::run(a, count, flags))?;
    NEXT
}

fn shift<O: Shift, T: Int>(memory: bool) -> Handler {
    if memory { mem::<O, T> } else { reg::<O, T> }
}

/// SHLD and SHRD. `imm` is the count, or `aux` says CL.
fn double(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let insn = op.insn();
    let left = insn.mnemonic() == Mnemonic::Shld;
    let count = count(cpu, op);
    let size = insn.op_register(1).size();
    let low = cpu.get::<u64>(op.src);
    let compute = |a: u64, flags: &mut u64| match (size, left) {
        (2, true) => host::shld16(a as u16, low as u16, count, flags).into(),
        (2, false) => host::shrd16(a as u16, low as u16, count, flags).into(),
        (4, true) => host::shld32(a as u32, low as u32, count, flags).into(),
        (4, false) => host::shrd32(a as u32, low as u32, count, flags).into(),
        (_, true) => host::shld64(a, low, count, flags),
        (_, false) => host::shrd64(a, low, count, flags),
    };
    if insn.op_kind(0) == OpKind::Register {
        let result = compute(cpu.get::<u64>(op.dst), &mut cpu.rflags);
        match size {
            2 => cpu.put(op.dst, result as u16),
            4 => cpu.put(op.dst, result as u32),
            _ => cpu.put(op.dst, result),
        }
        return NEXT;
    }
    let linear = cpu.linear(op, size as u64, true)?;
    let locked = op.has(op_flag::LOCK);
    match size {
        2 => drop(modify_at::<u16>(cpu, linear, locked, |a, f| {
            compute(a.into(), f) as u16
        })?),
        4 => drop(modify_at::<u32>(cpu, linear, locked, |a, f| {
            compute(a.into(), f) as u32
        })?),
        _ => drop(modify_at::<u64>(cpu, linear, locked, &compute)?),
    }
    NEXT
}

/// Puts the count operand into `op`.
fn take_count(insn: &Instruction, op: &mut Op, operand: u32) -> bool {
    if insn.op_kind(operand) == OpKind::Register && insn.op_register(operand) == Register::CL {
        op.aux = 1;
    } else if is_immediate(insn.op_kind(operand)) {
        op.imm = insn.immediate(operand);
    } else {
        return false;
    }
    true
}

pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    macro_rules! one {
        ($name:ident) => {{
            let Some((memory, size)) = single(insn, op) else {
                return false;
            };
            if !take_count(insn, op, 1) {
                return false;
            }
            op.run = sized!(size, T => shift::<$name, T>(memory));
        }};
    }
    match insn.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => one!(Shl),
        Mnemonic::Shr => one!(Shr),
        Mnemonic::Sar => one!(Sar),
        Mnemonic::Rol => one!(Rol),
        Mnemonic::Ror => one!(Ror),
        Mnemonic::Rcl => one!(Rcl),
        Mnemonic::Rcr => one!(Rcr),
        Mnemonic::Shld | Mnemonic::Shrd => {
            if insn.op_kind(0) == OpKind::Register {
                op.dst = offset(insn.op0_register());
            }
            op.src = offset(insn.op1_register());
            op.run = double;
            return take_count(insn, op, 2);
        }
        _ => return false,
    }
    true
}
