//! DAA DAS AAA AAS AAM AAD SALC: 16- and 32-bit code only (SDM vol. 2).

use iced_x86::{Instruction, Mnemonic};

use super::host::Int;
use super::operand::NEXT;
use crate::cpu::flag::{AF, CF, OF, PF, SF, ZF};
use crate::cpu::{Cpu, gpr};
use crate::fault::{Exec, vector};
use crate::op::{Flow, Op};

const AL: u8 = gpr::RAX as u8 * 8;

/// Sets SF, ZF and PF by `value`; clears OF.
fn result_flags(cpu: &mut Cpu, value: u8) {
    let mut flags = 0;
    u8::or(value, 0, &mut flags);
    cpu.rflags = cpu.rflags & !(SF | ZF | PF | OF) | flags & (SF | ZF | PF);
}

/// DAA, and with `aux` = 1 DAS.
fn decimal_adjust(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let old: u8 = cpu.get(AL);
    let (adjust, carry) = (cpu.rflags & AF != 0, cpu.rflags & CF != 0);
    let mut value = old;
    let mut flags = 0;
    let apply = |value: u8, by: u8| {
        if op.aux == 0 {
            value.overflowing_add(by)
        } else {
            value.overflowing_sub(by)
        }
    };
    if old & 0xF > 9 || adjust {
        let (adjusted, wrapped) = apply(value, 6);
        value = adjusted;
        flags |= AF;
        // DAS takes the borrow of this step over (SDM's pseudo code).
        if carry || op.aux != 0 && wrapped {
            flags |= CF;
        }
    }
    if old > 0x99 || carry {
        value = apply(value, 0x60).0;
        flags |= CF;
    }
    cpu.put(AL, value);
    cpu.rflags = cpu.rflags & !(AF | CF) | flags;
    result_flags(cpu, value);
    NEXT
}

/// AAA, and with `aux` = 1 AAS.
fn ascii_adjust(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let ax: u16 = cpu.get(AL);
    let mut value = ax;
    if ax & 0xF > 9 || cpu.rflags & AF != 0 {
        value = if op.aux == 0 {
            ax.wrapping_add(0x106)
        } else {
            ax.wrapping_sub(0x106)
        };
        cpu.rflags |= AF | CF;
    } else {
        cpu.rflags &= !(AF | CF);
    }
    cpu.put(AL, value & 0xFF0F);
    result_flags(cpu, (value & 0xF) as u8);
    NEXT
}

/// AAM: `imm` is the base.
fn aam(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let al: u8 = cpu.get(AL);
    let base = op.imm as u8;
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(cpu.raise(vector::DE));
    };
    cpu.put(AL, u16::from(high) << 8 | u16::from(low));
    cpu.rflags &= !(AF | CF);
    result_flags(cpu, low);
    NEXT
}

/// AAD: `imm` is the base.
fn aad(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let ax: u16 = cpu.get(AL);
    let value = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(op.imm as u8));
    cpu.put(AL, u16::from(value));
    cpu.rflags &= !(AF | CF);
    result_flags(cpu, value);
    NEXT
}

fn salc(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    let value = if cpu.rflags & CF != 0 { 0xFFu8 } else { 0 };
    cpu.put(AL, value);
    NEXT
}

pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    match insn.mnemonic() {
        Mnemonic::Daa => op.run = decimal_adjust,
        Mnemonic::Das => (op.run, op.aux) = (decimal_adjust, 1),
        Mnemonic::Aaa => op.run = ascii_adjust,
        Mnemonic::Aas => (op.run, op.aux) = (ascii_adjust, 1),
        Mnemonic::Aam => (op.run, op.imm) = (aam, u64::from(insn.immediate8())),
        Mnemonic::Aad => (op.run, op.imm) = (aad, u64::from(insn.immediate8())),
        Mnemonic::Salc => op.run = salc,
        _ => return false,
    }
    true
}
