//! The owner of a running machine: one thread that takes every event from one
//! queue, so that nothing about the machine's life happens twice or at once.
//!
//! A machine's vCPUs run while neither the operator, a debugger nor a failure
//! of the host's (`fault`) holds them; [`Owner::settle`] brings about whatever
//! was decided.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use croft_engine::{CpuState, EngineError, Stop};

use crate::config::{Outcome, State};
use crate::console::{ConsolePump, DiskFault};
use crate::error::MachineError;
use crate::events::{Event, Request};
use crate::fault::Fault;
use crate::gdb::{Debugged, GdbServer};
use crate::handle::{ResizeError, SaveError};
use crate::machine::Machine;
use crate::power::PowerRequest;
use crate::report;
use crate::saved::{self, MachineState, SavedDisk, SavedNic};
use crate::sync::lock;
use crate::timers::Timers;
use crate::vcpus::VcpuThread;

/// See the [module](self).
pub struct Owner {
    machine: Machine,
    threads: Vec<VcpuThread>,
    timers: Timers,
    pump: ConsolePump,
    gdb: Option<GdbServer>,
    /// Events that arrived while the vCPUs were being stopped.
    backlog: VecDeque<Event>,
    /// The operator paused the machine.
    held: bool,
    /// The host failed at a disk.
    fault: Fault,
    /// The first instruction may have been executed.
    started: bool,
    /// Guest time runs.
    time_runs: bool,
    /// The machine is being saved.
    saving: bool,
    debugged: Debugged,
}

impl Owner {
    /// Starts the machine's threads; no vCPU runs yet.
    pub fn start(mut machine: Machine) -> std::io::Result<Self> {
        let chipset = &machine.chipset;
        let timers = Timers::start(
            chipset.bus.clone(),
            chipset.clock.clone(),
            chipset.timers.clone(),
        )?;
        let pump = ConsolePump::start(
            chipset.uart.clone(),
            chipset.console.clone(),
            machine.console.clone(),
        )?;
        let mut threads = Vec::with_capacity(machine.vcpus.len());
        for (index, vcpu) in machine.vcpus.drain(..).enumerate() {
            let bus = machine.chipset.bus.clone();
            let events = machine.events.clone();
            threads.push(VcpuThread::start(index, vcpu, bus, events)?);
        }
        let gdb = match machine.gdb.take() {
            Some(listener) => Some(GdbServer::start(
                listener,
                machine.events.clone(),
                machine.ram.clone(),
                threads.len(),
                machine.console.clone(),
            )?),
            None => None,
        };
        let fault = Fault::new(machine.fault_interval);
        Ok(Owner {
            machine,
            threads,
            timers,
            pump,
            gdb,
            backlog: VecDeque::new(),
            held: false,
            fault,
            started: false,
            time_runs: false,
            saving: false,
            debugged: Debugged::default(),
        })
    }

    /// Runs the machine until it ends.
    pub fn run(mut self) -> Outcome {
        let outcome = loop {
            self.settle();
            let event = match self.backlog.pop_front() {
                Some(event) => event,
                None => match self.next() {
                    Ok(Some(event)) => event,
                    Ok(None) => continue,
                    Err(Closed) => break Outcome::Failed("its event queue closed".to_owned()),
                },
            };
            match self.handle(event) {
                Ok(None) => {}
                Ok(Some(outcome)) => break outcome,
                Err(error) => break Outcome::Failed(error.to_string()),
            }
        };
        self.halt();
        self.finish(&outcome);
        outcome
    }

    /// Ends all threads.
    fn finish(self, outcome: &Outcome) {
        *lock(&self.machine.state) = State::Stopped;
        // Whoever still waits for an answer learns that there is none.
        drop(self.machine.queue);
        drop(self.backlog);
        if let Some(gdb) = self.gdb {
            gdb.finish();
        }
        self.threads.into_iter().for_each(VcpuThread::finish);
        self.timers.finish();
        self.pump.finish(*outcome == Outcome::Requested);
    }

