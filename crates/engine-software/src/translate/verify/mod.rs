//! Proof that the code of a block is isolated.
//!
//! The proof looks at the host bytes alone, not at how they came about: they
//! are decoded, and every value that the code can hold at every place is
//! followed along every path until nothing new turns up ([`state`]). A block
//! is accepted if
//!
//! * each instruction only computes: nothing privileged, no system call, no
//!   change of the stack pointer, of the direction flag, of segments, of
//!   MXCSR or of the x87's state ([`allowed`]);
//! * each access to memory is to a field of the vCPU that translated code may
//!   use, to an entry of a table of the block's mode, or to guest memory by a
//!   pointer that a comparison has shown to be right ([`place`]);
//! * each jump leads to an instruction of the block, to a routine that gets
//!   what it expects, or where a table of jumps says after its tag was
//!   compared ([`control`]);
//! * no host address reaches a register or memory of the guest's.
//!
//! What a checked pointer needs:
//!
//! ```text
//!             and r, mask       sub p, [vCPU + r + tag]
//!   anything ───────────► index ──────────────────────► difference
//!                                                           │ cmp p, n; ja
//!                     add p, [vCPU + r + host]              ▼
//!   host page + 0…n ◄──────────────────────────── difference, at most n
//! ```
//!
//! A call ends all knowledge, for the tables may change in it; so do two
//! paths that meet with different knowledge.

mod allowed;
mod control;
mod place;
mod state;

#[cfg(test)]
mod tests;

use std::fmt;

use iced_x86::{
    Code, Decoder, DecoderOptions, FastFormatter, FlowControl, Instruction, InstructionInfo,
    InstructionInfoFactory,
};

use super::Exit;
use super::thunks::Thunks;
use crate::op::Op;
use state::State;

pub use place::Scope;

/// What a block's code may refer to.
pub struct Rules<'a> {
    /// Where its first byte will be executed.
    pub base: usize,
    /// The first byte that will be executed elsewhere, and where: behind all
    /// others.
    pub apart: (usize, usize),
    /// The routines.
    pub thunks: &'a Thunks,
    /// What it is.
    pub scope: Scope,
    /// Its ops: all that the interpreter may be called for.
    pub ops: &'a [Op],
    /// Its exits.
    pub exits: &'a [Exit],
}

/// Why code was not accepted.
#[derive(Debug)]
pub struct Refusal {
    /// Address of the instruction.
    pub at: u64,
    /// What is wrong with it.
    pub why: String,
    /// The whole block's code.
    pub listing: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "translated code is not isolated: {} at {:#x}. This is an error of Croft's: report \
             it with the code below; --interpret does without translated code\n{}",
            self.why, self.at, self.listing
        )
    }
}

/// Why an instruction is not accepted.
type Verdict<T = ()> = Result<T, String>;

/// The code under proof.
struct Proof<'a> {
    rules: &'a Rules<'a>,
    code: Vec<Instruction>,
    /// Instructions in its first part.
    first: usize,
    /// What is known before instructions that are jumped to.
    known: Vec<Option<State>>,
    /// Instructions that are jumped to.
    targets: Vec<bool>,
    /// Instructions still to be followed from.
    work: Vec<usize>,
}

/// Proves that `bytes`, the code of a block, are isolated.
///
/// # Errors
/// They are not, or not in a way that the proof understands.
pub fn verify(bytes: &[u8], rules: &Rules<'_>) -> Result<(), Box<Refusal>> {
    let base = rules.base as u64;
    let (bytes, apart) = bytes.split_at(rules.apart.0.min(bytes.len()));
    let decode = |bytes, base| Decoder::with_ip(64, bytes, base, DecoderOptions::NONE);
    let mut code: Vec<Instruction> = decode(bytes, base).into_iter().collect();
    let first = code.len();
    code.extend(&mut decode(apart, rules.apart.1 as u64));
    let mut proof = Proof {
        rules,
        first,
        known: vec![None; code.len()],
        targets: vec![false; code.len()],
        work: Vec::new(),
        code,
    };
    let result = proof.run();
    result.map_err(|(index, why)| {
        let at = proof.code.get(index).map_or(base, Instruction::ip);
        Box::new(Refusal {
            at,
            why,
            listing: list(&proof.code, at),
        })
    })
}

