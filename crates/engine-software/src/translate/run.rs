//! Translating blocks, and running what was translated.

use std::collections::HashMap;
use std::io;
use std::time::Instant;

use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory};

use super::classify::{Class, classify};
use super::emit::{Emit, Guest, Options};
use super::tables::JOURNAL;
use super::thunks::{self, Reason, Thunks};
use super::verify::{self, Refusal, Rules, Scope};
use super::{Exit, liveness, lockstep};
use crate::block::Block;
use crate::cpu::{Cpu, cr0, cr4, efer, flag, gpr};
use crate::dual::DualMapping;
use crate::fault::Fault;
use crate::op::{Flow, Op, op_flag};
use crate::run::Ended;
use crate::tlb::{AccessMode, Tlb};
use crate::vector::component;
use std::sync::atomic::Ordering;

/// Most bytes of code for one block: beyond this translating gives up.
const MAX_BLOCK: usize = 64 << 10;
/// Of eight parts of the code's memory, those of what often happens.
const HOT: usize = 5;

/// How to translate.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of code there is room for.
    pub size: usize,
    /// Count what translated code does.
    pub counts: bool,
    /// Prove that code is isolated before it runs.
    pub verifies: bool,
    /// For lockstep.
    pub lockstep: bool,
}

/// One vCPU's translated code.
pub struct Translator {
    memory: DualMapping,
    thunks: Thunks,
    /// Offset behind the routines.
    first: usize,
    /// Offset of the next block.
    next: usize,
    /// Offset of its part that seldom runs; those of all are behind the others.
    next_cold: usize,
    encoder: Encoder,
    info: InstructionInfoFactory,
    /// What translated code refers to.
    exits: Vec<Box<[Exit]>>,
    /// Where blocks' code begins, in order.
    starts: Vec<usize>,
    /// What code that was thrown away referred to, to be dropped bit by bit.
    old_exits: Vec<Box<[Exit]>>,
    /// The exit through which the last block was left, if it may be linked.
    pending: Option<*const Exit>,
    /// The last block was left by a jump that the tables did not know.
    pending_jump: bool,
    count: bool,
    bmi2: bool,
    /// Where the code of blocks begins, with the guest-physical address of
    /// their pages, if code is verified.
    verified: Option<HashMap<usize, u64>>,
    /// Code that was not found isolated.
    refused: Option<Box<Refusal>>,
    /// There is no room for another block.
    full: bool,
}

impl Translator {
    /// A translator without any code.
    ///
    /// # Errors
    /// The host refuses executable memory.
    pub fn new(settings: Settings) -> io::Result<Self> {
        let size = settings.size.max(1 << 20).next_multiple_of(4096);
        let memory = DualMapping::new(size)?;
        let helper: unsafe extern "sysv64" fn(*mut Cpu, *const Op) -> u32 = if settings.lockstep {
            lockstep::interpret
        } else {
            interpret
        };
        let (code, thunks) =
            thunks::generate(memory.executable(0), helper as usize, settings.counts);
        // SAFETY: nothing runs there yet.
        unsafe { memory.write(0, &code) };
        let first = code.len().next_multiple_of(64);
        Ok(Translator {
            memory,
            thunks,
            first,
            next: first,
            next_cold: size / 8 * HOT,
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            exits: Vec::new(),
            starts: Vec::new(),
            old_exits: Vec::new(),
            pending: None,
            pending_jump: false,
            count: settings.counts,
            verified: settings.verifies.then(HashMap::new),
            refused: None,
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
            full: false,
        })
    }

    /// Forgets how the last block was left.
    pub fn forget_pending(&mut self) {
        self.pending = None;
        self.pending_jump = false;
    }

    /// The code of the block whose code begins at `code`, without what of it
    /// seldom runs.
    pub fn code_at(&self, code: usize) -> &[u8] {
        let behind = self.starts.partition_point(|&start| start <= code);
        let end = self.starts.get(behind).copied();
        let end = end.unwrap_or(self.memory.executable(self.next));
        // SAFETY: blocks lie in the mapping, which is readable and written
        // by `&mut self` only.
        unsafe { std::slice::from_raw_parts(code as *const u8, end.saturating_sub(code)) }
    }

    /// Bytes of blocks' code.
    pub fn bytes(&self) -> usize {
        self.next - self.first + self.next_cold - self.first_cold()
    }

    /// Where the parts of blocks begin that seldom run.
    fn first_cold(&self) -> usize {
        self.memory.size() / 8 * HOT
    }

