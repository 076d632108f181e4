//! Branches, calls and returns.
//!
//! Instructions are decoded as if their page were at address 0, so direct
//! targets count from the page's start.

use iced_x86::OpKind;

use super::asm::reg::*;
use super::classify::{Access, Class};
use super::emit::{Emit, Guest, gpr_number};
use super::hot;
use super::regs::GUEST_RSP;

/// Where an indirect call's target waits while the return address is pushed.
const TARGET: i32 = hot::TEMP + 16;

impl Emit<'_> {
    /// A branch of any kind. False: nothing follows in the block.
    pub(super) fn control(&mut self, guest: &Guest<'_>) -> bool {
        let insn = guest.insn;
        let op = guest.op_pointer();
        match guest.class {
            Class::JumpIf => {
                // iced counts conditions from 1.
                let condition = insn.condition_code() as u8 - 1;
                self.branch(guest, condition, insn.near_branch_target() as i64);
                true
            }
            Class::Jump => {
                self.leave_to(op, 0, insn.near_branch_target() as i64, guest.at);
                false
            }
            Class::Call => {
                self.free_flags();
                self.push_return(guest);
                // A call may close a cycle as a jump back does.
                self.leave_to(op, -8, insn.near_branch_target() as i64, guest.at);
                false
            }
            Class::JumpIndirect => {
                self.free_flags();
                if !self.target(guest) {
                    self.interpret(op);
                    return true;
                }
                self.leave_to_r10(op, 0, self.options.mode);
                false
            }
            Class::CallIndirect => {
                self.free_flags();
                if insn.op0_kind() == OpKind::Memory {
                    if !self.target(guest) {
                        self.interpret(op);
                        return true;
                    }
                    self.asm.state(true, &[0x89], R10, TARGET);
                    self.push_return(guest);
                    self.asm.state(true, &[0x8B], R10, TARGET);
                } else {
                    self.push_return(guest);
                    self.target(guest);
                }
                self.leave_to_r10(op, -8, self.options.mode);
                false
            }
            _ => {
                self.free_flags();
                self.asm.mov(R10, GUEST_RSP);
                self.check(op, Access::READ8);
                self.returns(guest, 0, 0);
                false
            }
        }
    }

    /// The target of an indirect branch into R10.
    fn target(&mut self, guest: &Guest<'_>) -> bool {
        if guest.insn.op0_kind() == OpKind::Memory {
            if !self.operand(guest, Access::READ8) {
                return false;
            }
            self.asm.rm(true, &[0x8B], R10, R10, 0);
            return true;
        }
        match gpr_number(guest.insn.op0_register()) {
            Some(n) => {
                self.copy(R10, n);
                true
            }
            None => false,
        }
    }

    /// Pushes the address of the next instruction.
    fn push_return(&mut self, guest: &Guest<'_>) {
        self.asm.rm(true, &[0x8D], R10, GUEST_RSP, -8);
        self.check(guest.op_pointer(), Access::WRITE8);
        self.pushed_return(guest, 0);
        self.add_rsp(-8);
    }

    /// Stores that address so many bytes `behind` the pointer in R10.
    pub(super) fn pushed_return(&mut self, guest: &Guest<'_>, behind: i32) {
        self.asm.state(true, &[0x8B], R11, hot::PAGE);
        self.asm.rm(true, &[0x8D], R11, R11, guest.next() as i32);
        self.asm.rm(true, &[0x89], R11, R10, behind);
    }

    /// Leaves for the address that stands so many bytes `behind` the pointer
    /// in R10; RSP is yet to be moved by `before` the return. Flags are free.
    pub(super) fn returns(&mut self, guest: &Guest<'_>, behind: i32, before: i32) {
        self.asm.rm(true, &[0x8B], R10, R10, behind);
        let drop = match guest.insn.op_count() {
            0 => 8,
            _ => 8 + i32::from(guest.insn.immediate16()),
        };
        self.add_rsp(before + drop);
        self.leave_to_r10(guest.op_pointer(), i64::from(drop), self.options.mode);
    }
}
