//! The loop of an instance that is kept, whatever its kind.
//!
//! ```text
//! signals, starter, clients ─┐                        ┌─► clients, starter, state.json
//!                            ├─► inputs ─► Lifecycle ─┤
//! payload, clock ────────────┘                        └─► actions ─► payload
//! ```

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use croft_api::control::{Event as Told, Request, TIMEOUT_MAX};
use croft_api::instance::{Plugged, Status};
use croft_api::monitor::Event as Starting;
use croft_api::{Outcome, Phase, Receiver, Sender};
use croft_host::lifecycle::{Action, Command, Input, Lifecycle};
use croft_host::store::{self, Config};
use croft_host::{InstanceLock, now, process};
use nix::sys::signalfd::SignalFd;
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::Place;
use super::clients::{self, Asked, Clients};
use super::console::Console;
use super::log::Log;
use crate::wait::{Interest, asked, ready};

/// Most bytes of each of the monitor's own two logs.
const MONITOR_LOG: u64 = 256 << 10;
/// How long the guest has when this process is told to end.
const TERMINATED: Duration = Duration::from_secs(30);
/// How long viewers have for what they have not read yet.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Messages waiting for a starter that reads no further.
const BACKLOG: usize = 64;

/// An event and what comes along, or why not.
pub type Answer = Result<(Told, Vec<OwnedFd>), String>;

/// What an instance runs: what differs between a machine and a container.
pub trait Payload: Sized {
    /// What a descriptor of it in the poll set is for.
    type Source: Copy;

    /// What is left of it in the very end. To drop it may take its time.
    type Rest;

    /// Does what its life asks for; what comes of it are inputs.
    fn act(keeper: &mut Keeper<Self>, action: Action);

    /// What is worth waiting for.
    fn interests(&self) -> Vec<Interest<'_, Self::Source>>;

    /// When [`look`](Self::look) is wanted.
    fn deadline(&self) -> Option<Instant>;

    /// Something can be read or written.
    fn hear(keeper: &mut Keeper<Self>, source: Self::Source, ready: PollFlags);

    /// Looks at the clock, and whether it has ended.
    fn look(keeper: &mut Keeper<Self>);

    /// What a client asks for; `None` if it is answered later.
    fn answer(
        keeper: &mut Keeper<Self>,
        client: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer>;

    /// Whether a client's connection has ended, and what hung on it.
    fn left(keeper: &mut Keeper<Self>, client: u64);

    /// Sends what waits for it.
    fn flush(&mut self);

    /// Ends it at once, as nothing can be waited for any more.
    fn abandon(&mut self);

    /// Removes what is left of it after its end.
    fn tidy(keeper: &mut Keeper<Self>) -> Self::Rest;

    /// What is plugged in.
    fn devices(&self) -> Vec<Plugged>;

    /// Its consoles.
    fn consoles(&mut self) -> &mut [Console];

    /// Whoever started it hears of its end too.
    fn keeps_starter(&self) -> bool;
}

/// What a descriptor in the poll set is for.
#[derive(Clone, Copy, Debug)]
enum Source<S> {
    Signals,
    Starter,
    Client(clients::Source),
    Payload(S),
}

/// What can be read or written.
type Ready<S> = Vec<(Source<S>, PollFlags)>;

/// An instance, and everything that belongs to it.
pub struct Keeper<P> {
    pub(super) life: Lifecycle,
    /// When the time of `life` began.
    begun: Instant,
    pub(super) directory: PathBuf,
    ephemeral: bool,
    lock: InstanceLock,
    signals: SignalFd,
    /// Whoever started it, until it runs or they are gone.
    starter: Option<(Sender, Receiver)>,
    /// A starter that was told of the end for good.
    parted: Option<(Sender, Receiver)>,
    pub(super) clients: Clients,
    pub(super) log: Log,
    /// What has happened and is not dealt with.
    pub(super) inputs: VecDeque<Input>,
    pub(super) status: Status,
    /// Why what a client asked for cannot be done, seen only in doing it.
    pub(super) refused: Option<String>,
    /// What there is to say of the next phase.
    pub(super) note: Option<String>,
    /// What was last told and written.
    told: Option<Status>,
    /// What is its kind's alone.
    pub(super) own: P,
}

impl<P: Payload> Keeper<P> {
    /// An instance that is about to start.
    pub fn new(own: P, place: Place, sender: Sender, receiver: Receiver) -> Self {
        let before = place.before;
        Keeper {
            life: Lifecycle::new(place.restart),
            begun: Instant::now(),
            log: Log::new(&place.directory, "monitor.log", MONITOR_LOG),
            directory: place.directory,
            ephemeral: place.ephemeral,
            lock: place.lock,
            signals: place.signals,
            starter: Some((sender, receiver)),
            parted: None,
            clients: place.clients,
            inputs: VecDeque::from([Input::Command(Command::Start)]),
            status: Status {
                monitor: process::identify(std::process::id()),
                starts: before.as_ref().map_or(0, |status| status.starts),
                outcome: before.and_then(|status| status.outcome),
                ..Status::created(now())
            },
            refused: None,
            note: None,
            told: None,
            own,
        }
    }

