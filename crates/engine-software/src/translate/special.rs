//! Stack instructions, and the system instructions that kernels run most.

use std::mem::offset_of;

use iced_x86::{OpKind, Register};

use super::asm::cc;
use super::asm::reg::*;
use super::classify::{Access, Class};
use super::emit::{Emit, Guest, gpr_number};
use super::hot;
use super::region::ATTENTION;
use super::regs::{GUEST_RSP, Place, place};
use crate::cpu::{Cpu, Segment, flag, seg};
use crate::msr::Msrs;
use crate::tlb::AccessMode;

const READ8: Access = Access {
    size: 8,
    write: false,
    align: 0,
};
const WRITE8: Access = Access {
    size: 8,
    write: true,
    align: 0,
};
const RFLAGS: i32 = offset_of!(Cpu, rflags) as i32;

impl Emit<'_> {
    /// Anything but plain instructions and branches. False: nothing follows
    /// in the block.
    pub(super) fn special(&mut self, guest: &Guest<'_>) -> bool {
        let done = match guest.class {
            Class::Divide => self.divide(guest),
            Class::Push => self.push(guest),
            Class::PushMemory => self.push_memory(guest),
            Class::Pop => self.pop(guest),
            Class::Leave => self.leave_frame(guest),
            Class::PushFlags => self.push_flags(guest),
            Class::Cli => self.clear_flag(flag::IF),
            Class::Cld => self.clear_flag(flag::DF),
            Class::Sti => self.sti(guest),
            Class::SwapGs => self.swap_gs(),
            Class::AccessFlag(set) => {
                self.access_flag(guest, set);
                return false;
            }
            _ => false,
        };
        if !done {
            self.interpret(guest.op_pointer());
        }
        true
    }

    fn push(&mut self, guest: &Guest<'_>) -> bool {
        let insn = guest.insn;
        self.free_flags();
        self.asm.rm(true, &[0x8D], R10, GUEST_RSP, -8);
        self.check(guest.op_pointer(), WRITE8);
        if insn.op0_kind() == OpKind::Register {
            let Some(n) = gpr_number(insn.op0_register()) else {
                return false;
            };
            let from = self.get(n, R11);
            self.asm.rm(true, &[0x89], from, R10, 0);
        } else {
            self.asm.rm(true, &[0xC7], 0, R10, 0);
            self.asm.raw(&(insn.immediate(0) as u32).to_le_bytes());
        }
        self.add_rsp(-8);
        true
    }

    fn push_memory(&mut self, guest: &Guest<'_>) -> bool {
        if !self.operand(guest, READ8) {
            return false;
        }
        self.asm.rm(true, &[0x8B], R10, R10, 0);
        self.asm.state(true, &[0x89], R10, hot::TEMP + 16);
        self.asm.rm(true, &[0x8D], R10, GUEST_RSP, -8);
        self.check(guest.op_pointer(), WRITE8);
        self.asm.state(true, &[0x8B], R11, hot::TEMP + 16);
        self.asm.rm(true, &[0x89], R11, R10, 0);
        self.add_rsp(-8);
        true
    }

    fn pop(&mut self, guest: &Guest<'_>) -> bool {
        let Some(n) = gpr_number(guest.insn.op0_register()) else {
            return false;
        };
        debug_assert!(guest.insn.op0_register() != Register::RSP);
        self.free_flags();
        self.asm.mov(R10, GUEST_RSP);
        self.check(guest.op_pointer(), READ8);
        match place(n) {
            Place::Host(host) => self.asm.rm(true, &[0x8B], host, R10, 0),
            Place::Memory => {
                self.asm.rm(true, &[0x8B], R11, R10, 0);
                self.put(n, R11);
            }
        }
        self.add_rsp(8);
        true
    }

    fn leave_frame(&mut self, guest: &Guest<'_>) -> bool {
        self.free_flags();
        self.asm.mov(R10, RBP);
        self.check(guest.op_pointer(), READ8);
        self.asm.rm(true, &[0x8B], R11, R10, 0);
        self.asm.rm(true, &[0x8D], GUEST_RSP, RBP, 8);
        self.asm.mov(RBP, R11);
        true
    }

    /// The flags in RAX and those in memory make one image. RF and VM are
    /// clear in the code that is translated.
    fn push_flags(&mut self, guest: &Guest<'_>) -> bool {
        self.free_flags();
        self.asm.rm(true, &[0x8D], R10, GUEST_RSP, -8);
        self.check(guest.op_pointer(), WRITE8);
        let temp = hot::TEMP + 16;
        self.asm.state(true, &[0x89], RAX, temp);
        self.asm.state(false, &[0x0F, 0xB6], R11, temp); // OF
        self.asm.raw(&[0x41, 0xC1, 0xE3, 11]); // shl r11d, 11
        self.asm.state(true, &[0x0B], R11, RFLAGS);
        // LAHF leaves bit 1 set and bits 3 and 5 clear, as RFLAGS has them.
        self.asm.state(false, &[0x0A], R11, temp + 1); // or r11b, AH
        self.asm.rm(true, &[0x89], R11, R10, 0);
        self.add_rsp(-8);
        true
    }

    fn clear_flag(&mut self, bit: u64) -> bool {
        self.free_flags();
        self.asm
            .state_imm32(false, 0x81, 4, RFLAGS, !(bit as u32) as i32);
        true
    }

    /// Sets IF. Where something waits to be delivered the interpreter does
    /// it, which knows of the shadow; where nothing does there is none to see.
    fn sti(&mut self, guest: &Guest<'_>) -> bool {
        self.free_flags();
        self.asm.state_imm8(false, 0x83, 7, ATTENTION as i32, 0);
        let event = self.asm.jcc(cc::NE);
        self.asm
            .state_imm8(false, 0x80, 7, offset_of!(Cpu, look) as i32, 0);
        let look = self.asm.jcc(cc::NE);
        self.asm
            .state_imm32(false, 0x81, 1, RFLAGS, flag::IF as i32);
        self.later(guest, event);
        self.later(guest, look);
        true
    }

    fn swap_gs(&mut self) -> bool {
        let gs = offset_of!(Cpu, segs)
            + usize::from(seg::GS) * size_of::<Segment>()
            + offset_of!(Segment, base);
        let kernel = offset_of!(Cpu, msrs) + offset_of!(Msrs, kernel_gs_base);
        self.asm.state(true, &[0x8B], R10, gs as i32);
        self.asm.state(true, &[0x8B], R11, kernel as i32);
        self.asm.state(true, &[0x89], R11, gs as i32);
        self.asm.state(true, &[0x89], R10, kernel as i32);
        true
    }

    /// Sets or clears EFLAGS.AC: the block ends, for the next has other rules
    /// for accesses to user pages.
    fn access_flag(&mut self, guest: &Guest<'_>, set: bool) {
        self.free_flags();
        let (digit, flag) = if set {
            (1, flag::AC as u32)
        } else {
            (4, !(flag::AC as u32))
        };
        self.asm
            .state_imm32(false, 0x81, digit, RFLAGS, flag as i32);
        let mode = match (self.smap(), set) {
            (true, false) => AccessMode::SupervisorSmap,
            _ => AccessMode::Supervisor,
        };
        // The mode is the key's two low bits.
        self.asm.state_imm8(false, 0x80, 4, hot::tlb_key(), !3);
        if mode as i8 != 0 {
            self.asm
                .state_imm8(false, 0x80, 1, hot::tlb_key(), mode as i8);
        }
        self.fall_through(guest.next());
    }
}
