//! The payload of an instance, from its spawning to its end.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use croft_api::Outcome;
use croft_api::monitor::RunRequest;
use croft_api::saved::SavedRun;
use croft_api::vmm::{Event, Request};

use super::devices::Devices;
use crate::files::{Files, Kept};
use crate::lines::Lines;
use crate::nics::Wires;
use crate::payload::{Payload, describe};

/// Messages waiting for a payload that is asked no further.
const BACKLOG: usize = 64;
/// How long a payload that has said its last may take to exit.
const GRACE: Duration = Duration::from_secs(5);

/// A payload.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub payload: Payload,
    lines: Lines,
    /// Its console has been read to its end.
    pub console_ended: bool,
    outcome: Option<Outcome>,
    kill_at: Option<Instant>,
    /// What its file begins with, if it is saved.
    pub saved: SavedRun,
    /// What is plugged in, comes and goes.
    pub devices: Devices,
    /// Where programs connect to the guest, and the debugger's socket.
    pub kept: Kept,
}

impl Running {
    /// Opens what `run` names and starts it.
    pub fn spawn(run: &RunRequest) -> Result<Self, Outcome> {
        let files = Files::open(run, None).map_err(|message| Outcome::Invalid { message })?;
        let start = files.start_request(run);
        let saved = files.saved_run(run).map_err(|error| Outcome::Failed {
            message: error.to_string(),
        })?;
        let devices = Devices::new(files.disks(), &run.nics);
        let (handed, kept) = files.split();
        let payload = Payload::start(start, handed, run.no_jail)
            .map_err(|message| Outcome::Failed { message })?;
        Ok(Running {
            payload,
            lines: Lines::default(),
            console_ended: false,
            outcome: None,
            kill_at: None,
            saved,
            devices,
            kept,
        })
    }

    /// Asks it for something. One that cannot hear is about to be seen dead.
    pub fn ask(&mut self, request: &Request) {
        self.give(request, None);
    }

    /// Asks it for something that descriptors come with.
    pub fn give(&mut self, request: &Request, descriptors: impl IntoIterator<Item = OwnedFd>) {
        let descriptors = descriptors.into_iter().collect();
        if self.payload.sender.push(request, descriptors).is_err() {
            self.payload.kill();
        }
    }

    /// Whether it has room for requests that come without bound.
    pub fn has_room(&self) -> bool {
        self.payload.sender.backlog() < BACKLOG
    }

    /// What it says. It is not trusted to speak well.
    pub fn hear(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        if let Err(error) = self.read(&mut events) {
            self.outcome.get_or_insert(Outcome::Failed {
                message: format!("croft-vmm: {error}"),
            });
            self.payload.kill();
        }
        events
    }

    fn read(&mut self, events: &mut Vec<Event>) -> Result<(), croft_api::WireError> {
        self.payload.receiver.fill()?;
        while let Some((event, _)) = self.payload.receiver.message::<Event>()? {
            match event {
                Event::Stopped(outcome) => {
                    self.outcome.get_or_insert(outcome);
                    self.kill_at.get_or_insert(Instant::now() + GRACE);
                    // What they hang on ends with it, which is no news.
                    self.kept.nics = Wires::default();
                }
                event => events.push(event),
            }
        }
        Ok(())
    }

    /// What it says outside the protocol.
    pub fn hear_stderr(&mut self) -> Vec<String> {
        self.lines.read(&mut self.payload.stderr)
    }

    /// Whether it can be heard there.
    pub fn has_stderr(&self) -> bool {
        !self.lines.ended()
    }

    /// When it is to be looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        let kill = self.kill_at.into_iter();
        kill.chain(self.kept.nics.deadline()).min()
    }

    /// Kills it if it takes too long to exit, and mends what its NICs hang on:
    /// what there is to say of that.
    pub fn look_at_the_clock(&mut self) -> Vec<String> {
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            self.kill_at = None;
            self.payload.kill();
        }
        let mut lines = Vec::new();
        for mended in self.kept.nics.mend() {
            match mended {
                Ok((request, socket)) => self.give(&request, Some(socket)),
                Err(line) => lines.push(line),
            }
        }
        lines
    }

    /// Whether it is gone and everything it said is heard.
    pub fn is_done(&self) -> bool {
        self.payload.receiver.ended() && self.console_ended && self.lines.ended()
    }

    /// How it ended; `requested` if it was asked to. And what came and went
    /// at that moment.
    pub fn reap(mut self, requested: bool) -> (Outcome, Devices) {
        let ended = self.payload.reap();
        let outcome = match self.outcome.take() {
            Some(outcome) => outcome,
            None if requested => Outcome::Requested,
            None => Outcome::Failed {
                message: match ended {
                    Ok(ended) => describe(ended, self.lines.refused()),
                    Err(error) => error.to_string(),
                },
            },
        };
        (outcome, self.devices)
    }
}
