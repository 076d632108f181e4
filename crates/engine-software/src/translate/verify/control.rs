//! Transfers of control.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, InstructionInfo};

use super::place::{self, Place, Table};
use super::state::{State, Value};
use super::{Proof, Verdict};
use crate::translate::asm::reg::R11;
use crate::translate::tables::{Jump, PAGES, Page};

impl Proof<'_> {
    /// Index of the instruction of this block that instruction `index` jumps
    /// to.
    pub(super) fn inner_target(&self, index: usize) -> Option<usize> {
        let insn = &self.code[index];
        if !insn.is_jcc_short_or_near() && !insn.is_jmp_short_or_near() {
            return None;
        }
        let target = insn.near_branch_target();
        self.code
            .binary_search_by_key(&target, Instruction::ip)
            .ok()
    }

    /// A jump out of the block: to a routine that leaves.
    pub(super) fn leave(&self, insn: &Instruction, state: &State) -> Verdict {
        let (thunks, scope) = (self.rules.thunks, self.rules.scope);
        let target = insn.near_branch_target() as usize;
        if target == thunks.exit_at {
            return match state.general(R11) {
                Value::Constant(offset) if offset < 4096 => Ok(()),
                _ => Err("an exit without an offset in the page".to_owned()),
            };
        }
        let jump = thunks.exit_jump.iter().position(|jump| *jump == target);
        if jump.is_some_and(|mode| mode != scope.mode as usize && !scope.switches) {
            return Err("a search in another mode's table".to_owned());
        }
        if target == thunks.exit_link || jump.is_some() {
            return match state.general(R11) {
                Value::Constant(exit) if is_one_of(exit, self.rules.exits) => Ok(()),
                _ => Err("an exit that is not the block's".to_owned()),
            };
        }
        Err(format!("a jump to {target:#x}, where no code is known"))
    }

    /// A call: of a routine. True if that leaves all registers as they are.
    pub(super) fn call(&self, insn: &Instruction, state: &State) -> Verdict<bool> {
        let thunks = self.rules.thunks;
        let near = insn.code() == Code::Call_rel32_64;
        let target = insn.near_branch_target() as usize;
        if near && thunks.refill.as_flattened().contains(&target) {
            let own = thunks.refill.get(self.rules.scope.mode as usize);
            return match state.general(R11) {
                _ if !own.is_some_and(|own| own.contains(&target)) => {
                    Err("a refill of another mode's table".to_owned())
                }
                Value::Index(index)
                    if index.mask <= ((PAGES - 1) * size_of::<Page>()) as u64
                        && index.mask % size_of::<Page>() as u64 == 0 =>
                {
                    Ok(true)
                }
                _ => Err("a refill without an entry".to_owned()),
            };
        }
        let of_mode = |mode: &[[usize; 4]; 2]| mode.as_flattened().contains(&target);
        let repeated = thunks.repeated.iter().position(of_mode);
        if repeated.is_some_and(|mode| mode != self.rules.scope.mode as usize) {
            return Err("a repetition by another mode's table".to_owned());
        }
        let known = [thunks.interpret, thunks.load_xmm, thunks.load_ymm];
        if near && (repeated.is_some() || known.contains(&target)) {
            return match state.general(R11) {
                Value::Constant(op) if is_one_of(op, self.rules.ops) => Ok(false),
                _ => Err("a call for an instruction that is not the block's".to_owned()),
            };
        }
        Err(format!("a call of {target:#x}, where no routine is known"))
    }

    /// A jump to a computed address: one from the table of jumps, whose tag
    /// was found equal.
    pub(super) fn jump_by_table(
        &self,
        insn: &Instruction,
        info: &InstructionInfo,
        state: &State,
    ) -> Verdict {
        let wrong = || Err("a jump by something that is not a compared entry".to_owned());
        if insn.code() != Code::Jmp_rm64 {
            return wrong();
        }
        let [memory] = info.used_memory() else {
            return wrong();
        };
        match place::resolve(memory, state, self.rules.scope) {
            Some(Place::Cell(cell))
                if cell.table == Table::Jumps
                    && cell.field == offset_of!(Jump, code)
                    && state.found == Some(cell.site) =>
            {
                Ok(())
            }
            _ => wrong(),
        }
    }

    /// Checks the exits: what they name is the block's, and where they will
    /// be patched stands the displacement of a jump.
    pub(super) fn exits(&self) -> Verdict {
        for exit in self.rules.exits {
            if !exit.op.is_null() && !is_one_of(exit.op as u64, self.rules.ops) {
                return Err("an exit with an instruction that is not the block's".to_owned());
            }
            if exit.target >= 4096 {
                return Err("an exit to a place outside its page".to_owned());
            }
            let patched = self.code.iter().any(|insn| {
                insn.code() == Code::Jmp_rel32_64 && insn.next_ip() == exit.site as u64 + 4
            });
            if exit.site != 0 && !patched {
                return Err("an exit that is not a jump".to_owned());
            }
        }
        Ok(())
    }
}

/// `pointer` is the address of an element.
fn is_one_of<T>(pointer: u64, elements: &[T]) -> bool {
    elements
        .iter()
        .any(|element| std::ptr::from_ref(element) as u64 == pointer)
}
