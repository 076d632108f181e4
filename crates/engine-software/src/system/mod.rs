//! System instructions: everything that is not plain computing.
//!
//! None of these is hot enough to be specialised when it is lowered, a few
//! kernel entries and exits excepted; handlers look at the decoded
//! instruction.

mod apic;
mod cache;
mod control;
mod debug;
mod flags;
mod io;
mod misc;
mod reset;
mod segments;
mod state;
mod tables;
#[cfg(test)]
mod tests;
mod transfer;
pub use transfer::system_call_segments;

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::{CodeSize, Cpu};
use crate::fault::Exec;
use crate::op::{Op, reg_index};

/// Chooses the handler of a system instruction; false: it is none.
pub fn lower(insn: &Instruction, op: &mut Op, _size: CodeSize) -> bool {
    let handler = flags::handler(insn)
        .or_else(|| transfer::handler(insn))
        .or_else(|| segments::handler(insn))
        .or_else(|| tables::handler(insn))
        .or_else(|| control::handler(insn))
        .or_else(|| debug::handler(insn))
        .or_else(|| cache::handler(insn))
        .or_else(|| io::handler(insn))
        .or_else(|| misc::handler(insn));
    match handler {
        Some(handler) => {
            op.run = handler;
            true
        }
        None => false,
    }
}

impl Cpu {
    /// Value of a general register of any size, zero-extended. AH…BH do not
    /// occur in system instructions.
    fn register(&self, register: Register) -> u64 {
        let value = self.regs[usize::from(reg_index(register))];
        match register.size() {
            1 => value & 0xFF,
            2 => value & 0xFFFF,
            4 => value & 0xFFFF_FFFF,
            _ => value,
        }
    }

    /// Writes a general register of 2, 4 or 8 bytes.
    fn set_register(&mut self, register: Register, value: u64) {
        let index = usize::from(reg_index(register));
        match register.size() {
            1 => self.regs[index & 15] = self.regs[index & 15] & !0xFF | value & 0xFF,
            2 => self.set_r16(index, value as u16),
            4 => self.set_r32(index, value as u32),
            _ => self.set_r64(index, value),
        }
    }

    /// A 16-bit operand: the low half of a register, or memory.
    fn operand16(&mut self, op: &Op, n: u32) -> Exec<u16> {
        if op.insn().op_kind(n) == OpKind::Register {
            return Ok(self.register(op.insn().op_register(n)) as u16);
        }
        let at = self.linear(op, 2, false)?;
        self.read::<u16>(at)
    }

    /// Stores a value that has 16 bits in memory and the register's size in
    /// a register.
    fn set_operand16(&mut self, op: &Op, n: u32, value: u64) -> Exec {
        if op.insn().op_kind(n) == OpKind::Register {
            self.set_register(op.insn().op_register(n), value);
            return Ok(());
        }
        let at = self.linear(op, 2, true)?;
        self.write::<u16>(at, value as u16)
    }

    /// Linear address of the memory operand where neither limits nor
    /// canonical form count (INVLPG).
    fn unchecked_linear(&self, op: &Op) -> u64 {
        let offset = self.ea(op);
        if self.code64() {
            use crate::cpu::seg;
            match op.seg {
                seg::FS | seg::GS => offset.wrapping_add(self.segs[usize::from(op.seg)].base),
                _ => offset,
            }
        } else {
            offset.wrapping_add(self.segs[usize::from(op.seg)].base) & 0xFFFF_FFFF
        }
    }
}
