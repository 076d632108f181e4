//! Lockstep: each block is run by the interpreter and by translated code, and
//! what is left is compared.
//!
//! ```text
//!  state, RAM ──► interpret ──► its state, its bytes ─────────┐
//!      ▲              │ takes note of stores                  ▼
//!      └── put back ◄─┘ ──► translated code ──► both ──► the same? go on
//!                                                         else: a report, the end
//! ```
//!
//! One machine does, with any devices: what is not a function of the state
//! and of RAM ([`is_outside`], and accesses that find no RAM) is never run
//! twice. Both stop in front of it, are compared, and the interpreter does it
//! once. Events are looked at between blocks only, so neither sees one that
//! the other does not.
//!
//! Translated code runs without chains here: every exit comes back. Where it
//! comes back before the block's end (an event waits, or vector registers
//! may not be used now) the interpreter goes on with the rest, as it would
//! without lockstep.
//!
//! Devices and other threads may change RAM between the two runs. So a
//! difference counts when it is there again in two more attempts from the
//! same state; one that is not is counted as a disturbance.

mod fresh;
mod outside;
mod record;
mod report;
mod snapshot;
mod vague;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use croft_engine::Stop;

use fresh::guest_bytes;
pub use outside::is_outside;
use record::Record;
use snapshot::Snapshot;

use super::run;
use crate::block::Block;
use crate::cpu::Cpu;
use crate::fault::{Fault, Raised};
use crate::mem::Direct;
use crate::op::{Flow, Op, op_flag};
use crate::run::Ended;
use crate::tlb::{AccessMode, Entry};
use crate::walk::Want;

/// Times a block is run twice before a difference counts.
const ATTEMPTS: u32 = 3;
/// Blocks after which translated code must ask anew where it may store: a
/// store that the interpreter does not make is then found.
const REVOKE_EVERY: u64 = 64;

/// What lockstep has done so far; shared by an engine's partitions.
#[derive(Debug, Default)]
pub struct LockstepCounts {
    blocks: AtomicU64,
    instructions: AtomicU64,
    alone: AtomicU64,
    disturbed: AtomicU64,
    vague: AtomicU64,
}

impl LockstepCounts {
    /// Blocks that were run twice and compared.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Instructions in them.
    pub fn instructions(&self) -> u64 {
        self.instructions.load(Ordering::Relaxed)
    }

    /// Instructions that were run once, because they reach outside or were
    /// not translated.
    pub fn alone(&self) -> u64 {
        self.alone.load(Ordering::Relaxed)
    }

    /// Differences that were gone at another attempt.
    pub fn disturbed(&self) -> u64 {
        self.disturbed.load(Ordering::Relaxed)
    }

    /// Blocks that differed in, or by, flags that no manual defines.
    pub fn vague(&self) -> u64 {
        self.vague.load(Ordering::Relaxed)
    }
}

impl fmt::Display for LockstepCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} blocks with {} instructions compared, {} instructions run once, \
             {} differences that were gone at another attempt, {} in undefined flags",
            self.blocks(),
            self.instructions(),
            self.alone(),
            self.disturbed(),
            self.vague()
        )
    }
}

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The machine, as it always does.
    Off,
    /// The interpreter, whose stores are taken back.
    Interpreted,
    /// Translated code.
    Translated,
}

/// A vCPU's lockstep.
pub struct Lockstep {
    phase: Phase,
    /// The running instruction reaches outside.
    outside: bool,
    record: Record,
    /// Guest bytes by the address of the code that was made of them.
    code: HashMap<usize, Box<[u8]>>,
    /// The interpreter stops behind a store to a page that somebody watches:
    /// it may have changed the block itself.
    cautious: bool,
    counts: Arc<LockstepCounts>,
}

impl Lockstep {
    /// A vCPU's lockstep at power-on.
    pub fn new(counts: Arc<LockstepCounts>) -> Self {
        Lockstep {
            phase: Phase::Off,
            outside: false,
            record: Record::default(),
            code: HashMap::new(),
            cautious: true,
            counts,
        }
    }
}

impl Lockstep {
    /// All translated code was thrown away.
    pub fn forget_code(&mut self) {
        self.code.clear();
    }
}

/// How a run of a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// RIP stands at the next instruction.
    Done,
    /// The instruction at RIP raises this.
    Fault(Raised),
    /// The instruction at RIP reaches outside.
    Outside,
}

