//! BT BTS BTR BTC, BSF BSR.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::host::{self, Int};
use super::operand::{NEXT, modify_at, offset, sized};
use crate::cpu::Cpu;
use crate::cpu::flag::CF;
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op, op_flag};

/// What happens to the bit.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Change {
    Test,
    Set,
    Reset,
    Complement,
}

#[inline(always)]
fn changed<T: Int>(value: T, bit: u64, change: u8) -> T {
    let value = value.to_u64();
    let mask = 1u64 << bit;
    T::from_u64(match change {
        x if x == Change::Set as u8 => value | mask,
        x if x == Change::Reset as u8 => value & !mask,
        x if x == Change::Complement as u8 => value ^ mask,
        _ => value,
    })
}

/// CF becomes the bit; the other flags, undefined by the manual, stay.
#[inline(always)]
fn set_carry(flags: &mut u64, value: u64, bit: u64) {
    *flags = *flags & !CF | value >> bit & CF;
}

/// The bit number: from the register `src`, or the immediate where `src` is
/// 0xFF. Signed, for memory operands.
#[inline(always)]
fn number<T: Int>(cpu: &Cpu, op: &Op) -> i64 {
    if op.src == 0xFF {
        (op.imm % u64::from(T::BITS)) as i64
    } else {
        cpu.get::<T>(op.src).to_i64()
    }
}

fn reg<T: Int, const CHANGE: u8>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let bit = number::<T>(cpu, op) as u64 % u64::from(T::BITS);
    let value = cpu.get::<T>(op.dst);
    set_carry(&mut cpu.rflags, value.to_u64(), bit);
    if CHANGE != Change::Test as u8 {
        cpu.put(op.dst, changed(value, bit, CHANGE));
    }
    NEXT
}

/// A bit number in a register reaches beyond the operand: it is a bit string.
fn mem<T: Int, const CHANGE: u8>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let number = number::<T>(cpu, op);
    let bit = number as u64 % u64::from(T::BITS);
    let mut op = op.clone();
    let unit = number.div_euclid(i64::from(T::BITS));
    op.disp = op.disp.wrapping_add(unit.wrapping_mul(T::SIZE as i64));
    if CHANGE == Change::Test as u8 {
        let value = cpu.load::<T>(&op)?;
        set_carry(&mut cpu.rflags, value.to_u64(), bit);
        return NEXT;
    }
    let linear = cpu.linear(&op, T::SIZE, true)?;
    modify_at::<T>(cpu, linear, op.has(op_flag::LOCK), |value, flags| {
        set_carry(flags, value.to_u64(), bit);
        changed(value, bit, CHANGE)
    })?;
    NEXT
}

fn bit_op<T: Int>(change: Change, memory: bool) -> Handler {
    match (change, memory) {
        (Change::Test, false) => reg::<T, { Change::Test as u8 }>,
        (Change::Set, false) => reg::<T, { Change::Set as u8 }>,
        (Change::Reset, false) => reg::<T, { Change::Reset as u8 }>,
        (Change::Complement, false) => reg::<T, { Change::Complement as u8 }>,
        (Change::Test, true) => mem::<T, { Change::Test as u8 }>,
        (Change::Set, true) => mem::<T, { Change::Set as u8 }>,
        (Change::Reset, true) => mem::<T, { Change::Reset as u8 }>,
        (Change::Complement, true) => mem::<T, { Change::Complement as u8 }>,
    }
}

/// BSF and BSR; `aux` is 1 for BSR.
fn scan<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let source = if op.src == 0xFF {
        cpu.load::<T>(op)?.to_u64()
    } else {
        cpu.get::<T>(op.src).to_u64()
    };
    let old = cpu.get::<u64>(op.dst);
    let run = match (T::SIZE, op.aux) {
        (2, 0) => host::bsf16,
        (4, 0) => host::bsf32,
        (_, 0) => host::bsf64,
        (2, _) => host::bsr16,
        (4, _) => host::bsr32,
        (_, _) => host::bsr64,
    };
    let result = run(old, source, &mut cpu.rflags);
    // The host's own rule for the upper half (and for a zero source) holds:
    // all 64 bits of its register are the guest's.
    cpu.put(op.dst, result);
    NEXT
}

pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    let change = match insn.mnemonic() {
        Mnemonic::Bt => Change::Test,
        Mnemonic::Bts => Change::Set,
        Mnemonic::Btr => Change::Reset,
        Mnemonic::Btc => Change::Complement,
        Mnemonic::Bsf | Mnemonic::Bsr => {
            op.aux = u8::from(insn.mnemonic() == Mnemonic::Bsr);
            op.dst = offset(insn.op0_register());
            op.src = if insn.op1_kind() == OpKind::Memory {
                0xFF
            } else {
                offset(insn.op1_register())
            };
            op.run = sized!(insn.op0_register().size(), T => scan::<T>);
            return true;
        }
        _ => return false,
    };
    if insn.op1_kind() == OpKind::Register {
        op.src = offset(insn.op1_register());
    } else {
        op.src = 0xFF;
        op.imm = u64::from(insn.immediate8());
    }
    let memory = insn.op0_kind() == OpKind::Memory;
    let size = if memory {
        insn.memory_size().size()
    } else {
        op.dst = offset(insn.op0_register());
        insn.op0_register().size()
    };
    op.run = sized!(size, T => bit_op::<T>(change, memory));
    true
}
