//! A machine: a payload that is a process of Croft's (`croft-vmm`), asked and
//! heard by its protocol.

mod agent;
mod devices;
mod hotplug;
mod requests;
mod running;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use croft_api::agent::READY_PORT;
use croft_api::control::{Event as Told, Request};
use croft_api::disk::place as place_disks;
use croft_api::instance::Plugged;
use croft_api::monitor::RunRequest;
use croft_api::{Phase, pair, vmm};
use croft_host::lifecycle::{Action, Input};
use croft_host::process;
use rustix::event::PollFlags;

use self::agent::Agent;
use self::running::Running;
use super::Place;
use super::console::Console;
use super::keeper::{Answer, Keeper, Payload};
use super::log::Log;
use crate::ports;
use crate::vsock::{self, Vsock};
use crate::wait::Interest;

/// Most bytes of each of the console's two logs.
const CONSOLE_LOG: u64 = 1 << 20;

/// What a descriptor in the poll set is for.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    Vmm,
    Guest,
    Stderr,
    Viewer(u64),
    Vsock(vsock::Source),
    Port(usize, ports::End),
    Nic(u32),
    Agent,
}

/// A machine that is kept.
pub struct Machine {
    run: RunRequest,
    /// Who asked for the save that is under way.
    saving: Option<u64>,
    /// Who asked for new sizes of disks, in the order of the answers.
    resizing: VecDeque<u64>,
    console: Console,
    /// The guest's agent while it says that it is ready.
    agent: Option<Agent>,
    running: Option<Running>,
}

impl Machine {
    /// One that is about to start.
    pub fn new(mut run: RunRequest, place: &Place) -> Self {
        // They keep their places when others come and go.
        place_disks(run.disks.iter_mut().map(|disk| &mut disk.index));
        let log = Log::new(&place.directory, "console.log", CONSOLE_LOG);
        Machine {
            run,
            saving: None,
            resizing: VecDeque::new(),
            console: Console::new(Some(log)),
            agent: None,
            running: None,
        }
    }
}

impl Payload for Machine {
    type Source = Source;
    type Rest = ();

    fn act(keeper: &mut Keeper<Self>, action: Action) {
        let request = match action {
            Action::Spawn => return keeper.spawn(),
            Action::Kill => {
                if let Some(running) = &mut keeper.own.running {
                    running.payload.kill();
                }
                return;
            }
            Action::PressButton => vmm::Request::PowerButton,
            Action::PullPlug => vmm::Request::Stop,
            Action::Hold => vmm::Request::Pause,
            Action::Continue => vmm::Request::Resume,
        };
        if let Some(running) = &mut keeper.own.running {
            running.ask(&request);
        }
    }

    fn interests(&self) -> Vec<Interest<'_, Source>> {
        let mut interests: Vec<Interest<'_, Source>> = Vec::new();
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
            interests.push((Source::Vmm, payload.receiver.as_fd(), flags));
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
        let viewers = self.console.sources();
        interests.extend(viewers.map(|(number, fd, flags)| (Source::Viewer(number), fd, flags)));
        interests
    }

    fn deadline(&self) -> Option<Instant> {
        self.running.as_ref().and_then(Running::deadline)
    }

    fn hear(keeper: &mut Keeper<Self>, source: Source, ready: PollFlags) {
        let readable = ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        match source {
            Source::Vmm if readable => keeper.hear_vmm(),
            Source::Vmm => {}
            Source::Guest => keeper.serve_guest(readable),
            Source::Stderr => keeper.hear_stderr(),
            Source::Viewer(number) => keeper.own.console.serve(number),
            Source::Vsock(source) => keeper.hear_vsock(source),
            Source::Port(index, end) => {
                let running = keeper.own.running.as_mut();
                if let Some(port) = running.and_then(|r| r.kept.ports.get_mut(index)) {
                    port.hear(end, ready);
                }
            }
            Source::Agent => keeper.hear_agent(),
            Source::Nic(process) => {
                let running = keeper.own.running.as_mut();
                let lines = running.map(|r| r.kept.nics.hear(process));
                lines.iter().flatten().for_each(|line| keeper.say(line));
            }
        }
    }

    fn look(keeper: &mut Keeper<Self>) {
        let running = keeper.own.running.as_mut();
        let lines = running.map(Running::look_at_the_clock);
        lines.iter().flatten().for_each(|line| keeper.say(line));
        if let Some(running) = keeper.own.running.take_if(|running| running.is_done()) {
            let requested = keeper.life.phase() == Phase::Stopping;
            let (outcome, devices) = running.reap(requested);
            keeper.end_save(&outcome);
            keeper.end_resizes();
            keeper.end_hotplug(devices);
            keeper.inputs.push_back(Input::Ended(outcome));
        }
    }

    fn answer(
        keeper: &mut Keeper<Self>,
        client: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        keeper.answer_machine(client, request, descriptors)
    }

    fn left(_: &mut Keeper<Self>, _: u64) {}

    fn flush(&mut self) {
        if let Some(running) = &mut self.running {
            // One that cannot be written to is about to be seen dead.
            let _ = running.payload.sender.flush();
        }
    }

    fn abandon(&mut self) {
        self.running = None;
    }

    fn tidy(_: &mut Keeper<Self>) {
        // It ends with its process.
    }

    fn devices(&self) -> Vec<Plugged> {
        let running = self.running.as_ref();
        running.map_or_else(Vec::new, |running| running.devices.status())
    }

    fn consoles(&mut self) -> &mut [Console] {
        std::slice::from_mut(&mut self.console)
    }

    fn keeps_starter(&self) -> bool {
        false
    }
}

