//! Debug registers (SDM vol. 3, 18.2).

use iced_x86::{Instruction, Mnemonic, Register};

use crate::cpu::{Cpu, cr4};
use crate::fault::{Exec, Fault, vector};
use crate::op::{Flow, Handler, Op};

/// DR6 bits that are always set: there is no RTM, no bus-lock trap.
pub const DR6_FIXED: u64 = 0xFFFF_0FF0;
/// DR6 bits that can be written: B0–B3, BD, BS, BT.
pub const DR6_BITS: u64 = 0xE00F;
/// BD: a debug register was accessed while DR7.GD was set.
const DR6_BD: u64 = 1 << 13;
/// DR7 bit that is always set.
pub const DR7_FIXED: u64 = 1 << 10;
/// DR7 bits that can be written.
pub const DR7_BITS: u64 = 0xFFFF_23FF;
/// GD: accesses to debug registers trap.
const DR7_GD: u64 = 1 << 13;

pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    Some(match insn.mnemonic() {
        Mnemonic::Mov if insn.op0_register().is_dr() => mov_to_dr,
        Mnemonic::Mov if insn.op1_register().is_dr() => mov_from_dr,
        _ => return None,
    })
}

/// The register's number with DR4 and DR5 resolved, after all checks.
fn check(cpu: &mut Cpu, register: Register) -> Exec<usize> {
    let number = match register.number() {
        4 | 5 if cpu.cr4 & cr4::DE != 0 => return Err(cpu.ud()),
        4 | 5 => register.number() + 2,
        number @ 0..=7 => number,
        _ => return Err(cpu.ud()),
    };
    cpu.require_cpl0()?;
    if cpu.dr7 & DR7_GD != 0 {
        cpu.raise(vector::DB);
        cpu.raised.dr6 = DR6_BD;
        return Err(Fault);
    }
    Ok(number)
}

fn mov_from_dr(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = match check(cpu, op.insn().op1_register())? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        number => cpu.dr[number & 3],
    };
    cpu.set_register(op.insn().op0_register(), value);
    Ok(Flow::Next)
}

fn mov_to_dr(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let number = check(cpu, op.insn().op0_register())?;
    let value = cpu.register(op.insn().op1_register());
    if number >= 6 && value >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    match number {
        6 => cpu.dr6 = value & DR6_BITS | DR6_FIXED,
        7 => cpu.dr7 = value & DR7_BITS | DR7_FIXED,
        number => cpu.dr[number & 3] = value,
    }
    cpu.update_mode();
    Ok(Flow::End)
}