    /// There is room for a block of any size.
    fn has_room(&self) -> bool {
        self.next + MAX_BLOCK <= self.first_cold()
            && self.next_cold + MAX_BLOCK <= self.memory.size()
    }

    /// Gives back what code that was thrown away has left. All was, and
    /// nothing is there anew.
    pub fn drop_old(&mut self) {
        self.old_exits = Vec::new();
        self.starts = Vec::new();
        // SAFETY: nothing behind `next` is executed.
        unsafe { self.memory.discard(self.next) };
    }

    /// All code should be thrown away.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Makes an exit's jump lead to `code`, a block of the same page.
    fn link(&mut self, exit: &Exit, code: usize) {
        if let Some(verified) = &self.verified
            && verified.get(&code) != Some(&exit.page)
        {
            return self.refuse(verify::refused_link(exit.site, code));
        }
        let site = exit.site - self.memory.executable(0);
        let disp = code.wrapping_sub(exit.site + 4) as i32;
        // SAFETY: the four bytes are a jump's displacement; this vCPU alone
        // runs the code, and not now.
        unsafe { self.memory.write(site, &disp.to_le_bytes()) };
    }
}

impl Translator {
    /// Nothing runs any more: code is not isolated.
    fn refuse(&mut self, refusal: Box<Refusal>) {
        self.refused.get_or_insert(refusal);
        self.full = true;
    }
}

impl Cpu {
    /// Why the vCPU must not go on, if some code was not found isolated.
    #[cold]
    pub fn refused_code(&mut self) -> Option<String> {
        let refusal = self.translator.as_mut()?.refused.take()?;
        Some(refusal.to_string())
    }

    /// The mode of code that can be translated now.
    #[inline(always)]
    pub fn native_mode(&self) -> Option<AccessMode> {
        let plain = self.code64()
            && !self.single
            && self.debug.breakpoints.is_empty()
            && self.dr7 & 0xFF == 0
            && self.translator.is_some();
        if !plain {
            return None;
        }
        match (self.tlb_key & 3, self.cpl) {
            (0, 0) => Some(AccessMode::Supervisor),
            (1, 3) => Some(AccessMode::User),
            (2, 0) => Some(AccessMode::SupervisorSmap),
            _ => None,
        }
    }

    /// Runs from `block` on, as translated code. `None`: the block has to be
    /// interpreted.
    #[inline(always)]
    pub fn run_native(&mut self, block: &Block, mode: AccessMode) -> Option<Ended> {
        if std::mem::take(&mut self.interpret_next) {
            return None;
        }
        let mut code = block.native[mode as usize].get();
        if code == 0 {
            code = self.translate(block, mode)?;
        }
        let translator = self.translator.as_mut()?;
        if let Some(exit) = translator.pending.take() {
            // SAFETY: exits live until the code is thrown away, which forgets
            // this one.
            let exit = unsafe { &*exit };
            if exit.page == block.gpa & !0xFFF && exit.target == block.gpa & 0xFFF {
                debug_assert!(block.second.is_none());
                translator.link(exit, code);
            }
        }
        let enter = translator.thunks.enter;
        if std::mem::take(&mut translator.pending_jump) {
            let linear = self.rip();
            let is_global = |linear: u64| {
                let entry = &self.tlb.fetch[Tlb::fetch_index(linear)];
                entry.tag == linear & !0xFFF | self.fetch_key & 3
            };
            let global = is_global(linear)
                && (block.second.is_none() || is_global(linear.wrapping_add(0x1000)));
            self.tables().add_jump(mode, linear, code as u64, global);
        }
        Some(self.enter(enter, code))
    }

    /// Runs one block's code, of which no exit leads on.
    pub(super) fn enter_alone(&mut self, code: usize) -> Ended {
        let Some(translator) = &self.translator else {
            return Ended::Done;
        };
        let ended = self.enter(translator.thunks.enter, code);
        self.interpret_next = false;
        if let Some(translator) = &mut self.translator {
            translator.forget_pending();
        }
        ended
    }

