//! The loop of an instance that is kept.

mod hotplug;
mod requests;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use croft_api::agent::READY_PORT;
use croft_api::control::Event as Told;
use croft_api::disk::place as place_disks;
use croft_api::instance::Status;
use croft_api::monitor::{Event as Starting, RunRequest};
use croft_api::{Outcome, Phase, Receiver, Sender, pair, vmm};
use croft_host::lifecycle::{Action, Command, Input, Lifecycle};
use croft_host::{InstanceLock, now, process, store};
use nix::sys::signalfd::SignalFd;
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::Place;
use super::agent::Agent;
use super::clients::{self, Clients};
use super::console::Console;
use super::log::Log;
use super::running::Running;
use crate::ports;
use crate::vsock::{self, Vsock};
use crate::wait::{asked, ready};
use requests::Answer;

/// Most bytes of each of the console's two logs.
const CONSOLE_LOG: u64 = 1 << 20;
/// Most bytes of each of the monitor's own two.
const MONITOR_LOG: u64 = 256 << 10;
/// How long the guest has when this process is told to end.
const TERMINATED: Duration = Duration::from_secs(30);
/// How long viewers have for what they have not read yet.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Messages waiting for a payload that is asked no further.
const BACKLOG: usize = 64;

/// What a descriptor in the poll set is for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Signals,
    Starter,
    Payload,
    Guest,
    Stderr,
    Client(clients::Source),
    Viewer(u64),
    Vsock(vsock::Source),
    Port(usize, ports::End),
    Nic(u32),
    Agent,
}

/// An instance, and everything that belongs to it.
pub struct Keeper {
    life: Lifecycle,
    /// When the time of `life` began.
    begun: Instant,
    run: RunRequest,
    directory: PathBuf,
    ephemeral: bool,
    lock: InstanceLock,
    signals: SignalFd,
    /// Whoever started it, until it runs or they are gone.
    starter: Option<(Sender, Receiver)>,
    clients: Clients,
    /// Who asked for the save that is under way.
    saving: Option<u64>,
    /// Who asked for new sizes of disks, in the order of the answers.
    resizing: VecDeque<u64>,
    console: Console,
    log: Log,
    /// The guest's agent while it says that it is ready.
    agent: Option<Agent>,
    running: Option<Running>,
    /// What has happened and is not dealt with.
    inputs: VecDeque<Input>,
    status: Status,
    /// What there is to say of the next phase.
    note: Option<String>,
    /// What was last told and written.
    told: Option<Status>,
}

impl Keeper {
    /// An instance that is about to start.
    pub fn new(mut run: RunRequest, place: Place, sender: Sender, receiver: Receiver) -> Self {
        let before = place.before;
        // They keep their places when others come and go.
        place_disks(run.disks.iter_mut().map(|disk| &mut disk.index));
        Keeper {
            life: Lifecycle::new(place.restart),
            begun: Instant::now(),
            console: Console::new(Log::new(&place.directory, "console.log", CONSOLE_LOG)),
            log: Log::new(&place.directory, "monitor.log", MONITOR_LOG),
            directory: place.directory,
            ephemeral: place.ephemeral,
            lock: place.lock,
            signals: place.signals,
            starter: Some((sender, receiver)),
            clients: place.clients,
            saving: None,
            resizing: VecDeque::new(),
            agent: None,
            running: None,
            inputs: VecDeque::from([Input::Command(Command::Start)]),
            status: Status {
                monitor: process::identify(std::process::id()),
                starts: before.as_ref().map_or(0, |status| status.starts),
                outcome: before.and_then(|status| status.outcome),
                ..Status::created(now())
            },
            note: None,
            told: None,
            run,
        }
    }

    /// Until it has ended for good.
    pub fn run(mut self) {
        self.settle();
        while self.life.phase().is_live() {
            if let Err(error) = self.step() {
                // Without poll there is nothing that could go on.
                self.say(&format!("cannot wait: {error}"));
                self.running = None;
                self.inputs.push_back(Input::Command(Command::Kill));
                self.inputs.push_back(Input::Ended(Outcome::Failed {
                    message: format!("croft-monitor cannot wait: {error}"),
                }));
                self.settle();
            }
        }
        self.leave();
    }

