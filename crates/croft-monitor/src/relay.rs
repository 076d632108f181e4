//! The monitor's loop while the instance runs.
//!
//! ```text
//! running ──Stop──► stopping ──5 s──► killed ──┐
//!    │                  │                      ▼
//!    └── Stopped / end of file ──► draining ──► reported
//! ```

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use croft_api::control::Event as Answer;
use croft_api::monitor::{Event, Request};
use croft_api::{Outcome, Receiver, Sender, WireError, vmm};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::console::Queue;
use crate::control;
use crate::files::Kept;
use crate::lines::Lines;
use crate::nics::Wires;
use crate::payload::{Payload, describe};
use crate::ports;
use crate::terminal::Terminal;
use crate::vsock;
use crate::wait::{asked, ready};

/// How long a payload may take to stop before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// Messages queued in one direction before the other end is read no further.
const BACKLOG: usize = 64;
/// The same for what the payload's own questions have for answers: more than
/// a payload asks that keeps to the rules.
const ANSWERS: usize = 1024;

/// Everything that is relayed.
pub struct Relay {
    sender: Sender,
    receiver: Receiver,
    console: OwnedFd,
    payload: Payload,
    kept: Kept,
    terminal: Option<Terminal>,
    /// Guest to terminal.
    output: Queue,
    /// Terminal to guest.
    input: Queue,
    /// From the payload's standard error.
    lines: Lines,
    outcome: Option<Outcome>,
    kill_at: Option<Instant>,
    stop_requested: bool,
}

/// What a descriptor in the poll set is for.
#[derive(Clone, Copy)]
enum Source {
    Croft,
    Payload,
    Terminal,
    Guest,
    Stderr,
    Control(control::Source),
    Vsock(vsock::Source),
    Port(usize, ports::End),
    Nic(u32),
}

impl Relay {
    pub fn new(
        sender: Sender,
        receiver: Receiver,
        console: OwnedFd,
        payload: Payload,
        kept: Kept,
        terminal: Option<Terminal>,
    ) -> Self {
        Relay {
            sender,
            receiver,
            console,
            payload,
            kept,
            terminal,
            output: Queue::default(),
            input: Queue::default(),
            lines: Lines::default(),
            outcome: None,
            kill_at: None,
            stop_requested: false,
        }
    }

    /// Relays until the payload has ended and everything it said is passed
    /// on, or croft is gone.
    pub fn run(mut self) -> Result<(), WireError> {
        while !self.is_drained() {
            if let Err(error) = self.step() {
                // No croft, no instance: what is left is to clean up.
                self.payload.kill();
                if let Some(terminal) = &self.terminal {
                    terminal.restore();
                }
                return match error {
                    Gone::Closed => Ok(()),
                    Gone::Broken(error) => Err(error),
                };
            }
        }
        let status = self.payload.reap();
        let outcome = match self.outcome.take() {
            Some(outcome) => outcome,
            None if self.stop_requested => Outcome::Requested,
            None => Outcome::Failed {
                message: match status {
                    Ok(ended) => describe(ended, self.lines.refused()),
                    Err(error) => error.to_string(),
                },
            },
        };
        if let Some(control) = &mut self.kept.control {
            // Only now are the disks free.
            control.saved(&match &outcome {
                Outcome::Saved => Answer::Saved,
                _ => Answer::Failed {
                    message: "the machine ended before it was saved".to_owned(),
                },
            });
        }
        self.sender.deliver(&Event::Stopped(outcome), vec![])
    }

    fn is_drained(&self) -> bool {
        self.payload.receiver.ended() && self.output.is_done() && self.lines.ended()
    }