/// The refusal to let the jump whose displacement is at `site` lead to
/// `code`, which is no block of its page.
pub fn refused_link(site: usize, code: usize) -> Box<Refusal> {
    Box::new(Refusal {
        at: site as u64,
        why: format!("a jump that shall lead to {code:#x}, no block of its page,"),
        listing: String::new(),
    })
}

impl Proof<'_> {
    fn run(&mut self) -> Result<(), (usize, String)> {
        if self.code.is_empty() {
            return Err((0, "there is no code".to_owned()));
        }
        // Places are searched by their addresses.
        if !self.code.is_sorted_by_key(Instruction::ip) {
            return Err((0, "its parts are in another order".to_owned()));
        }
        for index in 0..self.code.len() {
            if let Some(target) = self.inner_target(index) {
                self.targets[target] = true;
            }
        }
        self.exits().map_err(|why| (0, why))?;
        let mut info = InstructionInfoFactory::new();
        self.targets[0] = true;
        self.reach(0, &State::default());
        while let Some(start) = self.work.pop() {
            let mut state = match &self.known[start] {
                Some(state) => state.clone(),
                None => continue,
            };
            let mut index = start;
            loop {
                let next = self
                    .step(index, &mut state, &mut info)
                    .map_err(|why| (index, why))?;
                if !next {
                    break;
                }
                index += 1;
                if index == self.first || index == self.code.len() {
                    return Err((index - 1, "the code goes on behind its end".to_owned()));
                }
                if self.targets[index] {
                    self.reach(index, &state);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Instruction `index` can be run with `state` known.
    fn reach(&mut self, index: usize, state: &State) {
        let news = match &mut self.known[index] {
            Some(known) => known.join(state),
            unknown => {
                *unknown = Some(state.clone());
                true
            }
        };
        if news && !self.work.contains(&index) {
            self.work.push(index);
        }
    }

    /// Goes over one instruction; true if the next one can follow.
    fn step(
        &mut self,
        index: usize,
        state: &mut State,
        info: &mut InstructionInfoFactory,
    ) -> Verdict<bool> {
        let insn = self.code[index];
        if insn.is_invalid() {
            return Err("bytes that are no instruction".to_owned());
        }
        let info = info.info(&insn);
        match insn.flow_control() {
            FlowControl::Next => {
                allowed::check(&insn, info)?;
                self.memory(&insn, info, state)?;
                state.step(index, &insn, info, self.rules.scope)?;
                Ok(true)
            }
            FlowControl::Call => {
                let keeps = self.call(&insn, state)?;
                state.called(keeps);
                Ok(true)
            }
            FlowControl::IndirectBranch => {
                self.jump_by_table(&insn, info, state)?;
                Ok(false)
            }
            FlowControl::UnconditionalBranch => {
                match self.inner_target(index) {
                    Some(target) => self.reach(target, state),
                    None => self.leave(&insn, state)?,
                }
                Ok(false)
            }
            FlowControl::ConditionalBranch if insn.is_jcc_short_or_near() => {
                let (mut taken, mut passed) = (state.clone(), state.clone());
                state::branch(&insn, &mut taken, &mut passed);
                match self.inner_target(index) {
                    Some(target) => self.reach(target, &taken),
                    None => self.leave(&insn, &taken)?,
                }
                *state = passed;
                Ok(true)
            }
            FlowControl::Exception if insn.code() == Code::Ud2 => Ok(false),
            _ => Err("a transfer of control of a kind that is never needed".to_owned()),
        }
    }

    /// Checks what an instruction reads and writes in memory.
    fn memory(&self, insn: &Instruction, info: &InstructionInfo, state: &State) -> Verdict {
        for memory in info.used_memory() {
            place::check(insn, memory, state, self.rules.scope)?;
        }
        Ok(())
    }
}

/// The code, with an arrow at the instruction at address `at`.
fn list(code: &[Instruction], at: u64) -> String {
    let mut formatter = FastFormatter::new();
    let mut text = String::new();
    for insn in code {
        let mark = if insn.ip() == at { "=>" } else { "  " };
        text.push_str(&format!("{mark} {:#x}  ", insn.ip()));
        formatter.format(insn, &mut text);
        text.push('\n');
    }
    text
}
