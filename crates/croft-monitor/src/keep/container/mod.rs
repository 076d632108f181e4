//! A container: a payload that shares the host's kernel, made by this process
//! and its child.
//!
//! ```text
//! config ─► spec ─┐
//! host ──► parts ─┴► running ──► streams ──► records, consoles
//!                       └──────► execs
//! ```

mod execs;
mod parts;
mod records;
mod requests;
mod running;
mod spec;
mod streams;
mod users;
mod watches;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use croft_api::container::ContainerRole;
use croft_api::control::Request;
use croft_api::instance::Plugged;
use croft_api::monitor::RunContainer;
use croft_api::{Outcome, Phase};
use croft_host::lifecycle::{Action, Command, Input};
use croft_host::process;
use rustix::event::PollFlags;
use rustix::process::Signal;

pub use self::parts::remove;

use self::execs::Execs;
use self::records::Records;
use self::running::{Remains, Rest, Running};
use self::streams::End;
use super::Place;
use super::console::Console;
use super::keeper::{Answer, Keeper, Payload};
use crate::wait::Interest;

/// What systemd takes as the wish to power off: SIGRTMIN+3 (systemd(1),
/// "Signals"), of the C library's SIGRTMIN.
const POWER_OFF: i32 = 34 + 3;
/// How often what a container has printed is looked at after its end, while
/// somebody is slow to read it.
const LOOK: Duration = Duration::from_millis(20);
/// What executes a container, for people.
const ENGINE: (&str, &str) = ("container", "shares this host's kernel");

/// What a descriptor in the poll set is for.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    Init,
    Stream(End),
    Events,
    /// What a NIC hangs on, by its process.
    Nic(u32),
    Exec(u64),
    Viewer(usize, u64),
}

/// A container that is kept.
pub struct Container {
    run: RunContainer,
    records: Records,
    /// Of its terminal, or of its outputs.
    consoles: Vec<Console>,
    running: Option<Running>,
    /// Of what has run.
    remains: Option<Remains>,
    execs: Execs,
    /// What was needed to make it is still taken.
    large: bool,
    /// Whoever started it hears of its end.
    attached: bool,
}

impl Container {
    /// One that is about to start, and whose streams go to `attached` from
    /// their first byte on.
    pub fn new(run: RunContainer, place: &Place, attached: Vec<OwnedFd>) -> Result<Self, String> {
        let count = if run.container.tty { 1 } else { 2 };
        if !attached.is_empty() && attached.len() != count {
            return Err(format!("{count} sockets of its streams were to come along"));
        }
        let mut consoles: Vec<Console> = (0..count).map(|_| Console::new(None)).collect();
        // Its threads are short visits to the container's namespaces.
        croft_container::share_memory();
        let is_attached = !attached.is_empty();
        for (console, socket) in consoles.iter_mut().zip(attached) {
            console.attach_starter(socket);
        }
        Ok(Container {
            records: Records::new(&place.directory),
            consoles,
            running: None,
            remains: None,
            execs: Execs::default(),
            large: false,
            attached: is_attached,
            run,
        })
    }

    /// The signal that asks it to end.
    fn stop_signal(&self) -> i32 {
        let system = self.run.container.role == ContainerRole::System;
        let default = if system {
            POWER_OFF
        } else {
            Signal::TERM.as_raw()
        };
        self.run.container.stop_signal.unwrap_or(default)
    }
}

impl Payload for Container {
    type Source = Source;
    type Rest = Option<Rest>;

    fn act(keeper: &mut Keeper<Self>, action: Action) {
        if action == Action::Spawn {
            return keeper.spawn();
        }
        let Some(running) = &keeper.own.running else {
            return;
        };
        match action {
            Action::Spawn => {}
            Action::PressButton => {
                // One that has just ended is about to be seen so.
                let _ = running.signal(keeper.own.stop_signal());
            }
            Action::PullPlug | Action::Kill => running.kill(),
            Action::Hold => match running.hold() {
                Ok(()) => keeper.inputs.push_back(Input::Held),
                Err(error) => keeper.refused = Some(format!("it cannot be held: {error}")),
            },
            Action::Continue => match running.group().thaw() {
                Ok(()) => keeper.inputs.push_back(Input::Continued),
                Err(error) => keeper.say(&format!("it cannot continue: {error}")),
            },
        }
    }