    /// Waits for something to do, and does it.
    fn step(&mut self) -> Result<(), Gone> {
        for (source, ready) in self.wait().map_err(|error| {
            Gone::Broken(WireError::Io {
                peer: "poll",
                source: error.into(),
            })
        })? {
            let readable = ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
            let writable = ready.intersects(PollFlags::OUT | PollFlags::ERR);
            match source {
                Source::Croft if readable => self.hear_croft()?,
                Source::Payload if readable => self.hear_payload()?,
                Source::Stderr => self.hear_stderr()?,
                Source::Guest => {
                    if readable && self.output.wants_input() {
                        self.read_guest()?;
                    }
                    if writable && self.input.wants_output() {
                        self.input.write_to(&self.payload.console);
                    }
                }
                Source::Terminal => {
                    if readable && self.input.wants_input() {
                        self.input.read_from(&self.console, |_| {});
                    }
                    if writable && self.output.wants_output() {
                        self.output.write_to(&self.console);
                    }
                }
                Source::Control(source) => self.hear_control(source)?,
                Source::Vsock(source) => self.hear_vsock(source)?,
                Source::Port(index, end) => {
                    if let Some(port) = self.kept.ports.get_mut(index) {
                        port.hear(end, ready);
                    }
                }
                Source::Nic(process) => {
                    for line in self.kept.nics.hear(process) {
                        self.say(line)?;
                    }
                }
                Source::Croft | Source::Payload => {}
            }
        }
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            self.kill_at = None;
            self.payload.kill();
        }
        for mended in self.kept.nics.mend() {
            match mended {
                Ok((request, socket)) => self.payload.sender.push(&request, vec![socket])?,
                Err(line) => self.say(line)?,
            }
        }
        // A payload that cannot be written to is about to be seen dead.
        let _ = self.payload.sender.flush();
        self.sender.flush()?;
        Ok(())
    }

    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, Errno> {
        let when = |condition: bool, flag: PollFlags| {
            if condition { flag } else { PollFlags::empty() }
        };
        let read = PollFlags::IN;
        let write = PollFlags::OUT;
        let listening = self.sender.backlog() < BACKLOG;
        let answering = self.payload.sender.backlog() < ANSWERS;
        let interests: [(Source, BorrowedFd<'_>, PollFlags); 5] = [
            (
                Source::Croft,
                self.receiver.as_fd(),
                when(self.payload.sender.backlog() < BACKLOG, read)
                    | when(self.sender.backlog() > 0, write),
            ),
            (
                Source::Payload,
                self.payload.receiver.as_fd(),
                when(
                    listening && answering && !self.payload.receiver.ended(),
                    read,
                ) | when(self.payload.sender.backlog() > 0, write),
            ),
            (
                Source::Terminal,
                self.console.as_fd(),
                when(self.input.wants_input(), read) | when(self.output.wants_output(), write),
            ),
            (
                Source::Guest,
                self.payload.console.as_fd(),
                when(self.output.wants_input(), read) | when(self.input.wants_output(), write),
            ),
            (
                Source::Stderr,
                self.payload.stderr.as_fd(),
                when(listening && !self.lines.ended(), read),
            ),
        ];
        let control = self.kept.control.iter().flat_map(|control| {
            let sources = control.sources().into_iter();
            sources.map(|(source, descriptor)| (Source::Control(source), descriptor, read))
        });
        let room = self.payload.sender.backlog() < BACKLOG;
        let vsock = self.kept.vsock.iter().filter(|_| room).flat_map(|vsock| {
            let sources = vsock.sources().into_iter();
            sources.map(|(source, descriptor)| (Source::Vsock(source), descriptor, read))
        });
        let ports = self
            .kept
            .ports
            .iter()
            .enumerate()
            .flat_map(|(index, port)| {
                let interests = port.interests().into_iter();
                interests.map(move |(end, descriptor, flags)| {
                    (Source::Port(index, end), descriptor, flags)
                })
            });
        let nics = self.kept.nics.sources();
        let nics = nics
            .map(|(process, descriptor)| (Source::Nic(process), descriptor, when(listening, read)));
        // The hang-up of Croft's socket is of interest always.
        let interests: Vec<_> = interests
            .into_iter()
            .chain(control)
            .chain(vsock)
            .chain(ports)
            .chain(nics)
            .filter(|interest| asked(interest) || matches!(interest.0, Source::Croft))
            .collect();
        let left = |at: Instant| at.saturating_duration_since(Instant::now());
        let deadline = self.kill_at.into_iter().chain(self.kept.nics.deadline());
        ready(&interests, deadline.min().map(left))
    }

    fn hear_croft(&mut self) -> Result<(), Gone> {
        self.receiver.fill()?;
        while let Some((request, _)) = self.receiver.message::<Request>()? {
            let request = match request {
                Request::Run(_) | Request::Restore(_) | Request::Keep(_) => {
                    return Err(Gone::Broken(WireError::Damaged("a second Run")));
                }
                Request::PowerButton => vmm::Request::PowerButton,
                Request::Pause => vmm::Request::Pause,
                Request::Resume => vmm::Request::Resume,
                Request::Stop => {
                    self.stop_requested = true;
                    self.end_soon();
                    vmm::Request::Stop
                }
            };
            self.payload.sender.push(&request, vec![])?;
        }
        if self.receiver.ended() {
            return Err(Gone::Closed);
        }
        Ok(())
    }

    fn hear_payload(&mut self) -> Result<(), Gone> {
        if let Err(error) = self.take_events() {
            match error {
                Gone::Closed => return Err(error),
                // The payload is not trusted to speak well.
                Gone::Broken(error) => {
                    self.outcome.get_or_insert(Outcome::Failed {
                        message: format!("croft-vmm: {error}"),
                    });
                    self.payload.kill();
                }
            }
        }
        Ok(())
    }

    fn take_events(&mut self) -> Result<(), Gone> {
        self.payload.receiver.fill()?;
        while let Some((event, _)) = self.payload.receiver.message::<vmm::Event>()? {
            let event = match event {
                vmm::Event::Started { engine, reason } => Event::Started { engine, reason },
                vmm::Event::Paused => Event::Paused,
                vmm::Event::Resumed => Event::Resumed,
                vmm::Event::DiskFailed { disk, message } => Event::DiskFailed { disk, message },
                vmm::Event::DiskResized { disk, error } => Event::Log {
                    text: match error {
                        None => format!("disk{disk} has its new size"),
                        Some(error) => format!("disk{disk} is not resized: {error}"),
                    },
                },
                // Nobody asks for them here; a guest may let a device go.
                vmm::Event::Attached { .. }
                | vmm::Event::AttachFailed { .. }
                | vmm::Event::DetachFailed { .. } => continue,
                vmm::Event::Detached { device } => {
                    if let Some(control) = &mut self.kept.control {
                        control.forget(&device);
                    }
                    Event::Log {
                        text: format!("the guest has let {device} go by itself"),
                    }
                }
                vmm::Event::SaveFailed { message } => {
                    if let Some(control) = &mut self.kept.control {
                        let message = message.clone();
                        control.saved(&Answer::Failed { message });
                    }
                    Event::Log {
                        text: format!("not saved: {message}"),
                    }
                }
                vmm::Event::VsockRequest { id, port } => {
                    // Where nobody listens the guest is refused.
                    let vsock = self.kept.vsock.as_ref();
                    let socket = vsock.and_then(|vsock| vsock.connect(port).ok());
                    let answer = vmm::Request::VsockAnswer { id };
                    let socket = socket.into_iter().collect();
                    self.payload.sender.push(&answer, socket)?;
                    continue;
                }
                vmm::Event::NicLost { nic } => Event::Log {
                    text: format!("{nic} has lost its network"),
                },
                vmm::Event::Panicked { crash_kernel } => Event::Panicked { crash_kernel },
                vmm::Event::Log { text } => Event::Log { text },
                vmm::Event::Stopped(outcome) => {
                    self.outcome.get_or_insert(outcome);
                    // What they hang on ends with it, which is no news.
                    self.kept.nics = Wires::default();
                    self.end_soon();
                    continue;
                }
            };
            self.sender.push(&event, vec![])?;
        }
        Ok(())
    }

    fn hear_control(&mut self, source: control::Source) -> Result<(), Gone> {
        let asked = self.kept.control.as_mut().and_then(|c| c.hear(source));
        if let Some((file, devices)) = asked {
            let request = vmm::Request::Save { devices };
            self.payload.sender.push(&request, vec![file])?;
        }
        Ok(())
    }

    fn hear_vsock(&mut self, source: vsock::Source) -> Result<(), Gone> {
        let asked = self.kept.vsock.as_mut().and_then(|v| v.hear(source));
        if let Some((port, socket)) = asked {
            let request = vmm::Request::VsockConnect { port };
            self.payload.sender.push(&request, vec![socket])?;
        }
        Ok(())
    }

    fn end_soon(&mut self) {
        self.kill_at.get_or_insert(Instant::now() + GRACE);
    }

    fn read_guest(&mut self) -> Result<(), WireError> {
        let mut failed = None;
        let log = &mut self.kept.log;
        self.output.read_from(&self.payload.console, |bytes| {
            if let Some(Err(error)) = log.as_mut().map(|log| append(log, bytes)) {
                failed = Some(error);
            }
        });
        if let Some(error) = failed {
            self.kept.log = None;
            self.say(format!("the console log ends here: {error}"))?;
        }
        Ok(())
    }

    fn hear_stderr(&mut self) -> Result<(), WireError> {
        for line in self.lines.read(&mut self.payload.stderr) {
            self.say(format!("croft-vmm: {line}"))?;
        }
        Ok(())
    }

    fn say(&mut self, text: String) -> Result<(), WireError> {
        self.sender.push(&Event::Log { text }, vec![])
    }
}

fn append(log: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    log.write_all(bytes)
}

/// Why relaying cannot go on.
enum Gone {
    /// Croft is gone.
    Closed,
    /// Croft speaks nonsense, or its socket failed.
    Broken(WireError),
}

impl From<WireError> for Gone {
    fn from(error: WireError) -> Self {
        Gone::Broken(error)
    }
}
