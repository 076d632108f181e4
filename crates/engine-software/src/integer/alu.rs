//! ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NEG NOT.

use iced_x86::{Instruction, Mnemonic};

use super::host::Int;
use super::operand::{Form, NEXT, form, modify, single, sized};
use crate::cpu::Cpu;
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op};

/// A two-operand operation.
trait Binary: 'static {
    /// The result is stored; otherwise only the flags count.
    const STORES: bool;
    fn run<T: Int>(a: T, b: T, flags: &mut u64) -> T;
}

/// A one-operand operation.
trait Unary: 'static {
    fn run<T: Int>(a: T, flags: &mut u64) -> T;
}

macro_rules! binary_ops {
    ($($name:ident: $method:ident, $stores:literal;)*) => {$(
        struct $name;
        impl Binary for $name {
            const STORES: bool = $stores;
            #[inline(always)]
            fn run<T: Int>(a: T, b: T, flags: &mut u64) -> T {
                T::$method(a, b, flags)
            }
        }
    )*};
}

binary_ops! {
    Add: add, true;
    Or: or, true;
    Adc: adc, true;
    Sbb: sbb, true;
    And: and, true;
    Sub: sub, true;
    Xor: xor, true;
    Cmp: sub, false;
    Test: and, false;
}

macro_rules! unary_ops {
    ($($name:ident: |$a:ident, $flags:ident| $body:expr;)*) => {$(
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn run<T: Int>($a: T, $flags: &mut u64) -> T {
                $body
            }
        }
    )*};
}

unary_ops! {
    Inc: |a, flags| T::inc(a, flags);
    Dec: |a, flags| T::dec(a, flags);
    Neg: |a, flags| T::neg(a, flags);
    Not: |a, _flags| T::not(a);
}

fn reg_reg<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let (a, b) = (cpu.get::<T>(op.dst), cpu.get::<T>(op.src));
    let result = O::run(a, b, &mut cpu.rflags);
    if O::STORES {
        cpu.put(op.dst, result);
    }
    NEXT
}

fn reg_imm<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let a = cpu.get::<T>(op.dst);
    let result = O::run(a, T::from_u64(op.imm), &mut cpu.rflags);
    if O::STORES {
        cpu.put(op.dst, result);
    }
    NEXT
}

fn reg_mem<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let b = cpu.load::<T>(op)?;
    let a = cpu.get::<T>(op.dst);
    let result = O::run(a, b, &mut cpu.rflags);
    if O::STORES {
        cpu.put(op.dst, result);
    }
    NEXT
}

#[inline(always)]
fn mem<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op, b: T) -> Exec<Flow> {
    if O::STORES {
        modify::<T>(cpu, op, |a, flags| O::run(a, b, flags))?;
    } else {
        let a = cpu.load::<T>(op)?;
        O::run(a, b, &mut cpu.rflags);
    }
    NEXT
}

fn mem_reg<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let b = cpu.get::<T>(op.src);
    mem::<O, T>(cpu, op, b)
}

fn mem_imm<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    mem::<O, T>(cpu, op, T::from_u64(op.imm))
}

fn binary<O: Binary, T: Int>(form: Form) -> Handler {
    match form {
        Form::RegReg => reg_reg::<O, T>,
        Form::RegImm => reg_imm::<O, T>,
        Form::RegMem => reg_mem::<O, T>,
        Form::MemReg => mem_reg::<O, T>,
        Form::MemImm => mem_imm::<O, T>,
    }
}

fn unary_reg<O: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let result = O::run(cpu.get::<T>(op.dst), &mut cpu.rflags);
    cpu.put(op.dst, result);
    NEXT
}

fn unary_mem<O: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    modify::<T>(cpu, op, |a, flags| O::run(a, flags))?;
    NEXT
}

fn unary<O: Unary, T: Int>(memory: bool) -> Handler {
    if memory {
        unary_mem::<O, T>
    } else {
        unary_reg::<O, T>
    }
}

pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    macro_rules! two {
        ($name:ident) => {{
            let Some((form, size)) = form(insn, op) else {
                return false;
            };
            op.run = sized!(size, T => binary::<$name, T>(form));
        }};
    }
    macro_rules! one {
        ($name:ident) => {{
            let Some((memory, size)) = single(insn, op) else {
                return false;
            };
            op.run = sized!(size, T => unary::<$name, T>(memory));
        }};
    }
    match insn.mnemonic() {
        Mnemonic::Add => two!(Add),
        Mnemonic::Or => two!(Or),
        Mnemonic::Adc => two!(Adc),
        Mnemonic::Sbb => two!(Sbb),
        Mnemonic::And => two!(And),
        Mnemonic::Sub => two!(Sub),
        Mnemonic::Xor => two!(Xor),
        Mnemonic::Cmp => two!(Cmp),
        Mnemonic::Test => two!(Test),
        Mnemonic::Inc => one!(Inc),
        Mnemonic::Dec => one!(Dec),
        Mnemonic::Neg => one!(Neg),
        Mnemonic::Not => one!(Not),
        _ => return false,
    }
    true
}