    fn handle(&mut self, event: Event) -> Result<Option<Outcome>, MachineError> {
        match event {
            Event::Stopped { vcpu, stop } => return self.stopped(vcpu, stop),
            Event::Power => {
                if let Some(request) = self.machine.power.take() {
                    return self.power(request);
                }
            }
            Event::Request(Request::Stop) => return Ok(Some(Outcome::Requested)),
            Event::Request(Request::Pause(done)) => {
                self.held = true;
                self.retry_ends();
                self.settle();
                let _ = done.send(());
            }
            Event::DiskFailed { disk, message } => {
                self.disk_failed(&DiskFault { disk, message });
            }
            Event::Request(Request::Resume(done)) => {
                self.held = false;
                self.retry_ends();
                self.fault.ends();
                self.settle();
                let _ = done.send(());
            }
            Event::Request(Request::ResizeDisk(index, bytes, done)) => {
                let _ = done.send(self.resize_disk(index, bytes));
            }
            Event::Request(Request::AttachDisk(config, done)) => {
                // Nothing but guest time decides whether devices run.
                self.retry_ends();
                let _ = done.send(self.machine.attach_disk(config, self.time_runs));
            }
            Event::Request(Request::AttachNic(options, done)) => {
                self.retry_ends();
                let _ = done.send(self.machine.attach_nic(options, self.time_runs));
            }
            Event::Request(Request::Detach(device, force, done)) => {
                let _ = done.send(self.machine.detach(&device, force));
            }
            Event::Request(Request::Reset(done)) => {
                self.reset()?;
                let _ = done.send(());
            }
            // Here, since it may interrupt the guest: a machine that is being
            // saved stands still.
            Event::Request(Request::Balloon(bytes, done)) => {
                self.machine.balloon.set_target(bytes);
                let _ = done.send(());
            }
            Event::Request(Request::Save(mut out, devices, done)) => {
                if self.saving {
                    let _ = done.send(Err(SaveError::Busy));
                    return Ok(None);
                }
                if let Some(outcome) = self.stand_still()? {
                    return Ok(Some(outcome));
                }
                let saved = match devices {
                    Some(names) if !self.machine.places.are(&names) => Err(SaveError::Changed),
                    _ => self.save(&mut *out),
                };
                let outcome = saved.is_ok().then_some(Outcome::Saved);
                let _ = done.send(saved);
                return Ok(outcome);
            }
            Event::Debug(request) => {
                self.halt();
                return Ok(self.debugged.handle(request, &self.threads));
            }
            Event::Ejected(device) => self.machine.detached(device),
        }
        Ok(None)
    }

    fn stopped(&mut self, vcpu: usize, stop: Stop) -> Result<Option<Outcome>, MachineError> {
        match stop {
            // A kick that was meant for an earlier run.
            Stop::Kicked => Ok(None),
            Stop::Reset => self.power(PowerRequest::Reset),
            Stop::Shutdown => self.power(PowerRequest::Off),
            Stop::TripleFault(state) => {
                let registers = report::registers(&state);
                Ok(Some(Outcome::TripleFault(format!(
                    "vCPU {vcpu} faulted three times\n{registers}"
                ))))
            }
            Stop::Debug(stop) => {
                if self.debugged.stopped() {
                    self.halt();
                    if let Some(gdb) = &self.gdb {
                        gdb.report(vcpu, stop);
                    }
                }
                Ok(None)
            }
            Stop::Failed(text) => Ok(Some(Outcome::Failed(format!("vCPU {vcpu}: {text}")))),
        }
    }

    fn power(&mut self, request: PowerRequest) -> Result<Option<Outcome>, MachineError> {
        match request {
            PowerRequest::Off => Ok(Some(Outcome::PowerOff)),
            PowerRequest::DebugExit(status) => Ok(Some(Outcome::DebugExit(status))),
            PowerRequest::Reset if self.machine.no_reboot => Ok(Some(Outcome::Reset)),
            PowerRequest::Reset => self.reset().map(|()| None),
        }
    }

    /// The next event; `None` when it is time to look whether the host does
    /// what it could not.
    fn next(&mut self) -> Result<Option<Event>, Closed> {
        let threads = &mut self.threads;
        let Some(look) = self.fault.look().filter(|_| !self.held) else {
            return receive(&self.machine.queue, threads, None).map(Some);
        };
        match receive(&self.machine.queue, threads, Some(look)) {
            Ok(event) => Ok(Some(event)),
            Err(Closed) if Instant::now() >= look => {
                self.look_again();
                Ok(None)
            }
            Err(Closed) => Err(Closed),
        }
    }

    fn resize_disk(&self, index: usize, bytes: u64) -> Result<(), ResizeError> {
        let place = u8::try_from(index).ok();
        let disk = place.and_then(|place| self.machine.places.disks.get(&place));
        let disk = disk.ok_or(ResizeError::NoDisk(index))?;
        Ok(disk.handle.resize(bytes)?)
    }

    /// Stops the machine, of which the operator is told once.
    fn disk_failed(&mut self, fault: &DiskFault) {
        self.retry_ends();
        if self.fault.happened() {
            self.machine.console.disk_failed(Some(fault));
        }
        self.settle();
    }

    /// Lets the devices alone go on, so that a disk does its request again; or
    /// the machine, when that did not fail.
    fn look_again(&mut self) {
        if self.fault.retries() {
            self.fault_ends();
            self.settle();
        } else {
            self.fault.retry();
            self.machine.chipset.bus.resume();
        }
    }

    /// The devices stand still again.
    fn retry_ends(&mut self) {
        if self.fault.retry_ends() {
            self.machine.chipset.bus.pause();
        }
    }

    fn fault_ends(&mut self) {
        self.retry_ends();
        if self.fault.ends() {
            self.machine.console.disk_failed(None);
        }
    }

    /// Holds vCPUs and time, and deals with everything that came before they
    /// stood: a machine that is being saved has nothing in its queue.
    fn stand_still(&mut self) -> Result<Option<Outcome>, MachineError> {
        self.saving = true;
        self.retry_ends();
        let mut ended = None;
        loop {
            self.halt();
            self.stop_time();
            let Some(event) = self.backlog.pop_front() else {
                break;
            };
            ended = self.handle(event)?;
            if ended.is_some() {
                break;
            }
        }
        self.saving = false;
        Ok(ended)
    }

