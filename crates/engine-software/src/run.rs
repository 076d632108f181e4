//! The run loop.
//!
//! ```text
//!          ┌──────────────────────────────────────────────┐
//!          ▼                                              │
//!   events? ──recheck, attention, timer──► look at them ──┼─► Stop
//!          │ no                             sleep in HLT  │
//!          ▼                                              │
//!   lookup block ──fault──► deliver ──────────────────────┤
//!          ▼                   ▲                          │
//!   execute its ops ──fault────┘                          │
//!          └───────────── branch, end ────────────────────┘
//! ```
//!
//! Events are looked at between blocks. Whatever changes what may be
//! delivered (IF, TPR, shadows, a pending trap) ends its block and sets
//! `recheck`; other threads set attention bits. The timer is compared with
//! the clock every few hundred blocks. While something must be looked at
//! after each instruction (TF, RF, a shadow, single step), blocks are cut to
//! one instruction (`single`).

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use croft_engine::{Breakpoint, CpuIo, DebugStop, Stop};

use crate::block::Block;
use crate::cpu::{Activity, CodeSize, Cpu, flag, seg};
use crate::fault::{Raised, vector};
use crate::interrupt::{Delivery, Event};
use crate::op::{Flow, Op};
use crate::shared::{attention, lock};

/// Blocks between two looks at the clock: about 20 µs.
const POLL_EVERY: u32 = 256;

/// EBX of CPUID leaf 0 where the vendor is Intel: "Genu".
const INTEL: u32 = u32::from_le_bytes(*b"Genu");

/// What looking at events came to.
enum Look {
    Run,
    Stop(Stop),
}

/// How a block ended.
pub enum Ended {
    /// RIP stands at the next instruction.
    Done,
    /// The instruction at RIP raised what stands in `raised`.
    Fault,
}

