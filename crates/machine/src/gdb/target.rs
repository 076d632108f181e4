//! The guest as gdb's library wants it.

use std::sync::Arc;
use std::sync::mpsc;

use croft_engine::{Breakpoint, DebugControl, DebugStop, Vcpu};
use croft_memory::{GuestRam, PAGE_SIZE};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

use super::registers;
use super::server::Mailbox;
use super::{DebugRequest, Task};
use crate::config::Ended;
use crate::events::{Event, Events};

/// One debugger's view of the machine.
pub struct DebugTarget {
    events: Events,
    ram: GuestRam,
    vcpus: usize,
    mailbox: Arc<Mailbox>,
    /// Everything gdb inserted; what kind a watchpoint is the engine does not
    /// remember.
    software: Vec<u64>,
    hardware: Vec<u64>,
    watches: Vec<(u64, u8, WatchKind)>,
    /// The vCPUs that the next resume steps.
    steps: Vec<usize>,
}

fn tid(vcpu: usize) -> Tid {
    Tid::MIN.saturating_add(vcpu)
}

fn vcpu_of(tid: Tid) -> usize {
    tid.get() - 1
}

impl DebugTarget {
    pub fn new(events: Events, ram: GuestRam, vcpus: usize, mailbox: Arc<Mailbox>) -> Self {
        DebugTarget {
            events,
            ram,
            vcpus,
            mailbox,
            software: Vec::new(),
            hardware: Vec::new(),
            watches: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Holds all vCPUs.
    pub fn hold(&self) -> Result<(), Ended> {
        let (done, answer) = mpsc::sync_channel(1);
        self.send(DebugRequest::Hold(done))?;
        answer.recv().map_err(|_| Ended)?;
        // A stop that came just before is part of this one.
        self.mailbox.take_report();
        Ok(())
    }

    /// Forgets everything and lets the guest go on.
    pub fn leave(&mut self) {
        self.software.clear();
        self.hardware.clear();
        self.watches.clear();
        self.steps.clear();
        if self.hold().is_ok() {
            self.apply();
        }
        let _ = self.send(DebugRequest::Leave);
    }

    /// Ends the machine.
    pub fn kill(&self) {
        let _ = self.send(DebugRequest::Kill);
    }

    /// Why the guest stopped, in gdb's words.
    pub fn reason(&self, vcpu: usize, stop: DebugStop) -> MultiThreadStopReason<u64> {
        let tid = tid(vcpu);
        match stop {
            DebugStop::Step => MultiThreadStopReason::SignalWithThread {
                tid,
                signal: Signal::SIGTRAP,
            },
            DebugStop::Breakpoint(Breakpoint::Code(address)) => {
                match self.software.contains(&address) {
                    true => MultiThreadStopReason::SwBreak(tid),
                    false => MultiThreadStopReason::HwBreak(tid),
                }
            }
            DebugStop::Breakpoint(Breakpoint::Data { address, .. }) => {
                let known = self.watches.iter().find(|watch| watch.0 == address);
                MultiThreadStopReason::Watch {
                    tid,
                    kind: known.map_or(WatchKind::Write, |watch| watch.2),
                    addr: address,
                }
            }
        }
    }

    fn send(&self, request: DebugRequest) -> Result<(), Ended> {
        self.events.send(Event::Debug(request)).map_err(|_| Ended)
    }

    fn with<R: Send + 'static>(
        &self,
        vcpu: usize,
        task: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (done, answer) = mpsc::sync_channel(1);
        let task: Task = Box::new(move |vcpu| {
            let _ = done.send(task(vcpu));
        });
        self.send(DebugRequest::Access { vcpu, task })?;
        answer.recv().map_err(|_| Ended)
    }

    /// Tells every vCPU what to stop for; false when one cannot.
    fn apply(&self) -> bool {
        let code = self.software.iter().chain(&self.hardware);
        let code = code.map(|address| Breakpoint::Code(*address));
        let data = self
            .watches
            .iter()
            .map(|(address, len, kind)| Breakpoint::Data {
                address: *address,
                len: *len,
                reads: *kind != WatchKind::Write,
            });
        let breakpoints: Vec<Breakpoint> = code.chain(data).collect();
        (0..self.vcpus).all(|vcpu| {
            let control = DebugControl {
                single_step: self.steps.contains(&vcpu),
                breakpoints: breakpoints.clone(),
            };
            let set = self.with(vcpu, move |vcpu| vcpu.set_debug(&control).is_ok());
            set == Ok(true)
        })
    }

    /// Keeps a change that every vCPU accepts and takes back any other.
    fn change(&mut self, change: impl FnOnce(&mut Self)) -> bool {
        let before = (
            self.software.clone(),
            self.hardware.clone(),
            self.watches.clone(),
        );
        change(self);
        let done = self.apply();
        if !done {
            (self.software, self.hardware, self.watches) = before;
            self.apply();
        }
        done
    }

    /// Calls `each` with the guest-physical address of every page-wise piece
    /// of `len` bytes at linear `start`, until there is no mapping or `each`
    /// says false. Returns the bytes done.
    fn pieces(
        &self,
        tid: Tid,
        start: u64,
        len: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>) -> bool,
    ) -> Result<usize, Ended> {
        let mut done = 0;
        while done < len {
            let linear = start.wrapping_add(done as u64);
            let in_page = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
            let now = in_page.min(len - done);
            let found = self.with(vcpu_of(tid), move |vcpu| vcpu.translate(linear))?;
            match found {
                Some(found) if each(found.physical, done..done + now) => done += now,
                _ => break,
            }
        }
        Ok(done)
    }
}