    /// Until it has ended for good.
    pub fn run(mut self) {
        self.settle();
        // It may be long until something else happens.
        P::look(&mut self);
        while self.life.phase().is_live() {
            if let Err(error) = self.step() {
                // Without poll there is nothing that could go on.
                self.say(&format!("cannot wait: {error}"));
                self.own.abandon();
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
        self.own.flush();
        let starter_lost = match &mut self.starter {
            Some((sender, _)) => sender.flush().is_err(),
            None => false,
        };
        if starter_lost {
            self.starter = None;
        }
        self.clients.flush();
        for client in self.clients.left() {
            P::left(self, client);
        }
    }

    /// Tells and writes what is known, if it is new.
    fn publish(&mut self) {
        let phase = self.life.phase();
        if self.status.phase != phase {
            self.status.since = now();
            self.status.note = self.note.take();
        }
        self.status.devices = self.own.devices();
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
            // It has not ended for good.
            (Phase::Waiting, _) if self.own.keeps_starter() => return,
            (phase, Some((engine, reason))) if phase.has_payload() => Starting::Started {
                engine: engine.clone(),
                reason: reason.clone(),
            },
            _ => Starting::Stopped(self.status.outcome.clone().unwrap_or(Outcome::Requested)),
        };
        let ended = matches!(event, Starting::Stopped(_));
        if let Some((sender, _)) = &mut self.starter {
            // It is small, and what came before it was read or is lost.
            let _ = sender.push(&event, vec![]);
            let _ = sender.flush();
        }
        if ended || !self.own.keeps_starter() {
            let starter = self.starter.take();
            // Its connection ends when all is over.
            self.parted = starter.filter(|_| !phase.is_live());
        }
    }

    /// A line for the operator.
    pub(super) fn say(&mut self, text: &str) {
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

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            P::act(self, action);
        }
    }

    /// Waits for something to do, and does it.
    fn step(&mut self) -> Result<(), Errno> {
        for (source, ready) in self.wait()? {
            match source {
                Source::Signals => self.hear_signals(),
                Source::Starter => self.hear_starter(),
                Source::Client(source) => {
                    for asked in self.clients.hear(source) {
                        self.answer(asked);
                    }
                }
                Source::Payload(source) => P::hear(self, source, ready),
            }
        }
        P::look(self);
        self.inputs.push_back(Input::Time);
        self.settle();
        Ok(())
    }

    fn wait(&self) -> Result<Ready<P::Source>, Errno> {
        let mut interests: Vec<Interest<'_, Source<P::Source>>> =
            vec![(Source::Signals, self.signals.as_fd(), PollFlags::IN)];
        if let Some((sender, receiver)) = &self.starter {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, sender.backlog() > 0);
            interests.push((Source::Starter, receiver.as_fd(), flags));
        }
        let own = self.own.interests().into_iter();
        interests.extend(own.map(|(source, fd, flags)| (Source::Payload(source), fd, flags)));
        let clients = self.clients.sources();
        interests.extend(clients.map(|(source, fd, flags)| (Source::Client(source), fd, flags)));
        let now = self.time();
        let life = self.life.deadline().map(|at| at.saturating_sub(now));
        let own = self.own.deadline();
        let own = own.map(|at| at.saturating_duration_since(Instant::now()));
        interests.retain(asked);
        ready(&interests, life.into_iter().chain(own).min())
    }

