//! Operands: registers by byte offset, memory by the op's address.

use iced_x86::{Instruction, OpKind, Register};

use super::host::Int;
use crate::cpu::Cpu;
use crate::fault::Exec;
use crate::op::{Flow, Op, op_flag};
use crate::word::Word;

impl Cpu {
    /// Reads the register at byte offset `offset` of [`Cpu::regs`].
    #[inline(always)]
    pub fn get<T: Word>(&self, offset: u8) -> T {
        debug_assert!(u64::from(offset) + T::SIZE <= 18 * 8);
        // SAFETY: offsets come from `reg_offset`, which yields the first or
        // second byte of one of the 18 registers; only 8-bit operands use the
        // second, so the bytes lie in the array.
        unsafe {
            self.regs
                .as_ptr()
                .cast::<u8>()
                .add(usize::from(offset))
                .cast::<T>()
                .read_unaligned()
        }
    }

    /// Writes the register at byte offset `offset`, as the architecture
    /// does: 32-bit results clear the upper half, smaller ones keep the rest.
    #[inline(always)]
    pub fn put<T: Word>(&mut self, offset: u8, value: T) {
        debug_assert!(u64::from(offset) + T::SIZE <= 16 * 8);
        let at = self
            .regs
            .as_mut_ptr()
            .cast::<u8>()
            .wrapping_add(usize::from(offset));
        // SAFETY: as in `get`; 32-bit operands have offsets that are
        // multiples of eight.
        unsafe {
            if T::SIZE == 4 {
                at.cast::<u64>().write(value.to_u64());
            } else {
                at.cast::<T>().write_unaligned(value);
            }
        }
    }

    /// Reads `op`'s memory operand.
    #[inline(always)]
    pub fn load<T: Word>(&mut self, op: &Op) -> Exec<T> {
        let linear = self.linear(op, T::SIZE, false)?;
        self.read(linear)
    }

    /// Writes `op`'s memory operand.
    #[inline(always)]
    pub fn store<T: Word>(&mut self, op: &Op, value: T) -> Exec {
        let linear = self.linear(op, T::SIZE, true)?;
        self.write(linear, value)
    }
}

/// Replaces `op`'s memory operand by what `compute` makes of it and of the
/// flags; atomically with a LOCK prefix. Returns the old value.
#[inline(always)]
pub fn modify<T: Int>(cpu: &mut Cpu, op: &Op, compute: impl Fn(T, &mut u64) -> T) -> Exec<T> {
    let linear = cpu.linear(op, T::SIZE, true)?;
    modify_at(cpu, linear, op.has(op_flag::LOCK), compute)
}

/// [`modify`] at a linear address.
#[inline(always)]
pub fn modify_at<T: Int>(
    cpu: &mut Cpu,
    linear: u64,
    locked: bool,
    compute: impl Fn(T, &mut u64) -> T,
) -> Exec<T> {
    let Some(direct) = cpu.direct(linear, T::SIZE, true)? else {
        return modify_slow(cpu, linear, locked, compute);
    };
    let mut flags = cpu.rflags;
    // SAFETY: `direct` covers `T::SIZE` bytes of guest RAM.
    let mut old = unsafe { T::load(direct.host) };
    let mut new = compute(old, &mut flags);
    if locked {
        loop {
            // SAFETY: as above.
            let found = unsafe { T::atomic_cmpxchg(direct.host, old, new) };
            if found == old {
                break;
            }
            old = found;
            flags = cpu.rflags;
            new = compute(old, &mut flags);
        }
    } else {
        // SAFETY: as above.
        unsafe { T::store(direct.host, new) };
    }
    cpu.stored(&direct, T::SIZE);
    cpu.rflags = flags;
    Ok(old)
}

/// Across pages, or to MMIO. A locked access excludes the other slow ones.
#[inline(never)]
fn modify_slow<T: Int>(
    cpu: &mut Cpu,
    linear: u64,
    locked: bool,
    compute: impl Fn(T, &mut u64) -> T,
) -> Exec<T> {
    let shared = cpu.shared.clone();
    let _bus = locked.then(|| crate::shared::lock(&shared.bus_lock));
    cpu.probe(linear, T::SIZE, true)?;
    let old: T = cpu.read(linear)?;
    let mut flags = cpu.rflags;
    let new = compute(old, &mut flags);
    cpu.write(linear, new)?;
    cpu.rflags = flags;
    Ok(old)
}

/// Sizes and kinds of an instruction's first two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Register, register.
    RegReg,
    /// Register, immediate.
    RegImm,
    /// Register, memory.
    RegMem,
    /// Memory, register.
    MemReg,
    /// Memory, immediate.
    MemImm,
}

/// True for an operand that is a general register.
pub fn is_gpr(insn: &Instruction, operand: u32) -> bool {
    insn.op_kind(operand) == OpKind::Register && insn.op_register(operand).is_gpr()
}

/// The form of a two-operand integer instruction and its size in bytes, with
/// the registers and the immediate put into `op`.
pub fn form(insn: &Instruction, op: &mut Op) -> Option<(Form, usize)> {
    let first = insn.op_kind(0);
    let second = insn.op_kind(1);
    let register = |operand| crate::op::reg_offset(insn.op_register(operand));
    if first == OpKind::Register && is_gpr(insn, 0) {
        op.dst = register(0);
        let size = insn.op_register(0).size();
        return match second {
            OpKind::Register if is_gpr(insn, 1) => {
                op.src = register(1);
                Some((Form::RegReg, size))
            }
            OpKind::Memory => Some((Form::RegMem, size)),
            _ if is_immediate(second) => {
                op.imm = insn.immediate(1);
                Some((Form::RegImm, size))
            }
            _ => None,
        };
    }
    if first != OpKind::Memory {
        return None;
    }
    match second {
        OpKind::Register if is_gpr(insn, 1) => {
            op.src = register(1);
            Some((Form::MemReg, insn.op_register(1).size()))
        }
        _ if is_immediate(second) => {
            op.imm = insn.immediate(1);
            Some((Form::MemImm, insn.memory_size().size()))
        }
        _ => None,
    }
}

/// True for the kinds that [`Instruction::immediate`] accepts.
pub fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate32to64
            | OpKind::Immediate64
    )
}

/// The size in bytes of a one-operand instruction on a register (put into
/// `op.dst`) or on memory, and whether it is memory.
pub fn single(insn: &Instruction, op: &mut Op) -> Option<(bool, usize)> {
    match insn.op_kind(0) {
        OpKind::Register if is_gpr(insn, 0) => {
            op.dst = crate::op::reg_offset(insn.op_register(0));
            Some((false, insn.op_register(0).size()))
        }
        OpKind::Memory => Some((true, insn.memory_size().size())),
        _ => None,
    }
}

/// Runs `$body` with `$type` standing for the unsigned type of `$size` bytes,
/// else returns false: lowering functions say so that they do not know an
/// instruction.
macro_rules! sized {
    ($size:expr, $type:ident => $body:expr) => {
        match $size {
            1 => {
                type $type = u8;
                $body
            }
            2 => {
                type $type = u16;
                $body
            }
            4 => {
                type $type = u32;
                $body
            }
            8 => {
                type $type = u64;
                $body
            }
            _ => return false,
        }
    };
}
pub(super) use sized;

/// Byte offset of a register in [`Cpu::regs`]; see [`crate::op::reg_offset`].
pub fn offset(register: Register) -> u8 {
    crate::op::reg_offset(register)
}

/// Done, go on.
pub const NEXT: Exec<Flow> = Ok(Flow::Next);