impl Target for DebugTarget {
    type Arch = X86_64_SSE;
    type Error = Ended;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64_SSE, Ended> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for DebugTarget {
    fn read_registers(&mut self, out: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let state = self.with(vcpu_of(tid), |vcpu| vcpu.save().ok());
        let state = state.map_err(TargetError::Fatal)?;
        *out = registers::to_gdb(&state.ok_or(TargetError::NonFatal)?);
        Ok(())
    }

    fn write_registers(&mut self, new: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let new = new.clone();
        let restored = self.with(vcpu_of(tid), move |vcpu| {
            let mut state = vcpu.save().ok()?;
            registers::from_gdb(&new, &mut state);
            vcpu.restore(&state).ok()
        });
        let restored = restored.map_err(TargetError::Fatal)?;
        restored.ok_or(TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let len = data.len();
        let ram = self.ram.clone();
        let done = self.pieces(tid, start, len, |physical, piece| {
            ram.read(physical, &mut data[piece]).is_ok()
        });
        match done.map_err(TargetError::Fatal)? {
            0 if len != 0 => Err(TargetError::NonFatal),
            done => Ok(done),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let ram = self.ram.clone();
        let done = self.pieces(tid, start, data.len(), |physical, piece| {
            ram.write(physical, &data[piece]).is_ok()
        });
        match done.map_err(TargetError::Fatal)? == data.len() {
            true => Ok(()),
            false => Err(TargetError::NonFatal),
        }
    }

    fn list_active_threads(&mut self, register: &mut dyn FnMut(Tid)) -> Result<(), Ended> {
        (0..self.vcpus).for_each(|vcpu| register(tid(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for DebugTarget {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, Ended> {
        let state = self.with(vcpu_of(tid), |vcpu| vcpu.save().ok())?;
        let doing = state.map_or("unknown".to_owned(), |state| {
            format!("{:?}", state.mp_state)
        });
        let text = format!("cpu{} {doing}", vcpu_of(tid));
        let len = text.len().min(buffer.len());
        buffer[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for DebugTarget {
    fn resume(&mut self) -> Result<(), Ended> {
        self.apply();
        self.mailbox.take_report();
        self.send(DebugRequest::Run(self.steps.clone()))
    }

    fn clear_resume_actions(&mut self) -> Result<(), Ended> {
        self.steps.clear();
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _: Tid, _: Option<Signal>) -> Result<(), Ended> {
        // The default; a signal means nothing to a machine.
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for DebugTarget {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Ended> {
        self.steps.push(vcpu_of(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for DebugTarget {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Ended> {
        // A stepped vCPU runs alone anyway.
        Ok(())
    }
}

impl Breakpoints for DebugTarget {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for DebugTarget {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.change(|this| this.software.push(address)))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.change(|this| this.software.retain(|other| *other != address)))
    }
}

impl HwBreakpoint for DebugTarget {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.change(|this| this.hardware.push(address)))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.change(|this| this.hardware.retain(|other| *other != address)))
    }
}

impl HwWatchpoint for DebugTarget {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let Some(len) = watch_len(address, len) else {
            return Ok(false);
        };
        Ok(self.change(|this| this.watches.push((address, len, kind))))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let Some(len) = watch_len(address, len) else {
            return Ok(false);
        };
        let watch = (address, len, kind);
        Ok(self.change(|this| this.watches.retain(|other| *other != watch)))
    }
}

/// The lengths that hardware watches: aligned 1, 2, 4 and 8 bytes.
fn watch_len(address: u64, len: u64) -> Option<u8> {
    matches!(len, 1 | 2 | 4 | 8)
        .then_some(len as u8)
        .filter(|len| address.is_multiple_of(u64::from(*len)))
}
