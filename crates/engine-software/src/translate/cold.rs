//! Code behind the block, for what seldom happens.

use super::Exit;
use super::asm::reg::*;
use super::asm::{Fixup, cc};
use super::emit::{Check, Emit, Emitted, FlagState, MOV_LOAD};
use crate::op::Op;
use crate::tlb::AccessMode;

/// One piece of it.
pub enum Cold {
    /// A check failed.
    Miss {
        check: Check,
        op: *const Op,
        resume: usize,
    },
    /// The interpreter must do the instruction.
    Interpret {
        jump: Fixup,
        op: *const Op,
        resume: usize,
    },
    /// A branch is taken.
    Taken {
        jump: Fixup,
        op: *const Op,
        save: bool,
        index: usize,
        target: i64,
        from: u64,
    },
    /// An event waits before a jump within the page.
    Event { jump: Fixup, target: u64 },
    /// A jump out of the page found nothing.
    Lost {
        /// There is no entry.
        missing: Fixup,
        /// There is one, but of another address space, or an event waits.
        found: Vec<Fixup>,
        /// Offset of the table's tags.
        tag: i32,
        /// The table's.
        mode: AccessMode,
        exit: usize,
    },
    /// A jump within the page that leads nowhere yet.
    Unlinked { jump: Fixup, exit: usize },
}

/// No place to go on at: behind an instruction that ends its block.
pub const NOWHERE: usize = usize::MAX;

impl Emit<'_> {
    /// Appends what seldom happens: it will be executed at `cold`, so that
    /// the processor's caches hold what often happens.
    pub fn finish(mut self, cold: usize) -> Emitted {
        let mut next = 0;
        // Taken branches add exits, and those more cold code.
        while next < self.cold.len() {
            if let Cold::Taken {
                jump,
                op,
                save,
                index,
                target,
                from,
            } = self.cold[next]
            {
                self.asm.fix_here(jump);
                self.flags = if save {
                    FlagState::Host
                } else {
                    FlagState::Saved
                };
                self.save_flags();
                self.add_retired(index as i64 - i64::from(self.count));
                self.leave_to(op, 0, target, from);
            }
            next += 1;
        }
        self.asm.go_on_at(cold);
        for group in std::mem::take(&mut self.groups) {
            self.one_by_one(group);
        }
        let mut exits = std::mem::take(&mut self.exits).into_boxed_slice();
        let cold = std::mem::take(&mut self.cold);
        for cold in cold {
            self.emit_cold(cold, &mut exits);
        }
        Emitted {
            hot: self.asm.together(),
            bytes: self.asm.bytes,
            exits,
        }
    }

    fn emit_cold(&mut self, cold: Cold, exits: &mut [Exit]) {
        match cold {
            Cold::Miss { check, op, resume } => {
                self.refill(check);
                self.interpreted(op, resume);
            }
            Cold::Interpret { jump, op, resume } => {
                self.asm.fix_here(jump);
                self.interpreted(op, resume);
            }
            Cold::Taken { .. } => {}
            Cold::Event { jump, target } => {
                self.asm.fix_here(jump);
                self.asm.mov_imm32(R11, target as u32);
                self.asm.jmp_abs(self.thunks.exit_at);
            }
            Cold::Lost {
                missing,
                found,
                tag,
                mode,
                exit,
            } => {
                for jump in found {
                    self.asm.fix_here(jump);
                }
                // R10 has been used, but the tag is what was looked for.
                self.asm.entry(true, MOV_LOAD, R10, tag);
                self.asm.fix_here(missing);
                self.asm.mov_imm64(R11, &raw const exits[exit] as u64);
                self.asm.jmp_abs(self.thunks.exit_jump[mode as usize]);
            }
            Cold::Unlinked { jump, exit } => {
                self.asm.fix_here(jump);
                exits[exit].site = self.asm.address(jump.0);
                self.asm.mov_imm64(R11, &raw const exits[exit] as u64);
                self.asm.jmp_abs(self.thunks.exit_link);
            }
        }
    }

    /// Makes the host's flags the guest's, which stay in RAX too.
    pub(super) fn both_flags(&mut self) {
        self.asm.mov(R10, RAX);
        self.restore();
        self.asm.mov(RAX, R10);
        self.flags = FlagState::Both;
    }

    /// Where `check` failed: tries to refill its entry, and again. Goes on
    /// behind if that is of no use.
    pub(super) fn refill(&mut self, check: Check) {
        for jump in check.jumps {
            self.asm.fix_here(jump);
        }
        self.asm.entry(true, &[0x03], R10, check.tag);
        self.asm.call_abs(check.refill);
        let again = self.asm.jcc(cc::AE);
        self.asm.fix(again, check.retry);
    }

    /// Lets the interpreter do an instruction, and goes on behind it with
    /// the flags both in RAX and in the host's.
    fn interpreted(&mut self, op: *const Op, resume: usize) {
        self.asm.mov_imm64(R11, op as u64);
        self.asm.call_abs(self.thunks.interpret);
        if resume == NOWHERE {
            // The interpreter has gone elsewhere.
            self.asm.raw(&[0x0F, 0x0B]); // ud2
            return;
        }
        self.both_flags();
        self.asm.jmp_to(resume);
    }
}