    fn time(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Deals with what has happened, tells and writes what is new.
    fn settle(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            if let Input::Ended(outcome) = &input {
                self.status.outcome = Some(outcome.clone());
            }
            // Commands of clients were answered when they came.
            let actions = self.life.handle(input, self.time()).unwrap_or_default();
            self.act(actions);
        }
        self.publish();
        if let Some(running) = &mut self.running {
            // One that cannot be written to is about to be seen dead.
            let _ = running.payload.sender.flush();
        }
        let starter_lost = match &mut self.starter {
            Some((sender, _)) => sender.flush().is_err(),
            None => false,
        };
        if starter_lost {
            self.starter = None;
        }
        self.clients.flush();
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            let request = match action {
                Action::Spawn => {
                    self.spawn();
                    continue;
                }
                Action::Kill => {
                    if let Some(running) = &mut self.running {
                        running.payload.kill();
                    }
                    continue;
                }
                Action::PressButton => vmm::Request::PowerButton,
                Action::PullPlug => vmm::Request::Stop,
                Action::Hold => vmm::Request::Pause,
                Action::Continue => vmm::Request::Resume,
            };
            if let Some(running) = &mut self.running {
                running.ask(&request);
            }
        }
    }

    fn spawn(&mut self) {
        self.status.starts = self.status.starts.saturating_add(1);
        self.status.engine = None;
        self.status.agent = None;
        self.agent = None;
        self.console.forget_input();
        match Running::spawn(&self.run) {
            Ok(mut running) => {
                self.status.payload = process::identify(running.payload.id());
                let complaints = std::mem::take(&mut running.payload.complaints);
                self.running = Some(running);
                complaints.iter().for_each(|line| self.say(line));
            }
            Err(outcome) => {
                self.inputs.push_back(Input::Ended(outcome));
            }
        }
    }

    /// Tells and writes what is known, if it is new.
    fn publish(&mut self) {
        let phase = self.life.phase();
        if self.status.phase != phase {
            self.status.since = now();
            self.status.note = self.note.take();
        }
        let running = self.running.as_ref();
        self.status.devices = running.map_or_else(Vec::new, |r| r.devices.status());
        self.status.phase = phase;
        self.status.restarts = self.life.restarts();
        if !phase.has_payload() {
            self.status.payload = None;
            self.status.agent = None;
        }
        if !phase.is_live() {
            self.status.monitor = None;
        }
        if self.told.as_ref() == Some(&self.status) {
            return;
        }
        if let Err(error) = store::write_state(&self.directory, &self.status) {
            // The control socket tells nevertheless.
            self.log
                .append(format!("cannot write the state: {error}\n").as_bytes());
        }
        let event = Told::Status(Box::new(self.status.clone()));
        self.clients.tell(&event);
        self.told = Some(self.status.clone());
        self.tell_starter(phase);
    }

    /// Whoever started it waits for its start or its end.
    fn tell_starter(&mut self, phase: Phase) {
        let event = match (phase, &self.status.engine) {
            (Phase::Starting | Phase::Stopping, _) => return,
            (phase, Some((engine, reason))) if phase.has_payload() => Starting::Started {
                engine: engine.clone(),
                reason: reason.clone(),
            },
            _ => Starting::Stopped(self.status.outcome.clone().unwrap_or(Outcome::Requested)),
        };
        if let Some((mut sender, _)) = self.starter.take() {
            // It is small, and what came before it was read or is lost.
            let _ = sender.push(&event, vec![]);
            let _ = sender.flush();
        }
    }

    /// A line for the operator.
    fn say(&mut self, text: &str) {
        self.log.append(format!("{} {text}\n", now()).as_bytes());
        let text = text.to_owned();
        self.clients.tell(&Told::Log { text: text.clone() });
        if let Some((sender, _)) = &mut self.starter
            && sender.backlog() < BACKLOG
        {
            // A starter that is gone is seen so when it is flushed.
            let _ = sender.push(&Starting::Log { text }, vec![]);
        }
    }

    /// Waits for something to do, and does it.
    fn step(&mut self) -> Result<(), Errno> {
        for (source, ready) in self.wait()? {
            let readable = ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
            match source {
                Source::Signals => self.hear_signals(),
                Source::Starter => self.hear_starter(),
                Source::Payload if readable => self.hear_payload(),
                Source::Payload => {}
                Source::Guest => self.serve_guest(readable),
                Source::Stderr => self.hear_stderr(),
                Source::Client(source) => {
                    for asked in self.clients.hear(source) {
                        self.answer(asked);
                    }
                }
                Source::Viewer(number) => self.console.serve(number),
                Source::Vsock(source) => self.hear_vsock(source),
                Source::Port(index, end) => {
                    let running = self.running.as_mut();
                    if let Some(port) = running.and_then(|r| r.kept.ports.get_mut(index)) {
                        port.hear(end, ready);
                    }
                }
                Source::Agent => self.hear_agent(),
                Source::Nic(process) => {
                    let lines = self.running.as_mut().map(|r| r.kept.nics.hear(process));
                    lines.iter().flatten().for_each(|line| self.say(line));
                }
            }
        }
        let lines = self.running.as_mut().map(Running::look_at_the_clock);
        lines.iter().flatten().for_each(|line| self.say(line));
        if let Some(running) = self.running.take_if(|running| running.is_done()) {
            let requested = self.life.phase() == Phase::Stopping;
            let (outcome, devices) = running.reap(requested);
            self.end_save(&outcome);
            self.end_resizes();
            self.end_hotplug(devices);
            self.inputs.push_back(Input::Ended(outcome));
        }
        self.inputs.push_back(Input::Time);
        self.settle();
        Ok(())
    }

    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, Errno> {
        let mut interests: Vec<(Source, BorrowedFd<'_>, PollFlags)> =
            vec![(Source::Signals, self.signals.as_fd(), PollFlags::IN)];
        if let Some((sender, receiver)) = &self.starter {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, sender.backlog() > 0);
            interests.push((Source::Starter, receiver.as_fd(), flags));
        }
        if let Some(running) = &self.running {
            let payload = &running.payload;
            let mut flags = PollFlags::empty();
            flags.set(
                PollFlags::IN,
                !payload.receiver.ended() && running.has_room(),
            );
            flags.set(
                PollFlags::OUT,
                payload.sender.backlog() > 0 && !payload.receiver.ended(),
            );
            interests.push((Source::Payload, payload.receiver.as_fd(), flags));
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !running.console_ended);
            flags.set(
                PollFlags::OUT,
                self.console.has_input() && !running.console_ended,
            );
            interests.push((Source::Guest, payload.console.as_fd(), flags));
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, running.has_stderr());
            interests.push((Source::Stderr, payload.stderr.as_fd(), flags));
            let vsock = running.kept.vsock.iter().filter(|_| running.has_room());
            let vsock = vsock.flat_map(Vsock::sources);
            interests.extend(vsock.map(|(source, fd)| (Source::Vsock(source), fd, PollFlags::IN)));
            let nics = running.kept.nics.sources();
            interests.extend(nics.map(|(process, fd)| (Source::Nic(process), fd, PollFlags::IN)));
            for (index, port) in running.kept.ports.iter().enumerate() {
                let wanted = port.interests().into_iter();
                interests
                    .extend(wanted.map(|(end, fd, flags)| (Source::Port(index, end), fd, flags)));
            }
        }
        if let Some(agent) = &self.agent {
            interests.push((Source::Agent, agent.as_fd(), PollFlags::IN));
        }
        let clients = self.clients.sources();
        interests.extend(clients.map(|(source, fd, flags)| (Source::Client(source), fd, flags)));
        let viewers = self.console.sources();
        interests.extend(viewers.map(|(number, fd, flags)| (Source::Viewer(number), fd, flags)));
        let now = self.time();
        let life = self.life.deadline().map(|at| at.saturating_sub(now));
        let running = self.running.as_ref().and_then(Running::deadline);
        let running = running.map(|at| at.saturating_duration_since(Instant::now()));
        interests.retain(asked);
        ready(&interests, life.into_iter().chain(running).min())
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {
            self.say("told to end (SIGTERM): stopping the instance");
            self.inputs
                .push_back(Input::Command(Command::Stop(TERMINATED)));
        }
    }

    /// It has nothing more to say but that it has gone.
    fn hear_starter(&mut self) {
        if let Some((_, receiver)) = &mut self.starter
            && (receiver.fill().is_err() || receiver.ended())
        {
            self.starter = None;
        }
    }

    fn hear_payload(&mut self) {
        let events = self.running.as_mut().map(Running::hear);
        for event in events.into_iter().flatten() {
            match event {
                vmm::Event::Started { engine, reason } => {
                    self.status.engine = Some((engine, reason));
                    self.inputs.push_back(Input::Started);
                }
                vmm::Event::Paused => self.inputs.push_back(Input::Held),
                vmm::Event::Resumed => self.inputs.push_back(Input::Continued),
                vmm::Event::DiskFailed { disk, message } => {
                    let text = format!("disk {disk}: {message}");
                    self.say(&text);
                    self.note = Some(text);
                    self.inputs.push_back(Input::Held);
                }
                vmm::Event::DiskResized { disk, error } => {
                    self.say(&match &error {
                        None => format!("disk{disk} has its new size"),
                        Some(error) => format!("disk{disk} is not resized: {error}"),
                    });
                    if let Some(client) = self.resizing.pop_front() {
                        let event = error.map_or(Told::Done, |message| Told::Failed { message });
                        self.clients.answer(client, &event, vec![]);
                    }
                }
                vmm::Event::Attached { device } => self.attached(device),
                vmm::Event::AttachFailed { message } => self.attach_failed(message),
                vmm::Event::Detached { device } => self.detached(&device),
                vmm::Event::DetachFailed { device, message } => {
                    self.detach_failed(&device, &message);
                }
                vmm::Event::SaveFailed { message } => {
                    self.say(&format!("not saved: {message}"));
                    if let Some(client) = self.saving.take() {
                        self.clients
                            .answer(client, &Told::Failed { message }, vec![]);
                    }
                }
                vmm::Event::Panicked { crash_kernel } => {
                    let how = if crash_kernel {
                        "; it goes on with its crash kernel"
                    } else {
                        ""
                    };
                    self.status.note = Some(format!("the guest's kernel panicked{how}"));
                }
                vmm::Event::NicLost { nic } => self.say(&format!("{nic} has lost its network")),
                vmm::Event::VsockRequest { id, port } => self.connect_host(id, port),
                vmm::Event::Log { text } => self.say(&text),
                // Kept until the payload is gone.
                vmm::Event::Stopped(_) => {}
            }
        }
    }

    fn serve_guest(&mut self, readable: bool) {
        let Some(running) = &mut self.running else {
            return;
        };
        let guest = &running.payload.console;
        if self.console.has_input() {
            self.console.give_input(guest);
        }
        if readable && !self.console.take_output(guest) {
            running.console_ended = true;
        }
    }

    /// A program of the host's wants to be connected to the guest.
    fn hear_vsock(&mut self, source: vsock::Source) {
        let Some(running) = &mut self.running else {
            return;
        };
        let asked = running.kept.vsock.as_mut().and_then(|v| v.hear(source));
        if let Some((port, socket)) = asked {
            running.give(&vmm::Request::VsockConnect { port }, Some(socket));
        }
    }

    /// The guest wants to be connected to a port of the host's: to this
    /// process, if its agent wants to say that it is ready.
    fn connect_host(&mut self, id: u64, port: u32) {
        let socket = if port == READY_PORT {
            pair().ok().map(|(ours, theirs)| {
                self.agent = Some(Agent::new(ours));
                theirs
            })
        } else {
            let vsock = self.running.as_ref().and_then(|r| r.kept.vsock.as_ref());
            vsock.and_then(|vsock| vsock.connect(port).ok())
        };
        if let Some(running) = &mut self.running {
            running.give(&vmm::Request::VsockAnswer { id }, socket);
        }
    }

    fn connect_guest(&mut self, port: u32) -> Answer {
        if self.run.vsock.is_none() {
            return Err("it has no vsock, by which its guest could be reached".to_owned());
        }
        let running = self.running.as_mut().filter(|_| {
            let phase = self.life.phase();
            matches!(phase, Phase::Running | Phase::Stopping)
        });
        let running = running.ok_or_else(|| format!("it is {}", self.life.phase()))?;
        let (ours, theirs) = pair().map_err(|error| format!("cannot make a socket: {error}"))?;
        running.give(&vmm::Request::VsockConnect { port }, Some(ours));
        Ok((Told::Connected, vec![theirs]))
    }

    fn hear_agent(&mut self) {
        let heard = self.agent.as_mut().map(Agent::hear);
        match heard {
            Some(Ok(Some(_))) => {
                self.agent = None;
                self.status.agent.get_or_insert_default().ready = true;
            }
            Some(Ok(None)) | None => {}
            Some(Err(error)) => {
                self.agent = None;
                self.say(&format!("the guest's agent: {error}"));
            }
        }
    }

    fn hear_stderr(&mut self) {
        let lines = self.running.as_mut().map(Running::hear_stderr);
        for line in lines.into_iter().flatten() {
            self.say(&format!("croft-vmm: {line}"));
        }
    }

    /// Ends what is left, in the order in which it can be relied on: who sees
    /// a connection end can start the instance anew.
    fn leave(mut self) {
        let end = Instant::now() + LAST_WORDS;
        self.clients.close();
        while !self.clients.flush() {
            let left = end.saturating_duration_since(Instant::now());
            let interests = self.clients.sources();
            let interests = interests
                .map(|(source, fd, flags)| (Source::Client(source), fd, flags & PollFlags::OUT));
            let interests: Vec<_> = interests.filter(asked).collect();
            match ready(&interests, Some(left)) {
                Ok(ready) if !ready.is_empty() => {}
                _ => break,
            }
        }
        if self.ephemeral {
            if let Err(error) = store::remove(&self.directory, self.lock) {
                // Its state says so too, if it can be written.
                self.status.note = Some(format!("it could not be deleted: {error}"));
                let _ = store::write_state(&self.directory, &self.status);
            }
        } else {
            drop(self.lock);
        }
        self.clients.disconnect();
        loop {
            let viewers: Vec<u64> = self.console.sources().map(|(number, ..)| number).collect();
            for number in viewers {
                self.console.serve(number);
            }
            if self.console.is_seen() {
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            let interests = self.console.sources();
            let interests = interests
                .map(|(number, fd, flags)| (Source::Viewer(number), fd, flags & PollFlags::OUT));
            let interests: Vec<_> = interests.filter(asked).collect();
            match ready(&interests, Some(left)) {
                Ok(ready) if !ready.is_empty() => {}
                _ => return,
            }
        }
    }
}