    /// Runs translated code until it comes back.
    fn enter(&mut self, enter: usize, code: usize) -> Ended {
        self.hot.page = self.rip() & !0xFFF;
        self.hot.vector_ok = self.vector_ok();
        self.prepare_system_calls();
        self.split_flags();
        let enter: unsafe extern "sysv64" fn(*mut Cpu, usize) -> u32 =
            // SAFETY: the routine has this signature.
            unsafe { std::mem::transmute(enter) };
        // SAFETY: `code` was translated for this vCPU in its present mode,
        // and the vCPU stands in its region.
        let reason = unsafe { enter(self, code) };
        let page = self.hot.page;
        if let Some(counting) = &mut self.counting {
            counting.returned(reason as usize);
        }
        match Reason::from_code(reason) {
            // The interpreter has merged the flags.
            Reason::Done => Ended::Done,
            Reason::Fault => Ended::Fault,
            reason => {
                self.merge_flags();
                match reason {
                    Reason::Link => {
                        let exit = self.hot.exit as *const Exit;
                        // SAFETY: translated code holds pointers to exits
                        // that live as long as it.
                        self.set_rip(page.wrapping_add(unsafe { (*exit).target }));
                        if let Some(translator) = &mut self.translator {
                            translator.pending = Some(exit);
                        }
                        Ended::Done
                    }
                    Reason::Jump => self.jumped(),
                    Reason::At => {
                        self.set_rip(page.wrapping_add(self.hot.exit));
                        self.recheck = true;
                        Ended::Done
                    }
                    _ => {
                        // SAFETY: as for exits: ops of a block that is kept.
                        let op = unsafe { &*(self.hot.exit as *const Op) };
                        self.set_rip(op.linear(page));
                        self.uncount(op, 1);
                        self.interpret_next = true;
                        Ended::Done
                    }
                }
            }
        }
    }

    /// A jump whose target the tables do not know, or that must wait for an
    /// event.
    fn jumped(&mut self) -> Ended {
        // SAFETY: exits live as long as the code that refers to them.
        let exit = unsafe { &*(self.hot.exit as *const Exit) };
        let target = self.hot.target;
        if self.canonical(target) || exit.op.is_null() {
            self.set_rip(target);
            if let Some(translator) = &mut self.translator {
                translator.pending_jump = true;
            }
            return Ended::Done;
        }
        // The instruction faults, having done nothing.
        let rsp = self.regs[gpr::RSP];
        self.regs[gpr::RSP] = rsp.wrapping_sub_signed(exit.rsp_delta);
        // SAFETY: ops live as long as their block, whose code just ran.
        let op = unsafe { &*exit.op };
        self.set_rip(self.hot.page.wrapping_add(u64::from(op.start)));
        self.uncount(op, 1);
        // It is not run again: a call may have pushed over its own operand.
        let _: Fault = self.gp(0);
        self.fault_at(op);
        Ended::Fault
    }

    /// What translated code counted at the block's start and did not do:
    /// everything behind `op`, and `more`.
    fn uncount(&mut self, op: &Op, more: u64) {
        if self.translator.as_ref().is_some_and(|t| t.count) {
            let left = u64::from(op.left) + more;
            self.hot.retired = self.hot.retired.wrapping_sub(left);
        }
    }

    /// What SYSCALL and SYSRET need in translated code. They are left to the
    /// interpreter unless they do what operating systems make them do:
    /// SYSCALL clears every flag that would change more than the privilege
    /// level.
    #[inline(always)]
    fn prepare_system_calls(&mut self) {
        const MASKED: u64 = flag::ARITH | flag::TF | flag::IF | flag::AC;
        let enabled = self.efer & efer::SCE != 0;
        let masked = self.msrs.sfmask & MASKED == MASKED;
        self.hot.fast = u8::from(enabled && masked) | u8::from(enabled) << 1;
        if self.hot.star != self.msrs.star {
            self.hot.star = self.msrs.star;
            (self.hot.system_segments, self.hot.user_segments) =
                crate::system::system_call_segments(self.msrs.star);
        }
    }

    /// From RFLAGS to what LAHF and SETO would leave; RFLAGS keeps the rest.
    fn split_flags(&mut self) {
        let flags = self.rflags;
        self.hot.flags = (flags & 0xFF) << 8 | flags >> 11 & 1;
        self.rflags = flags & !flag::ARITH;
    }

    fn merge_flags(&mut self) {
        const LOW: u64 = flag::ARITH & 0xFF;
        let split = self.hot.flags;
        self.rflags = self.rflags & !flag::ARITH | split >> 8 & LOW | (split & 1) << 11;
    }

