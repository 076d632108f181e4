//! The integer instructions.
//!
//! Those a kernel or a program executes all the time have a handler of their
//! own for each operand form and size; the handlers are generic over the
//! operation and the integer type, so that each is written once. Arithmetic
//! is done by the host ([`host`]).

mod alu;
mod atomic;
mod bits;
mod branch;
mod decimal;
pub mod host;
mod moves;
mod muldiv;
mod operand;
mod shift;
mod stack;
mod string;

use iced_x86::Instruction;

use crate::cpu::CodeSize;
use crate::op::Op;

/// Gives `op` the handler for `insn` if it is one of the integer
/// instructions.
pub fn lower(insn: &Instruction, op: &mut Op, size: CodeSize) -> bool {
    alu::lower(insn, op)
        || moves::lower(insn, op)
        || branch::lower(insn, op, size)
        || stack::lower(insn, op, size)
        || shift::lower(insn, op)
        || bits::lower(insn, op)
        || muldiv::lower(insn, op)
        || atomic::lower(insn, op)
        || string::lower(insn, op)
        || decimal::lower(insn, op)
}
