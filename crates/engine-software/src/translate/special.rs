//! Stack instructions, and the system instructions that kernels run most.

use std::mem::offset_of;

use iced_x86::Register;

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

const RFLAGS: i32 = offset_of!(Cpu, rflags) as i32;
/// For a value that has no register for a moment.
const TEMP: i32 = hot::TEMP + 16;

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
            Class::BitTest => self.bit_test(guest),
            Class::Repeated { copies, shift } => {
                self.repeated(guest.op_pointer(), copies, shift);
                true
            }
            Class::PushFlags => self.push_flags(guest),
            Class::Cli => self.clear_flag(flag::IF),
            Class::Cld => self.clear_flag(flag::DF),
            Class::Sti => self.sti(guest),
            Class::SwapGs => self.swap_gs(),
            Class::SystemCall => {
                self.system_call(guest);
                return false;
            }
            Class::SystemReturn => {
                self.system_return(guest);
                return false;
            }
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
        self.free_flags();
        self.asm.rm(true, &[0x8D], R10, GUEST_RSP, -8);
        self.check(guest.op_pointer(), Access::WRITE8);
        self.pushed(guest, 0);
        self.add_rsp(-8);
        true
    }

    /// Stores what PUSH pushes, so many bytes `behind` the pointer in R10.
    pub(super) fn pushed(&mut self, guest: &Guest<'_>, behind: i32) {
        match gpr_number(guest.insn.op0_register()) {
            Some(n) => {
                let from = self.get(n, R11);
                self.asm.rm(true, &[0x89], from, R10, behind);
            }
            None => {
                self.asm.rm(true, &[0xC7], 0, R10, behind);
                let value = guest.insn.immediate(0) as u32;
                self.asm.raw(&value.to_le_bytes());
            }
        }
    }

    fn push_memory(&mut self, guest: &Guest<'_>) -> bool {
        if !self.operand(guest, Access::READ8) {
            return false;
        }
        self.asm.rm(true, &[0x8B], R10, R10, 0);
        self.asm.state(true, &[0x89], R10, TEMP);
        self.asm.rm(true, &[0x8D], R10, GUEST_RSP, -8);
        self.check(guest.op_pointer(), Access::WRITE8);
        self.asm.state(true, &[0x8B], R11, TEMP);
        self.asm.rm(true, &[0x89], R11, R10, 0);
        self.add_rsp(-8);
        true
    }

    fn pop(&mut self, guest: &Guest<'_>) -> bool {
        let Some(n) = gpr_number(guest.insn.op0_register()) else {
            return false;
        };
        self.free_flags();
        self.asm.mov(R10, GUEST_RSP);
        self.check(guest.op_pointer(), Access::READ8);
        self.popped(n, 0);
        if guest.insn.op0_register() != Register::RSP {
            self.add_rsp(8);
        }
        true
    }

    /// Loads guest register `n` from so many bytes `behind` the pointer in
    /// R10.
    pub(super) fn popped(&mut self, n: u8, behind: i32) {
        match place(n) {
            Place::Host(host) => self.asm.rm(true, &[0x8B], host, R10, behind),
            Place::Memory => {
                self.asm.rm(true, &[0x8B], R11, R10, behind);
                self.put(n, R11);
            }
        }
    }

    fn leave_frame(&mut self, guest: &Guest<'_>) -> bool {
        self.free_flags();
        self.asm.mov(R10, RBP);
        self.check(guest.op_pointer(), Access::READ8);
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
        self.check(guest.op_pointer(), Access::WRITE8);
        self.compose_flags();
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

    /// The guest's RFLAGS, complete, in R11. Flags must be free.
    fn compose_flags(&mut self) {
        self.asm.state(true, &[0x89], RAX, TEMP);
        self.asm.state(false, &[0x0F, 0xB6], R11, TEMP); // OF
        self.asm.raw(&[0x41, 0xC1, 0xE3, 11]); // shl r11d, 11
        self.asm.state(true, &[0x0B], R11, RFLAGS);
        // LAHF leaves bit 1 set and bits 3 and 5 clear, as RFLAGS has them.
        self.asm.state(false, &[0x0A], R11, TEMP + 1); // or r11b, AH
    }

    /// Loads CS and SS, and the keys of `mode`.
    fn change_privilege(&mut self, segments: i32, cpl: u8, mode: AccessMode) {
        let to = offset_of!(Cpu, segs) + usize::from(seg::CS) * size_of::<Segment>();
        for at in (0..2 * size_of::<Segment>() as i32).step_by(8) {
            self.asm.state(true, &[0x8B], R10, segments + at);
            self.asm.state(true, &[0x89], R10, to as i32 + at);
        }
        self.asm
            .state(false, &[0xC6], 0, offset_of!(Cpu, cpl) as i32);
        self.asm.raw(&[cpl]);
        // The mode is the key's two low bits; fetches know of no SMAP.
        self.asm.state(true, &[0x8B], R10, hot::tlb_key());
        self.asm.rr(true, &[0x83], 4, R10);
        self.asm.raw(&[!3u8]);
        let fetch = offset_of!(Cpu, fetch_key) as i32;
        if mode == AccessMode::User {
            self.asm.rr(true, &[0x83], 1, R10);
            self.asm.raw(&[mode as u8]);
            self.asm.state(true, &[0x89], R10, fetch);
        } else {
            self.asm.state(true, &[0x89], R10, fetch);
            self.asm.rr(true, &[0x83], 1, R10);
            self.asm.raw(&[mode as u8]);
        }
        self.asm.state(true, &[0x89], R10, hot::tlb_key());
    }

    /// SYSCALL that clears the arithmetic flags, TF, IF and AC.
    fn system_call(&mut self, guest: &Guest<'_>) {
        self.free_flags();
        self.asm.state(false, &[0xF6], 0, hot::FAST);
        self.asm.raw(&[1]);
        let slow = self.asm.jcc(cc::E);
        self.later(guest, slow);
        self.asm.state(true, &[0x8B], RCX, hot::PAGE);
        self.asm.rm(true, &[0x8D], RCX, RCX, guest.next() as i32);
        self.compose_flags();
        self.put(11, R11);
        let msrs = offset_of!(Cpu, msrs);
        let mask = msrs + offset_of!(Msrs, sfmask);
        self.asm.state(false, &[0x8B], R10, mask as i32);
        self.asm.raw(&[0x41, 0xF7, 0xD2]); // not r10d
        self.asm.state(false, &[0x21], R10, RFLAGS);
        self.asm
            .state_imm8(false, 0x80, 1, RFLAGS, flag::FIXED as i8);
        self.asm.mov_imm32(RAX, (flag::FIXED as u32) << 8);
        let mode = if self.options.smap {
            AccessMode::SupervisorSmap
        } else {
            AccessMode::Supervisor
        };
        self.change_privilege(hot::SYSTEM_SEGMENTS, 0, mode);
        let entry = msrs + offset_of!(Msrs, lstar);
        self.asm.state(true, &[0x8B], R10, entry as i32);
        self.leave_to_r10(std::ptr::null(), 0, mode);
    }

    /// SYSRET to a canonical address, with none of the flags that change how
    /// code runs, while nothing waits to be delivered.
    fn system_return(&mut self, guest: &Guest<'_>) {
        const SPECIAL: u64 = flag::TF | flag::RF | flag::VM | flag::AC | flag::VIF | flag::VIP;
        // What SYSRET loads (SDM vol. 2, SYSRET).
        const LOADED: u64 = 0x3C_7FD7 & !SPECIAL & !flag::ARITH;
        const LOW: u32 = (flag::ARITH & 0xFF) as u32;
        self.free_flags();
        self.asm.state(false, &[0xF6], 0, hot::FAST);
        self.asm.raw(&[2]);
        let disabled = self.asm.jcc(cc::E);
        self.asm.state_imm8(false, 0x83, 7, ATTENTION as i32, 0);
        let event = self.asm.jcc(cc::NE);
        self.asm
            .state_imm8(false, 0x80, 7, offset_of!(Cpu, look) as i32, 0);
        let look = self.asm.jcc(cc::NE);
        self.copy(R11, 11);
        self.asm.rr_imm32(false, 0xF7, 0, R11, SPECIAL as i32); // test
        let special = self.asm.jcc(cc::NE);
        self.asm.mov(R10, RCX);
        self.asm.raw(&[0x49, 0xC1, 0xFA, 47]); // sar r10, 47
        self.asm.rm(true, &[0x8D], R10, R10, 1);
        self.asm.rr(true, &[0x83], 7, R10);
        self.asm.raw(&[1]);
        let not_canonical = self.asm.jcc(cc::A);
        for jump in [disabled, event, look, special, not_canonical] {
            self.later(guest, jump);
        }
        self.asm.rr(false, &[0x8B], R10, R11);
        self.asm.rr_imm32(false, 0x81, 4, R10, LOADED as i32);
        self.asm.rr(false, &[0x83], 1, R10);
        self.asm.raw(&[flag::FIXED as u8]);
        self.asm.state(true, &[0x89], R10, RFLAGS);
        // As LAHF and SETO would leave them.
        self.asm.rr(false, &[0x8B], RAX, R11);
        self.asm.rr_imm32(false, 0x81, 4, RAX, LOW as i32);
        self.asm.rr(false, &[0x83], 1, RAX);
        self.asm.raw(&[flag::FIXED as u8]);
        self.asm.raw(&[0xC1, 0xE0, 8]); // shl eax, 8
        self.asm.raw(&[0x41, 0x0F, 0xBA, 0xE3, 11]); // bt r11d, 11
        self.asm.raw(&[0x0F, 0x92, 0xC0]); // setb al
        self.change_privilege(hot::USER_SEGMENTS, 3, AccessMode::User);
        self.asm.mov(R10, RCX);
        self.leave_to_r10(std::ptr::null(), 0, AccessMode::User);
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
        let mode = match (self.options.smap, set) {
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