    /// Which vector registers translated code may use: as the control
    /// registers have it, and only while no SIMD exception can be raised.
    fn vector_ok(&self) -> u8 {
        const MASKS: u32 = 0x1F80;
        let sse = self.cr0 & (cr0::EM | cr0::TS) == 0
            && self.cr4 & cr4::OSFXSR != 0
            && self.vector.mxcsr & MASKS == MASKS;
        let wanted = component::SSE | component::AVX;
        let avx = sse && self.cr4 & cr4::OSXSAVE != 0 && self.xcr0 & wanted == wanted;
        u8::from(sse) | u8::from(avx) << 1
    }

    /// Translates a block for `mode`; the code's address.
    #[inline(never)]
    pub(super) fn translate(&mut self, block: &Block, mode: AccessMode) -> Option<usize> {
        if !block.current() {
            return None;
        }
        let start = block.gpa & 0xFFF;
        let bytes = block.bytes(&self.shared.ram)?;
        let decoded = self.decode_again(block, &bytes, start)?;
        let flags = liveness::analyse(&decoded);
        let options = Options {
            mode,
            count: self.translator.as_ref()?.count,
            smap: self.cr4 & cr4::SMAP != 0,
            alone: self.shared.vcpus.len() == 1,
            bmi2: self.translator.as_ref()?.bmi2,
        };
        if !self.translator.as_ref()?.has_room() {
            // Not here: the caller goes on with the block.
            self.translator.as_mut()?.full = true;
            return None;
        }
        let translator = self.translator.as_mut()?;
        let base = translator.memory.executable(translator.next);
        let mut emit = Emit::new(
            base,
            &translator.thunks,
            options,
            &mut translator.encoder,
            &mut translator.info,
            block.gpa & !0xFFF,
            start,
            decoded.len(),
        );
        let with_flags = decoded.iter().zip(flags).zip(block.ops.iter());
        let guests: Vec<_> = with_flags
            .map(|(((insn, class), flags), op)| Guest {
                insn,
                class: *class,
                flags,
                op,
                at: start + u64::from(op.off),
            })
            .collect();
        let next = guests.last().map_or(start, Guest::next);
        let mut goes_on = true;
        let mut rest = &*guests;
        while let Some(first) = rest.first() {
            let grouped;
            (goes_on, grouped) = match emit.group(rest) {
                Some((goes_on, count)) => (goes_on, count),
                None => (emit.guest(first), 1),
            };
            rest = rest.get(grouped..).unwrap_or_default();
        }
        if goes_on {
            emit.fall_through(next);
        }
        let cold = translator.memory.executable(translator.next_cold);
        let emitted = emit.finish(cold);
        if emitted.bytes.len() > MAX_BLOCK || !block.current() {
            return None;
        }
        if let Some(verified) = &mut translator.verified {
            let switches = |class| matches!(class, Class::SystemCall | Class::SystemReturn);
            let rules = Rules {
                base,
                apart: (emitted.hot, cold),
                thunks: &translator.thunks,
                scope: Scope {
                    mode,
                    switches: decoded.iter().any(|&(_, class)| switches(class)),
                },
                ops: &block.ops,
                exits: &emitted.exits,
            };
            if let Err(refusal) = verify::verify(&emitted.bytes, &rules) {
                translator.refuse(refusal);
                return None;
            }
            verified.insert(base, block.gpa & !0xFFF);
        }
        if let Some(counting) = &mut self.counting {
            counting.translated(block.gpa, mode, emitted.bytes.len(), &decoded, &block.ops);
        }
        let (hot, apart) = emitted.bytes.split_at(emitted.hot);
        // SAFETY: nothing was ever put there since all code was thrown away.
        unsafe { translator.memory.write(translator.next, hot) };
        // SAFETY: as above.
        unsafe { translator.memory.write(translator.next_cold, apart) };
        let before = translator.next;
        translator.next += hot.len().next_multiple_of(16);
        translator.next_cold += apart.len();
        translator.memory.filled(before, translator.next);
        translator.exits.push(emitted.exits);
        translator.starts.push(base);
        let left = translator.old_exits.len().saturating_sub(4);
        translator.old_exits.truncate(left);
        block.native[mode as usize].set(base);
        Some(base)
    }