impl Keeper<Machine> {
    fn spawn(&mut self) {
        self.status.starts = self.status.starts.saturating_add(1);
        self.status.engine = None;
        self.status.agent = None;
        self.own.agent = None;
        self.own.console.forget_input();
        match Running::spawn(&self.own.run) {
            Ok(mut running) => {
                self.status.payload = process::identify(running.payload.id());
                let complaints = std::mem::take(&mut running.payload.complaints);
                self.own.running = Some(running);
                complaints.iter().for_each(|line| self.say(line));
            }
            Err(outcome) => {
                self.inputs.push_back(Input::Ended(outcome));
            }
        }
    }

    fn hear_vmm(&mut self) {
        let events = self.own.running.as_mut().map(Running::hear);
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
                    if let Some(client) = self.own.resizing.pop_front() {
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
                    if let Some(client) = self.own.saving.take() {
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
        let Some(running) = &mut self.own.running else {
            return;
        };
        let guest = &running.payload.console;
        if self.own.console.has_input() {
            self.own.console.give_input(guest);
        }
        if readable && !self.own.console.take_output(guest) {
            running.console_ended = true;
        }
    }

    /// A program of the host's wants to be connected to the guest.
    fn hear_vsock(&mut self, source: vsock::Source) {
        let Some(running) = &mut self.own.running else {
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
                self.own.agent = Some(Agent::new(ours));
                theirs
            })
        } else {
            let vsock = self
                .own
                .running
                .as_ref()
                .and_then(|r| r.kept.vsock.as_ref());
            vsock.and_then(|vsock| vsock.connect(port).ok())
        };
        if let Some(running) = &mut self.own.running {
            running.give(&vmm::Request::VsockAnswer { id }, socket);
        }
    }

    fn connect_guest(&mut self, port: u32) -> Answer {
        if self.own.run.vsock.is_none() {
            return Err("it has no vsock, by which its guest could be reached".to_owned());
        }
        let running = self.own.running.as_mut().filter(|_| {
            let phase = self.life.phase();
            matches!(phase, Phase::Running | Phase::Stopping)
        });
        let running = running.ok_or_else(|| format!("it is {}", self.life.phase()))?;
        let (ours, theirs) = pair().map_err(|error| format!("cannot make a socket: {error}"))?;
        running.give(&vmm::Request::VsockConnect { port }, Some(ours));
        Ok((Told::Connected, vec![theirs]))
    }

    fn hear_agent(&mut self) {
        let heard = self.own.agent.as_mut().map(Agent::hear);
        match heard {
            Some(Ok(Some(_))) => {
                self.own.agent = None;
                self.status.agent.get_or_insert_default().ready = true;
            }
            Some(Ok(None)) | None => {}
            Some(Err(error)) => {
                self.own.agent = None;
                self.say(&format!("the guest's agent: {error}"));
            }
        }
    }

    fn hear_stderr(&mut self) {
        let lines = self.own.running.as_mut().map(Running::hear_stderr);
        for line in lines.into_iter().flatten() {
            self.say(&format!("croft-vmm: {line}"));
        }
    }
}
