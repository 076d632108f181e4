//! BT of a bit string in memory: the number of the bit, in a register, reaches
//! beyond the operand.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::asm::reg::*;
use super::classify::Access;
use super::emit::{Emit, FlagState, Guest, LEA, MOV_LOAD, gpr_number};

/// `insn` is a BT of a bit string that can be translated.
pub fn is_bit_test(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Bt
        && insn.op0_kind() == OpKind::Memory
        && insn.op1_kind() == OpKind::Register
        && insn.op1_register().size() >= 4
        // Addresses of 32 bits wrap behind the bit's part, too.
        && !insn.memory_base().is_gpr32()
        && !insn.memory_index().is_gpr32()
}

impl Emit<'_> {
    /// Loads the 32 or 64 bits that have the bit, and tests a register, of
    /// which the host takes the number's low bits.
    pub(super) fn bit_test(&mut self, guest: &Guest<'_>) -> bool {
        let Some(n) = gpr_number(guest.insn.op1_register()) else {
            return false;
        };
        let size = guest.insn.op1_register().size() as u8;
        let (wide, log2) = (size == 8, size.trailing_zeros() as u8);
        self.free_flags();
        if !self.address(guest) {
            return false;
        }
        let number = self.get(n, R11);
        if wide {
            self.asm.mov(R11, number);
        } else {
            self.asm.rr(true, &[0x63], R11, number); // movsxd
        }
        // sar r11: the number of the part, which may be before the first
        self.asm.rr(true, &[0xC1], 7, R11);
        self.asm.raw(&[log2 + 3]);
        self.asm.rx(true, LEA, R10, (R10, R11, log2), 0);
        let access = Access {
            size,
            write: false,
            align: 0,
        };
        self.check(guest.op_pointer(), access);
        self.asm.rm(wide, MOV_LOAD, R10, R10, 0);
        let number = self.get(n, R11);
        if guest.flags.wants_host() {
            self.host_flags();
        }
        self.asm.rr(wide, &[0x0F, 0xA3], number, R10);
        self.flags = FlagState::Host;
        true
    }
}