    /// Writes the state of the machine, which stands still.
    fn save(&mut self, out: &mut dyn Write) -> Result<(), SaveError> {
        let console = self.machine.chipset.console.clone();
        // What the guest has sent is part of the state, or has left before.
        console.hold(true);
        let result = self.state().and_then(|state| {
            let machine = &self.machine;
            let description = machine.description.clone();
            let description = description
                .with_disks(SavedDisk::all(&machine.places.disks))
                .with_nics(SavedNic::all(&lock(&machine.places.nics)));
            Ok(saved::write(out, &description, &machine.ram, &state)?)
        });
        if result.is_err() {
            console.hold(false);
        }
        result
    }

    fn state(&self) -> Result<MachineState, SaveError> {
        if let Some(share) = self.machine.shares.iter().find(|share| share.in_use()) {
            return Err(SaveError::Share(share.tag().to_owned()));
        }
        // A disk keeps what its cache has, as one would that is not switched
        // off: the guest does not know of this.
        for (index, disk) in &self.machine.places.disks {
            let flushed = disk.handle.disk().flush();
            flushed.map_err(|source| SaveError::Disk {
                index: *index,
                source,
            })?;
        }
        let vcpu = |thread: &VcpuThread| -> Result<CpuState, SaveError> {
            Ok(thread.with(|vcpu| vcpu.save())??)
        };
        let vcpus = self.threads.iter().map(vcpu).collect::<Result<_, _>>()?;
        Ok(MachineState {
            vcpus,
            partition: self.machine.partition.save()?,
            devices: self.machine.chipset.bus.save(),
        })
    }

    /// Everything as at power-on, and the kernel loaded again.
    fn reset(&mut self) -> Result<(), MachineError> {
        // No request is left that could fail again.
        self.fault_ends();
        self.halt();
        self.stop_time();
        // What was asked for before the reset does not survive it.
        self.machine.power.take();
        self.backlog
            .retain(|event| !matches!(event, Event::Stopped { .. }));
        self.machine.partition.reset();
        // Devices whose removal was asked for leave by it.
        self.machine.chipset.bus.reset();
        self.machine.places.reset();
        for thread in &self.threads {
            let _ = thread.with(|vcpu| vcpu.reset());
        }
        let boot = self.machine.firmware.load(&self.machine.ram)?;
        if let Some(first) = self.threads.first() {
            match first.with(move |vcpu| boot.enter(vcpu)) {
                Ok(entered) => entered?,
                Err(_) => {
                    let gone = "the first vCPU's thread is gone".to_owned();
                    return Err(EngineError::Unsupported(gone).into());
                }
            }
        }
        self.machine.console.log("the machine was reset");
        Ok(())
    }

    /// Makes vCPUs and guest time run, or stand still, as was decided.
    fn settle(&mut self) {
        let runs = !self.held && !self.fault.holds() && !self.debugged.holds();
        let state = if runs { State::Running } else { State::Paused };
        if runs {
            self.start_time();
            for index in 0..self.threads.len() {
                if self.debugged.lets_run(index) && !self.threads[index].is_running() {
                    self.threads[index].run();
                }
            }
        } else {
            self.halt();
            self.stop_time();
        }
        *lock(&self.machine.state) = state;
    }

    fn start_time(&mut self) {
        if !self.time_runs {
            self.time_runs = true;
            self.machine.partition.resume_clock();
            let bus = &self.machine.chipset.bus;
            match std::mem::replace(&mut self.started, true) {
                false => bus.start(),
                true => bus.resume(),
            }
            self.machine.chipset.timers.set_running(true);
        }
    }

    fn stop_time(&mut self) {
        if self.time_runs {
            self.time_runs = false;
            self.machine.chipset.timers.set_running(false);
            self.machine.chipset.bus.pause();
            self.machine.partition.pause_clock();
        }
    }

    /// Stops all vCPUs. What they stopped for otherwise waits in the backlog.
    fn halt(&mut self) {
        for thread in self.threads.iter().filter(|thread| thread.is_running()) {
            thread.kick();
        }
        while self.threads.iter().any(VcpuThread::is_running) {
            match receive(&self.machine.queue, &mut self.threads, None) {
                Ok(Event::Stopped {
                    stop: Stop::Kicked, ..
                }) => {}
                Ok(event) => self.backlog.push_back(event),
                Err(Closed) => return,
            }
        }
    }
}

/// Nobody can send any more, or nobody did in time.
struct Closed;

/// The next event, with the thread it is about marked.
fn receive(
    queue: &Receiver<Event>,
    threads: &mut [VcpuThread],
    until: Option<Instant>,
) -> Result<Event, Closed> {
    let event = match until {
        Some(until) => {
            let left = until.saturating_duration_since(Instant::now());
            queue.recv_timeout(left).map_err(|_| Closed)?
        }
        None => queue.recv().map_err(|_| Closed)?,
    };
    if let Event::Stopped { vcpu, .. } = &event
        && let Some(thread) = threads.get_mut(*vcpu)
    {
        thread.stopped();
    }
    Ok(event)
}
