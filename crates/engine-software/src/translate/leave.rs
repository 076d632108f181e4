//! Leaving a block.

use std::mem::offset_of;

use super::Exit;
use super::asm::cc;
use super::asm::reg::*;
use super::cold::Cold;
use super::emit::{Emit, FlagState, Guest, LEA, MOV_LOAD, MOV_STORE, mode_table};
use super::hot;
use super::planted::{PlantedCode, planted_code};
use super::region::{ATTENTION, TABLES};
use super::tables::{Jump, Mode, REACHES_OVER, Tables};
use super::wrong::{PlantedInCode, is_planted};
use crate::op::Op;
use crate::tlb::AccessMode;

impl Emit<'_> {
    fn exit(&mut self, exit: Exit) -> usize {
        self.exits.push(exit);
        self.exits.len() - 1
    }

    /// Before a jump that may close a cycle: looks for events. `target` is
    /// in the page.
    fn poll(&mut self, target: u64) {
        self.asm.state_imm8(false, 0x83, 7, ATTENTION as i32, 0);
        let jump = self.asm.jcc(cc::NE);
        self.cold.push(Cold::Event { jump, target });
    }

    /// Leaves for offset `target` of the page, or of another. Flags are
    /// saved.
    pub(super) fn leave_to(
        &mut self,
        op: *const Op,
        rsp_delta: i64,
        target: i64,
        from: u64,
    ) -> bool {
        self.save_flags();
        self.flags = FlagState::Saved;
        let Ok(near) = u64::try_from(target) else {
            return self.leave_page(op, rsp_delta, target);
        };
        // What lies across two pages is found by its linear address only:
        // another mapping of the first may have another one behind it.
        if near >= REACHES_OVER {
            return self.leave_page(op, rsp_delta, target);
        }
        if near <= from && !is_planted(PlantedInCode::MissedInterrupt) {
            self.poll(near);
        }
        let jump = self.asm.jmp();
        let exit = self.exit(Exit {
            op,
            rsp_delta,
            site: 0,
            target: near,
            page: self.page,
        });
        self.cold.push(Cold::Unlinked { jump, exit });
        true
    }

    fn leave_page(&mut self, op: *const Op, rsp_delta: i64, target: i64) -> bool {
        self.asm.state(true, MOV_LOAD, R10, hot::PAGE);
        match i32::try_from(target) {
            Ok(disp) => self.asm.rm(true, LEA, R10, R10, disp),
            Err(_) => {
                self.asm.mov_imm64(R11, target as u64);
                self.asm.rr(true, &[0x03], R10, R11);
            }
        }
        self.leave_to_r10(op, rsp_delta, self.options.mode);
        true
    }

    /// Leaves for the linear address in R10, whose code runs in `mode`. Flags
    /// are saved.
    pub(super) fn leave_to_r10(&mut self, op: *const Op, rsp_delta: i64, mode: AccessMode) {
        self.asm.jump_entry();
        let entry = mode_table(mode) + offset_of!(Mode, jumps) as i32;
        self.asm.entry(true, &[0x3B], R10, entry);
        let tag = match planted_code() {
            PlantedCode::Tag => cc::BE,
            _ => cc::NE,
        };
        let missing = self.asm.jcc(tag);
        let mut found = Vec::new();
        if mode == AccessMode::User {
            let space = TABLES + offset_of!(Tables, space);
            self.asm.state(true, MOV_LOAD, R10, space as i32);
            self.asm
                .entry(true, &[0x3B], R10, entry + offset_of!(Jump, space) as i32);
            found.push(self.asm.jcc(cc::NE));
        }
        self.asm.state_imm8(false, 0x83, 7, ATTENTION as i32, 0);
        found.push(self.asm.jcc(cc::NE));
        self.asm
            .entry(true, MOV_LOAD, R10, entry + offset_of!(Jump, page) as i32);
        self.asm.state(true, MOV_STORE, R10, hot::PAGE);
        self.asm
            .entry(false, &[0xFF], 4, entry + offset_of!(Jump, code) as i32);
        let exit = self.exit(Exit {
            op,
            rsp_delta,
            site: 0,
            target: 0,
            page: self.page,
        });
        self.cold.push(Cold::Lost {
            missing,
            found,
            tag: entry,
            mode,
            exit,
        });
    }

    /// Jcc: the taken side goes behind the block.
    pub(super) fn branch(&mut self, guest: &Guest<'_>, condition: u8, target: i64) {
        self.host_flags();
        let jump = self.asm.jcc(condition);
        self.cold.push(Cold::Taken {
            jump,
            op: guest.op_pointer(),
            save: self.flags == FlagState::Host,
            index: self.done as usize + 1,
            target,
            from: guest.at,
        });
    }

    /// Ends the block where its last instruction goes on to the next.
    pub fn fall_through(&mut self, next: u64) {
        self.leave_to(std::ptr::null(), 0, next as i64, self.start);
    }
}