impl Cpu {
    /// Runs until there is a reason to stop.
    pub fn run(&mut self, io: &dyn CpuIo) -> Stop {
        // SAFETY: only the lifetime changes. The pointer is used by
        // `Cpu::bus` only, while this function is on the stack, and cleared
        // before it returns.
        let io: NonNull<dyn CpuIo> =
            unsafe { std::mem::transmute(NonNull::from(io) as NonNull<dyn CpuIo + '_>) };
        self.io = Some(io);
        self.recheck = true;
        self.look = true;
        self.own.set_awake(true);
        let stop = self.run_loop();
        self.publish_counts(true);
        self.own.set_awake(false);
        self.io = None;
        stop
    }

    fn run_loop(&mut self) -> Stop {
        loop {
            if self.translator.as_ref().is_some_and(|t| t.is_full()) {
                if let Some(refusal) = self.refused_code() {
                    return Stop::Failed(refusal);
                }
                self.flush_code();
            }
            self.poll_in = self.poll_in.wrapping_sub(1);
            if self.recheck
                || self.poll_in == 0
                || self.own.attention().load(Ordering::Relaxed) != 0
            {
                if let Some(translator) = &mut self.translator {
                    translator.forget_pending();
                }
                if let Look::Stop(stop) = self.look_at_events() {
                    return stop;
                }
            }
            let goes_on = std::mem::take(&mut self.between_iterations);
            let ended = match self.lookup() {
                // SAFETY: the block stays in the cache until the next lookup,
                // which only this loop makes.
                Ok(block) => match self.run_block(unsafe { &*block }, goes_on) {
                    Ok(ended) => ended,
                    Err(stop) => return stop,
                },
                Err(_) => Ended::Fault,
            };
            if self.single || self.debug_hits != 0 || self.watch_hit.is_some() {
                if let Some(stop) = self.after_instruction(&ended) {
                    return stop;
                }
            } else if matches!(ended, Ended::Fault)
                && let Some(stop) = self.raise_to_guest(self.raised)
            {
                return stop;
            }
        }
    }

    /// Runs a block, translated if possible. Whether it `goes_on` with
    /// iterations of a repeated instruction: those before met its breakpoint.
    #[inline(always)]
    fn run_block(&mut self, block: &Block, goes_on: bool) -> Result<Ended, Stop> {
        if let Some(mode) = self.native_mode() {
            if self.lockstep.is_some() {
                if let Some(ended) = self.run_lockstep(block, mode) {
                    return ended;
                }
            } else if let Some(ended) = self.run_native(block, mode) {
                return Ok(ended);
            }
        }
        match self.prepare(block, goes_on) {
            Ok(count) => Ok(self.execute(ops_of(block, count))),
            Err(Some(stop)) => Err(stop),
            Err(None) => Ok(Ended::Fault),
        }
    }

    /// How many of a block's instructions may run now. `Err(None)`: none,
    /// and the reason is an exception.
    #[inline(always)]
    fn prepare(&mut self, block: &Block, goes_on: bool) -> Result<usize, Option<Stop>> {
        if self.debug.breakpoints.is_empty() && self.dr7 & 0xFF == 0 && self.code64() {
            return Ok(if self.single { 1 } else { block.ops.len() });
        }
        self.prepare_slow(block, goes_on)
    }

    #[inline(never)]
    fn prepare_slow(&mut self, block: &Block, goes_on: bool) -> Result<usize, Option<Stop>> {
        let mut count = if self.single { 1 } else { block.ops.len() };
        let rip = self.rip();
        let base = if self.code64() {
            0
        } else {
            let cs = self.segs[usize::from(seg::CS)];
            // Instructions that reach beyond CS's limit fault.
            let inside =
                |op: &Op| rip + u64::from(op.off) + u64::from(op.len) - 1 <= u64::from(cs.limit);
            count = count.min(block.ops.iter().take_while(|op| inside(op)).count());
            if count == 0 {
                self.raised = Raised {
                    vector: vector::GP,
                    error: Some(0),
                    ..Raised::default()
                };
                return Err(None);
            }
            cs.base
        };
        let start = base.wrapping_add(rip);
        let reach = |address: u64, block: &Block| {
            block
                .ops
                .iter()
                .position(|op| start.wrapping_add(u64::from(op.off)) == address)
        };
        for breakpoint in &self.debug.breakpoints {
            if let Breakpoint::Code(address) = *breakpoint
                && let Some(before) = reach(address, block)
            {
                if before == 0 && self.debug_resume != Some(address) {
                    self.debug_resume = Some(address);
                    return Err(Some(Stop::Debug(DebugStop::Breakpoint(*breakpoint))));
                }
                if before != 0 {
                    count = count.min(before);
                }
            }
        }
        self.debug_resume = None;
        let mut hits = 0;
        for n in 0..4 {
            let execute = self.dr7 >> (16 + 4 * n) & 3 == 0;
            if self.dr7 >> (2 * n) & 3 != 0
                && execute
                && let Some(before) = reach(self.dr[n as usize], block)
            {
                if before == 0 {
                    hits |= 1 << n;
                } else {
                    count = count.min(before);
                }
            }
        }
        // On Intel's processors MOV SS and POP SS hold these back, and lose
        // them (SDM vol. 3, 7.8.3 and 18.3.1.1).
        let held = self.after_ss && self.cpuid_leaf(0, 0).ebx == INTEL;
        if hits != 0 && self.rflags & flag::RF == 0 && !held && !goes_on {
            self.raised = Raised {
                vector: vector::DB,
                dr6: hits,
                ..Raised::default()
            };
            return Err(None);
        }
        Ok(count)
    }

    /// Executes instructions of one block.
    #[inline(always)]
    pub fn execute(&mut self, ops: &[Op]) -> Ended {
        let mut done = 0;
        for op in ops {
            match (op.run)(self, op) {
                Ok(Flow::Next) => {
                    done += 1;
                    if self.code_changed.get() {
                        self.code_changed.set(false);
                        self.retired += done;
                        self.go_behind(op);
                        return Ended::Done;
                    }
                }
                Ok(Flow::Jump) => {
                    self.retired += done + 1;
                    return Ended::Done;
                }
                Ok(Flow::End) => {
                    self.retired += done + 1;
                    self.go_behind(op);
                    return Ended::Done;
                }
                Ok(Flow::Again) => {
                    self.retired += done;
                    self.between_iterations = true;
                    self.set_rip(self.wrap(op.rip(self)));
                    return Ended::Done;
                }
                Err(_) => {
                    self.retired += done;
                    self.fault_at(op);
                    return Ended::Fault;
                }
            }
        }
        self.retired += done;
        if let Some(op) = ops.last() {
            self.go_behind(op);
        }
        Ended::Done
    }

    /// RIP arithmetic wraps at the code's size.
    #[inline(always)]
    fn wrap(&self, rip: u64) -> u64 {
        match self.code_size {
            CodeSize::Bits64 => rip,
            CodeSize::Bits32 => rip & 0xFFFF_FFFF,
            CodeSize::Bits16 => rip & 0xFFFF,
        }
    }

    #[inline(always)]
    fn go_behind(&mut self, op: &Op) {
        self.set_rip(self.wrap(op.next_rip(self)));
    }

    /// Puts RIP where the exception's frame shall point.
    #[cold]
    pub fn fault_at(&mut self, op: &Op) {
        let rip = if self.raised.trap {
            op.next_rip(self)
        } else {
            op.rip(self)
        };
        self.set_rip(self.wrap(rip));
        if self.raised.non_canonical && op.seg == seg::SS {
            self.raised.vector = vector::SS;
        }
    }

    /// Delivers an exception; a triple fault ends the run.
    fn raise_to_guest(&mut self, raised: Raised) -> Option<Stop> {
        self.recheck = true;
        match self.deliver(Event::Exception(raised)) {
            Delivery::Done => None,
            Delivery::TripleFault => Some(Stop::TripleFault(Box::new(self.save_state()))),
        }
    }

    /// What follows an instruction that ran on its own, or touched a data
    /// breakpoint.
    #[cold]
    fn after_instruction(&mut self, ended: &Ended) -> Option<Stop> {
        self.recheck = true;
        let stepping = std::mem::take(&mut self.was_stepping);
        if std::mem::take(&mut self.was_resuming) && matches!(ended, Ended::Done) {
            self.rflags &= !flag::RF;
        }
        let hits = std::mem::take(&mut self.debug_hits);
        let watched = self.watch_hit.take();
        let cancelled = std::mem::take(&mut self.step_cancelled);
        if matches!(ended, Ended::Fault) {
            if let Some(stop) = self.raise_to_guest(self.raised) {
                return Some(stop);
            }
        } else {
            let step = if stepping && !cancelled { 1 << 14 } else { 0 };
            if hits | step != 0 {
                if self.shadow_ss {
                    // MOV SS and POP SS hold debug traps back.
                    self.debug_hits = hits;
                } else {
                    let trap = Raised {
                        vector: vector::DB,
                        dr6: hits | step,
                        trap: true,
                        ..Raised::default()
                    };
                    if let Some(stop) = self.raise_to_guest(trap) {
                        return Some(stop);
                    }
                }
            }
        }
        if let Some((address, len, reads)) = watched {
            let hit = Breakpoint::Data {
                address,
                len,
                reads,
            };
            return Some(Stop::Debug(DebugStop::Breakpoint(hit)));
        }
        if self.debug.single_step {
            return Some(Stop::Debug(DebugStop::Step));
        }
        None
    }

    /// Looks at everything that can come between two instructions.
    #[inline(never)]
    fn look_at_events(&mut self) -> Look {
        if self.counting.is_some() {
            self.publish_counts(false);
        }
        loop {
            self.recheck = false;
            if self.poll_in == 0 || self.poll_in > POLL_EVERY {
                self.poll_in = POLL_EVERY;
            }
            let bits = self.own.attention().swap(0, Ordering::SeqCst);
            if bits & attention::KICK != 0 {
                self.own
                    .attention()
                    .fetch_or(bits & !attention::KICK, Ordering::SeqCst);
                return Look::Stop(Stop::Kicked);
            }
            if bits & attention::REVOKE != 0 {
                self.give_revoked();
            }
            if bits & attention::CODE != 0 {
                self.tables().clear_jumps();
            }
            if bits & attention::INTERRUPT != 0 || self.tsc() >= self.timer_due {
                self.look = true;
            }
            if self.look {
                self.poll_timers();
                self.take_signals();
            }
            if let Some(stop) = self.deliver_one() {
                return Look::Stop(stop);
            }
            if self.activity == Activity::Running {
                break;
            }
            self.sleep();
        }
        // What is decided here holds for the next instruction only if it runs
        // alone.
        self.was_stepping = self.rflags & flag::TF != 0;
        self.after_ss = self.shadow_ss;
        self.single = self.was_stepping
            || self.rflags & flag::RF != 0
            || self.shadow
            || self.debug_hits != 0
            || self.debug.single_step
            || self.data_breakpoints();
        if self.single {
            self.recheck = true;
            self.shadow = false;
            self.shadow_ss = false;
            // RF suspends instruction breakpoints for one instruction.
            self.was_resuming = self.rflags & flag::RF != 0;
        }
        Look::Run
    }

    /// Gives the right to store unseen back, if somebody asks.
    pub fn give_revoked(&mut self) {
        let wanted = self.own.revokes_wanted();
        self.tables().revoke_all();
        self.own.revoked(wanted);
    }

    /// Sleeps in HLT or before start-up, until there may be an event.
    fn sleep(&mut self) {
        let now = self.tsc();
        let timeout = (self.timer_due != u64::MAX).then(|| {
            let ticks = self.timer_due.saturating_sub(now);
            Duration::from_nanos(self.shared.clock.ticks_to_ns(ticks))
        });
        let start = Instant::now();
        let patience = self.has_much().then(|| self.rest.patience(start));
        self.own.set_awake(false);
        self.own.sleep(timeout.into_iter().chain(patience).min());
        self.own.set_awake(true);
        self.look = true;
        let end = Instant::now();
        if self.rest.slept(end - start, end) && self.has_much() {
            self.give_back();
        }
    }

    /// Lets timers that are due raise their interrupts, and finds the next.
    fn poll_timers(&mut self) {
        let tsc = self.tsc();
        let now = self.shared.clock_ns();
        let mut due = {
            let mut lapic = lock(&self.own.lapic);
            lapic.poll_timer(now, tsc);
            let count = lapic.next_expiry_ns(now);
            let deadline = lapic.tsc_deadline();
            let at = count.map(|ns| self.own_ticks(ns));
            at.into_iter().chain(deadline).min().unwrap_or(u64::MAX)
        };
        if self.index == 0 {
            let next = self.shared.with_chips(|chips, out| {
                chips.poll(now, out);
                chips.next_event_ns(now)
            });
            due = due.min(next.map_or(u64::MAX, |ns| self.own_ticks(ns)));
        }
        if due != self.timer_due {
            self.timer_due = due;
            let after = (due != u64::MAX).then(|| {
                let ticks = due.saturating_sub(tsc);
                Duration::from_nanos(self.shared.clock.ticks_to_ns(ticks))
            });
            self.shared.ticker.set(self.index, after);
        }
    }

    /// This vCPU's TSC at guest time `ns`.
    fn own_ticks(&self, ns: u64) -> u64 {
        let adjust = self.tsc().wrapping_sub(self.shared.clock.tsc());
        self.shared.clock.tsc_at(ns).wrapping_add(adjust)
    }

    /// Takes INIT, start-up and NMI from the local APIC.
    fn take_signals(&mut self) {
        let (init, startup, nmi) = {
            let mut lapic = lock(&self.own.lapic);
            if !lapic.has_event() {
                return;
            }
            let init = lapic.take_init();
            if init {
                lapic.init_reset();
            }
            // Of two NMIs the second waits in the local APIC until the first
            // is being handled; then any number is one.
            let mut nmi = false;
            while (self.nmi_blocked || !(self.nmi_pending || nmi)) && lapic.take_nmi() {
                nmi = true;
            }
            (init, lapic.take_startup(), nmi)
        };
        if init {
            self.init_reset();
        }
        if let Some(page) = startup
            && self.activity == Activity::WaitForStartup
        {
            self.start_up(page);
        }
        self.nmi_pending |= nmi;
    }

    /// Delivers the one event that is next, if any may be delivered now.
    fn deliver_one(&mut self) -> Option<Stop> {
        if matches!(
            self.activity,
            Activity::Uninitialized | Activity::WaitForStartup
        ) {
            return None;
        }
        if let Some(raised) = self.inject.take() {
            return self.raise_to_guest(raised);
        }
        if let Some(vector) = self.inject_interrupt.take() {
            return self.deliver_event(Event::Interrupt(vector));
        }
        if self.debug_hits != 0 && !self.shadow_ss && !self.shadow {
            let trap = Raised {
                vector: vector::DB,
                dr6: std::mem::take(&mut self.debug_hits),
                trap: true,
                ..Raised::default()
            };
            return self.raise_to_guest(trap);
        }
        if self.shadow {
            return None;
        }
        if self.nmi_pending && !self.nmi_blocked {
            self.nmi_pending = false;
            return self.deliver_event(Event::Nmi);
        }
        if !self.look || self.rflags & flag::IF == 0 {
            return None;
        }
        match self.acknowledge() {
            Some(vector) => self.deliver_event(Event::Interrupt(vector)),
            None => {
                self.look = false;
                None
            }
        }
    }

    /// The interrupt to deliver now, moved into service.
    fn acknowledge(&mut self) -> Option<u8> {
        self.collect_pv_eoi();
        let (vector, from_pic) = {
            let mut lapic = lock(&self.own.lapic);
            let vector = lapic.acknowledge();
            let pic = vector.is_none() && (lapic.accepts_pic_interrupts() || lapic.take_ext_int());
            (vector, pic && self.index == 0)
        };
        if vector.is_some() {
            self.offer_pv_eoi();
            return vector;
        }
        if !from_pic {
            return None;
        }
        self.shared
            .with_chips(|chips, out| chips.intr().then(|| chips.acknowledge_pic(out)))
    }

    fn deliver_event(&mut self, event: Event) -> Option<Stop> {
        self.recheck = true;
        match self.deliver(event) {
            Delivery::Done => None,
            Delivery::TripleFault => Some(Stop::TripleFault(Box::new(self.save_state()))),
        }
    }

    /// After this vCPU changed its own local APIC: what may be delivered and
    /// when its timer is due must be found anew.
    pub fn lapic_changed(&mut self) {
        self.look = true;
        self.recheck = true;
    }
}

/// The first `count` instructions of a block, without a borrow of the vCPU.
#[inline(always)]
fn ops_of<'a>(block: *const Block, count: usize) -> &'a [Op] {
    // SAFETY: the block stays in the cache, unmoved, until the vCPU's next
    // lookup; the run loop lets go of the slice before that. `count` is at
    // most the block's length.
    unsafe {
        let ops: &'a [Op] = &(*block).ops;
        ops.get_unchecked(..count)
    }
}