/// What one run of a block came to.
struct Outcome {
    state: Snapshot,
    end: End,
    /// Instructions done.
    done: usize,
    /// What is derived from the state was derived from it.
    derived: bool,
}

impl Cpu {
    /// Runs a block in lockstep. `None`: it has to be interpreted alone.
    #[inline(never)]
    pub fn run_lockstep(&mut self, block: &Block, mode: AccessMode) -> Option<Result<Ended, Stop>> {
        let first = block.ops.first()?;
        self.interpret_next = false;
        if first.has(op_flag::OUTSIDE) {
            return Some(Ok(self.alone(&block.ops[..1])));
        }
        let mut code = block.native[mode as usize].get();
        if code == 0 {
            let Some(made) = self.translate(block, mode) else {
                self.count_alone(block.ops.len());
                return None;
            };
            code = made;
        }
        if !self.is_fresh(block, code) {
            if fresh::is_reported(block, fresh::REPORT_TIMEOUT) {
                return Some(Ok(Ended::Done));
            }
            let text = report::stale(self, block, code);
            return Some(Err(Stop::Failed(text)));
        }
        Some(self.compare(block, code))
    }

    fn compare(&mut self, block: &Block, code: usize) -> Result<Ended, Stop> {
        let start = self.rip();
        let blocks = self.lockstep.as_ref().map_or(0, |l| l.counts.blocks());
        if blocks.is_multiple_of(REVOKE_EVERY) {
            self.tables().revoke_all();
            self.tlb.revoke();
        }
        let (recheck, before) = (self.recheck, Snapshot::take(self));
        let mut attempt = 0;
        let outcome = loop {
            attempt += 1;
            let interpreted = self.interpreted(block, start);
            let its_recheck = self.recheck;
            self.put_back(&before, recheck);
            let translated = self.translated(block, start, code, &interpreted);
            self.recheck |= its_recheck;
            if self.needs_no_caution(&interpreted, &translated) {
                self.put_back(&before, recheck);
                self.clear_record();
                attempt -= 1;
                continue;
            }
            let mut differences = self.differences(&interpreted, &translated, 0);
            if differences.is_empty() {
                break translated;
            }
            let bytes = guest_bytes(self, block);
            let open = vague::vague(&bytes, translated.done);
            if open.flags != 0 {
                differences = self.differences(&interpreted, &translated, open.flags);
            }
            if differences.is_empty() || open.read {
                self.count_vague();
                break translated;
            }
            if attempt == ATTEMPTS {
                let both = [&interpreted, &translated];
                let text = report::differs(self, block, code, &before, both, &differences);
                return Err(Stop::Failed(text));
            }
            self.put_back(&before, recheck);
            self.clear_record();
        };
        self.count(attempt, outcome.done);
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.cautious = true;
        }
        self.clear_record();
        match outcome.end {
            End::Done => Ok(Ended::Done),
            End::Fault(raised) => {
                self.raised = raised;
                Ok(Ended::Fault)
            }
            End::Outside => {
                self.set_rip(start);
                let op = block.ops.get(outcome.done..outcome.done + 1);
                Ok(self.alone(op.unwrap_or_default()))
            }
        }
    }

    /// The interpreter stopped behind a store where nothing had to stop: it
    /// shall not next time.
    fn needs_no_caution(&mut self, interpreted: &Outcome, translated: &Outcome) -> bool {
        let Some(lockstep) = &mut self.lockstep else {
            return false;
        };
        let stopped = lockstep.cautious && lockstep.record.has_watched();
        if stopped && translated.done > interpreted.done {
            lockstep.cautious = false;
            return true;
        }
        false
    }

    fn clear_record(&mut self) {
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.record.clear();
        }
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.phase = phase;
            lockstep.outside = false;
        }
        // The interpreter's stores must not take the fast way.
        self.recording = phase == Phase::Interpreted;
        let recheck = self.recheck;
        self.update_mode();
        self.recheck = recheck;
    }

    /// False: what is derived from the state was not as it must be.
    fn end_phase(&mut self) -> bool {
        let derived = (self.cpl, self.fetch_key, self.tlb_key & !3);
        let key = self.tlb_key;
        let recording = self.recording;
        self.set_phase(Phase::Off);
        derived == (self.cpl, self.fetch_key, self.tlb_key & !3)
            && (recording || key == self.tlb_key)
    }

    /// The interpreter's run.
    fn interpreted(&mut self, block: &Block, start: u64) -> Outcome {
        self.set_phase(Phase::Interpreted);
        let (end, done) = self.interpret_from(&block.ops, start, 0);
        let derived = self.end_phase();
        Outcome {
            state: Snapshot::take(self),
            end,
            done,
            derived,
        }
    }

    /// Takes back what a run has done.
    fn put_back(&mut self, before: &Snapshot, recheck: bool) {
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.record.undo(&mut self.tlb);
        }
        before.put(self);
        self.code_changed.set(false);
        self.between_iterations = false;
        self.recheck = recheck;
    }

    /// Translated code's run.
    fn translated(
        &mut self,
        block: &Block,
        start: u64,
        code: usize,
        interpreted: &Outcome,
    ) -> Outcome {
        self.set_phase(Phase::Translated);
        let retired = self.hot.retired;
        let ended = self.enter_alone(code);
        let mut done = self.hot.retired.wrapping_sub(retired) as usize;
        let mut end = match ended {
            Ended::Done => End::Done,
            Ended::Fault if self.lockstep.as_ref().is_some_and(|l| l.outside) => End::Outside,
            Ended::Fault => End::Fault(self.raised),
        };
        let more = done < interpreted.done || interpreted.end != End::Done;
        if end == End::Done
            && more
            && let Some(op) = block.ops.get(done)
            && self.rip() == start.wrapping_add(u64::from(op.off))
        {
            if !self.shadow_ss {
                self.shadow = false;
            }
            // What made it come back must not make the rest do so too.
            let recheck = std::mem::take(&mut self.recheck);
            (end, done) = self.interpret_from(&block.ops, start, done);
            self.recheck |= recheck;
        }
        let derived = self.end_phase();
        Outcome {
            state: Snapshot::take(self),
            end,
            done,
            derived,
        }
    }

    /// Interprets a block from op `from` to its end, or to what reaches
    /// outside. RIP is set.
    fn interpret_from(&mut self, ops: &[Op], start: u64, from: usize) -> (End, usize) {
        self.set_rip(start);
        let mut done = from;
        for op in ops.get(from..).unwrap_or_default() {
            if op.has(op_flag::OUTSIDE) {
                self.set_rip(op.rip(self));
                return (End::Outside, done);
            }
            let recheck = self.recheck;
            match (op.run)(self, op) {
                Ok(Flow::Next) if self.changed_code() => {
                    self.set_rip(op.next_rip(self));
                    return (End::Done, done + 1);
                }
                Ok(Flow::Next) => {}
                Ok(Flow::Jump) => return (End::Done, done + 1),
                // Translated code goes on behind STI where nothing waits.
                Ok(Flow::End) if op.left != 0 && self.only_sti() => {
                    self.shadow = false;
                    self.recheck = recheck;
                }
                Ok(Flow::End) => {
                    self.set_rip(op.next_rip(self));
                    return (End::Done, done + 1);
                }
                Ok(Flow::Again) => {
                    self.between_iterations = true;
                    self.set_rip(op.rip(self));
                    return (End::Done, done);
                }
                Err(Fault) if self.lockstep.as_ref().is_some_and(|l| l.outside) => {
                    self.set_rip(op.rip(self));
                    return (End::Outside, done);
                }
                Err(Fault) => {
                    self.fault_at(op);
                    return (End::Fault(self.raised), done);
                }
            }
            done += 1;
        }
        if let Some(op) = ops.last() {
            self.set_rip(op.next_rip(self));
        }
        (End::Done, done)
    }

    /// The instruction may have overwritten what follows it.
    fn changed_code(&mut self) -> bool {
        let Some(lockstep) = &mut self.lockstep else {
            return false;
        };
        match lockstep.phase {
            Phase::Interpreted => lockstep.record.take_watched() && lockstep.cautious,
            _ => self.code_changed.replace(false),
        }
    }

    /// The instruction was STI, and there is nothing to deliver behind it.
    fn only_sti(&self) -> bool {
        let waits = self.look || self.own.attention().load(Ordering::Relaxed) != 0;
        self.shadow && !self.shadow_ss && !waits
    }

    /// What differs, other than these flags.
    fn differences(
        &mut self,
        interpreted: &Outcome,
        translated: &Outcome,
        flags: u64,
    ) -> Vec<String> {
        let mut list = Vec::new();
        if interpreted.end != translated.end {
            list.push(format!(
                "end: {:x?} / {:x?}",
                interpreted.end, translated.end
            ));
        }
        if interpreted.done != translated.done {
            let (ours, theirs) = (interpreted.done, translated.done);
            list.push(format!("instructions done: {ours} / {theirs}"));
        }
        if interpreted.derived != translated.derived {
            list.push("keys of the TLB, or privilege level".to_owned());
        }
        interpreted
            .state
            .differences(&translated.state, flags, &mut list);
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.record.differences(&mut list);
        }
        list
    }

    /// Runs instructions once.
    fn alone(&mut self, ops: &[Op]) -> Ended {
        self.count_alone(ops.len());
        self.execute(ops)
    }

    fn count_alone(&self, instructions: usize) {
        if let Some(lockstep) = &self.lockstep {
            let alone = &lockstep.counts.alone;
            alone.fetch_add(instructions as u64, Ordering::Relaxed);
        }
    }

    fn count_vague(&self) {
        if let Some(lockstep) = &self.lockstep {
            lockstep.counts.vague.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count(&self, attempts: u32, done: usize) {
        let Some(lockstep) = &self.lockstep else {
            return;
        };
        let counts = &lockstep.counts;
        counts.blocks.fetch_add(1, Ordering::Relaxed);
        counts
            .instructions
            .fetch_add(done as u64, Ordering::Relaxed);
        if attempts > 1 {
            counts.disturbed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An access found no RAM. In lockstep, what makes it is not run twice:
    /// it ends as if it had faulted.
    pub fn reaches_outside(&mut self) -> Result<(), Fault> {
        match &mut self.lockstep {
            Some(lockstep) if lockstep.phase != Phase::Off => {
                lockstep.outside = true;
                Err(Fault)
            }
            _ => Ok(()),
        }
    }

    /// An access is allowed to the page of `gpa`. Translated code may ask to
    /// write only where the interpreter did.
    #[inline(always)]
    pub fn may_write(&mut self, want: Want, gpa: u64) {
        if want == Want::Write
            && let Some(lockstep) = &mut self.lockstep
        {
            match lockstep.phase {
                Phase::Off => {}
                Phase::Interpreted => lockstep.record.write(gpa),
                Phase::Translated => lockstep.record.check_write(gpa),
            }
        }
    }

    /// A store of `len` bytes is about to be made.
    #[inline(always)]
    pub fn will_store(&mut self, direct: &Direct, len: u64) {
        if self.recording
            && let Some(lockstep) = &mut self.lockstep
        {
            // SAFETY: callers have translated `len` bytes in a page of RAM.
            unsafe { lockstep.record.store(direct, len as usize) };
        }
    }

    /// A walk is about to set bits in the first byte of the entry at `host`.
    pub fn will_mark(&mut self, host: *const u8) {
        if self.recording
            && let Some(lockstep) = &mut self.lockstep
        {
            // SAFETY: the walk has read the entry there.
            unsafe { lockstep.record.mark(host.cast_mut()) };
        }
    }

    /// An entry of the TLB is about to be replaced.
    #[inline(always)]
    pub fn will_fill(&mut self, write: bool, index: usize) {
        if self.recording
            && let Some(lockstep) = &mut self.lockstep
        {
            let entry: Entry = if write {
                self.tlb.write[index]
            } else {
                self.tlb.read[index]
            };
            lockstep.record.fill(write, index, entry);
        }
    }
}

/// What translated code calls in lockstep in place of the interpreter.
///
/// # Safety
/// As for [`run::interpret`].
pub unsafe extern "sysv64" fn interpret(cpu: *mut Cpu, op: *const Op) -> u32 {
    // SAFETY: as the caller says.
    let outside = unsafe { (*op).has(op_flag::OUTSIDE) };
    if outside {
        // SAFETY: as the caller says.
        return unsafe { run::leave_before(&mut *cpu, &*op) };
    }
    // SAFETY: as the caller says.
    unsafe { run::interpret(cpu, op) }
}