    /// Does what a client asks for, and answers it now or later.
    fn answer(&mut self, asked: Asked) {
        let Asked {
            client,
            request,
            descriptors,
        } = asked;
        let answer = match request {
            Request::Status => Ok((Told::Status(Box::new(self.status.clone())), vec![])),
            Request::Watch => {
                self.clients.watch(client);
                Ok((Told::Status(Box::new(self.status.clone())), vec![]))
            }
            Request::Stop { timeout } => self.command(Command::Stop(patience(timeout))),
            Request::Kill => self.command(Command::Kill),
            Request::Restart { timeout } => self.command(Command::Restart(patience(timeout))),
            Request::Pause => self.command(Command::Pause),
            Request::Resume => self.command(Command::Resume),
            request => match P::answer(self, client, request, descriptors) {
                Some(answer) => answer,
                None => return,
            },
        };
        self.reply(client, answer);
    }

    /// Answers a client.
    pub(super) fn reply(&mut self, client: u64, answer: Answer) {
        match answer {
            Ok((event, descriptors)) => self.clients.answer(client, &event, descriptors),
            Err(message) => self
                .clients
                .answer(client, &Told::Failed { message }, vec![]),
        }
    }

    /// Does what a client asks for, at once, so that it can be refused.
    fn command(&mut self, command: Command) -> Answer {
        let actions = self
            .life
            .handle(Input::Command(command), self.time())
            .map_err(|refusal| refusal.to_string())?;
        self.refused = None;
        self.act(actions);
        match self.refused.take() {
            Some(why) => {
                self.say(&why);
                Err(why)
            }
            None => Ok((Told::Done, vec![])),
        }
    }

    /// Changes what the instance is from its next start on.
    pub(super) fn change_config(&mut self, change: impl FnOnce(&mut Config)) -> Result<(), String> {
        store::change_kept(&self.directory, &self.lock, change)
            .map_err(|error| format!("cannot write its configuration: {error}"))
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

    /// Ends what is left, in the order in which it can be relied on: who sees
    /// a connection end can start the instance anew, or delete it, which waits
    /// for what is tidied up then ([`InstanceLock::ending`]).
    fn leave(mut self) {
        let end = Instant::now() + LAST_WORDS;
        self.clients.close();
        while !self.clients.flush() {
            let left = end.saturating_duration_since(Instant::now());
            let interests = self.clients.sources();
            let interests =
                interests.map(|(source, fd, flags)| (source, fd, flags & PollFlags::OUT));
            let interests: Vec<_> = interests.filter(asked).collect();
            match ready(&interests, Some(left)) {
                Ok(ready) if !ready.is_empty() => {}
                _ => break,
            }
        }
        let last = if self.ephemeral {
            // What has its name next may get the same group.
            let rest = P::tidy(&mut self);
            if let Err(error) = store::remove(&self.directory, self.lock, super::container::remove)
            {
                // Its state says so too, if it can be written.
                self.status.note = Some(format!("it could not be deleted: {error}"));
                let _ = store::write_state(&self.directory, &self.status);
            }
            Some(rest)
        } else {
            let told = self.lock.ending();
            if told.is_ok() {
                self.clients.disconnect();
                self.parted = None;
                self.own.consoles().iter_mut().for_each(Console::part);
            }
            drop(P::tidy(&mut self));
            drop(self.lock);
            None
        };
        self.clients.disconnect();
        self.parted = None;
        for console in self.own.consoles() {
            console.finish(end);
            console.part();
        }
        drop(last);
    }
}

fn patience(timeout: u64) -> Duration {
    Duration::from_millis(timeout.min(TIMEOUT_MAX))
}