    /// The block's instructions as if its page stood at address 0, up to the
    /// first that ends translated code.
    fn decode_again(
        &self,
        block: &Block,
        bytes: &[u8],
        start: u64,
    ) -> Option<Vec<(Instruction, Class)>> {
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        let mut decoded = Vec::with_capacity(block.ops.len());
        for op in &block.ops {
            let insn = decoder.decode();
            let same = insn.ip() == start + u64::from(op.off)
                && (insn.is_invalid() || insn.len() == usize::from(op.len));
            if !same {
                return None;
            }
            let known = !insn.is_invalid() && self.shared.features.allows(&insn);
            // Lockstep stops in front of what it must not run twice.
            let class = if known && !(self.lockstep.is_some() && op.has(op_flag::OUTSIDE)) {
                classify(&insn, self.cpl == 0)
            } else {
                Class::Interpret
            };
            decoded.push((insn, class));
            let ends = matches!(
                class,
                Class::AccessFlag(_)
                    | Class::Jump
                    | Class::JumpIndirect
                    | Class::Call
                    | Class::CallIndirect
                    | Class::Return
                    | Class::SystemCall
                    | Class::SystemReturn
            );
            if ends || !known {
                break;
            }
        }
        Some(decoded)
    }

    /// What translated code has built in has changed: it must be made anew.
    pub fn retranslate(&mut self) {
        if let Some(translator) = &mut self.translator {
            // Not here: the running instruction belongs to a block.
            translator.full = true;
        }
    }

    /// Throws all translated code away, and the blocks that lead to it.
    pub fn flush_code(&mut self) {
        let start = Instant::now();
        self.blocks.clear();
        self.tables().clear_jumps();
        if let Some(translator) = &mut self.translator {
            translator.forget_pending();
            translator.full = false;
            translator.starts.clear();
            translator.old_exits = std::mem::take(&mut translator.exits);
            if let Some(verified) = &mut translator.verified {
                verified.clear();
            }
            translator.next = translator.first;
            translator.next_cold = translator.first_cold();
        }
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.forget_code();
        }
        if let Some(counting) = &mut self.counting {
            counting.flushed(start.elapsed());
        }
    }
}

/// Lets the interpreter do `op` for translated code. 0: go on behind it; else
/// a [`Reason`], with RIP and RFLAGS set.
///
/// # Safety
/// Called by translated code of `cpu`, with registers spilled.
pub(super) unsafe extern "sysv64" fn interpret(cpu: *mut Cpu, op: *const Op) -> u32 {
    // SAFETY: translated code passes its vCPU, which nobody else reaches
    // while `run` is on the stack, and an op of the block that runs.
    let (cpu, op) = unsafe { (&mut *cpu, &*op) };
    cpu.set_rip(cpu.hot.page.wrapping_add(u64::from(op.start)));
    cpu.merge_flags();
    let ran = (op.run)(cpu, op);
    if let Some(counting) = &mut cpu.counting
        && matches!(ran, Ok(flow) if flow != Flow::Again)
    {
        counting.helped(op);
    }
    let reason = match ran {
        Ok(Flow::Next) => {
            if cpu.tables().journal_len as usize >= JOURNAL {
                cpu.tables().clear_pages();
            }
            let loaded = cpu.hot.temp[0] as u8;
            let ok = cpu.vector_ok();
            cpu.hot.vector_ok = ok;
            let lost = loaded == 1 && ok & 1 == 0 || loaded == 2 && ok & 2 == 0;
            // The code behind the instruction may be stale now.
            let changed = cpu.code_changed.replace(false);
            if !lost && !changed && !cpu.recheck && cpu.own.attention().load(Ordering::Relaxed) == 0
            {
                cpu.split_flags();
                return 0;
            }
            cpu.uncount(op, 0);
            cpu.set_rip(op.next_rip(cpu));
            Reason::Done
        }
        Ok(Flow::Jump) => {
            cpu.uncount(op, 0);
            Reason::Done
        }
        Ok(Flow::End) => {
            cpu.uncount(op, 0);
            cpu.set_rip(op.next_rip(cpu));
            Reason::Done
        }
        Ok(Flow::Again) => {
            cpu.uncount(op, 1);
            cpu.between_iterations = true;
            cpu.set_rip(op.rip(cpu));
            Reason::Done
        }
        Err(_) => {
            cpu.uncount(op, 1);
            cpu.fault_at(op);
            Reason::Fault
        }
    };
    reason as u32
}

/// Leaves translated code in front of `op`, which asked for the interpreter.
pub(super) fn leave_before(cpu: &mut Cpu, op: &Op) -> u32 {
    cpu.merge_flags();
    cpu.uncount(op, 1);
    cpu.set_rip(op.linear(cpu.hot.page));
    Reason::Done as u32
}