    fn interests(&self) -> Vec<Interest<'_, Source>> {
        let mut interests: Vec<Interest<'_, Source>> = Vec::new();
        if let Some(running) = &self.running {
            if running.outcome.is_none() {
                interests.push((Source::Init, running.pidfd(), PollFlags::IN));
                let events = running.events().into_iter();
                interests.extend(events.map(|fd| (Source::Events, fd, PollFlags::IN)));
                let nics = running.nics.sources();
                interests
                    .extend(nics.map(|(process, fd)| (Source::Nic(process), fd, PollFlags::IN)));
            }
            let streams = running.streams.interests(&self.consoles);
            interests.extend(streams.map(|(end, fd, flags)| (Source::Stream(end), fd, flags)));
        }
        let execs = self.execs.sources();
        interests.extend(execs.map(|(id, fd)| (Source::Exec(id), fd, PollFlags::IN)));
        for (index, console) in self.consoles.iter().enumerate() {
            let viewers = console.sources();
            interests.extend(
                viewers.map(|(number, fd, flags)| (Source::Viewer(index, number), fd, flags)),
            );
        }
        interests
    }

    fn deadline(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        if running.outcome.is_some() {
            return Some(Instant::now() + LOOK);
        }
        running.nics.deadline()
    }

    fn hear(keeper: &mut Keeper<Self>, source: Source, _: PollFlags) {
        let own = &mut keeper.own;
        match source {
            Source::Init => {
                if let Some(running) = &mut own.running {
                    running.reap(own.run.container.role);
                }
            }
            Source::Stream(end) => {
                if let Some(running) = &mut own.running {
                    running
                        .streams
                        .serve(end, &mut own.consoles, &mut own.records);
                }
            }
            Source::Events => {
                let lines = own.running.as_mut().map(Running::hear_events);
                lines.iter().flatten().for_each(|line| keeper.say(line));
            }
            Source::Nic(process) => {
                let lines = own
                    .running
                    .as_mut()
                    .map(|running| running.nics.hear(process));
                lines.iter().flatten().for_each(|line| keeper.say(line));
            }
            Source::Exec(id) => {
                if let Some((client, event)) = own.execs.hear(id) {
                    keeper.clients.answer(client, &event, vec![]);
                }
            }
            Source::Viewer(index, number) => {
                if let Some(console) = own.consoles.get_mut(index) {
                    console.serve(number);
                }
                if let Some(running) = &mut own.running {
                    running.streams.close_input(&own.consoles);
                }
            }
        }
    }

    fn look(keeper: &mut Keeper<Self>) {
        let own = &mut keeper.own;
        let Some(running) = &mut own.running else {
            return;
        };
        if running.outcome.is_none() {
            // Whoever has started it has been told, and nothing happens for
            // long.
            if std::mem::take(&mut own.large) {
                croft_container::give_back_memory();
            }
            let lines = running.nics.mend();
            lines.iter().for_each(|line| keeper.say(line));
            return;
        }
        // All of it has ended with its init.
        running.streams.drain(&mut own.consoles, &mut own.records);
        if running.streams.is_ended() {
            keeper.end();
        }
    }

    fn answer(
        keeper: &mut Keeper<Self>,
        client: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        Some(keeper.answer_container(client, request, descriptors))
    }

    fn left(keeper: &mut Keeper<Self>, client: u64) {
        keeper.own.execs.left(client);
    }

    fn flush(&mut self) {}

    fn abandon(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill();
            // Nothing more can be done about it.
            let _ = running.finish().remove();
        }
    }

    fn devices(&self) -> Vec<Plugged> {
        let running = self.running.as_ref();
        running.map_or_else(Vec::new, |running| running.nics.status())
    }

    fn tidy(keeper: &mut Keeper<Self>) -> Option<Rest> {
        let (rest, removed) = keeper.own.remains.take()?.remove();
        if let Err(error) = removed {
            keeper.say(&format!("its control group is left: {error}"));
        }
        Some(rest)
    }

    fn consoles(&mut self) -> &mut [Console] {
        &mut self.consoles
    }

    fn keeps_starter(&self) -> bool {
        self.attached
    }
}

impl Keeper<Container> {
    fn spawn(&mut self) {
        drop(Container::tidy(self));
        self.status.starts = self.status.starts.saturating_add(1);
        self.status.engine = None;
        for console in &mut self.own.consoles {
            console.forget_input();
        }
        let mut lines = Vec::new();
        let spawned = Running::spawn(&self.own.run, &self.directory, &mut |line| lines.push(line));
        lines.iter().for_each(|line| self.say(line));
        match spawned {
            Ok(running) => {
                let pid = running.pid().as_raw_nonzero().get().unsigned_abs();
                self.status.payload = process::identify(pid);
                let (engine, reason) = ENGINE;
                self.status.engine = Some((engine.to_owned(), reason.to_owned()));
                self.own.running = Some(running);
                self.own.large = true;
                self.inputs.push_back(Input::Started);
            }
            Err(outcome) => self.inputs.push_back(Input::Ended(outcome)),
        }
    }

    /// Its init has ended, and everything it has printed is taken.
    fn end(&mut self) {
        for (client, event) in self.own.execs.end() {
            self.clients.answer(client, &event, vec![]);
        }
        let Some(mut running) = self.own.running.take() else {
            return;
        };
        let outcome = running.outcome.take();
        self.own.remains = Some(running.finish());
        if let Some(Outcome::Killed {
            out_of_memory: true,
            ..
        }) = outcome
        {
            self.say("it was ended for want of memory; --memory gives it more");
        }
        let outcome = outcome.unwrap_or(Outcome::Requested);
        // A system that was asked from inside to start again does so.
        let again = outcome == Outcome::Reset && self.life.phase() == Phase::Running;
        self.inputs.push_back(Input::Ended(outcome));
        if again {
            self.inputs.push_back(Input::Command(Command::Start));
        }
    }

    /// The container, if it runs.
    fn running(&self) -> Result<&Running, String> {
        let phase = self.life.phase();
        let runs = matches!(phase, Phase::Running | Phase::Paused | Phase::Stopping);
        let running = self.own.running.as_ref().filter(|_| runs);
        running.ok_or_else(|| format!("it is {phase}"))
    }
}
