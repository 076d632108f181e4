//! A container's standard streams here: of one that is run in the foreground,
//! and of one that is attached to.
//!
//! ```text
//! standard input ──► socket 0 ──► the program ──► socket 0 ──► standard output
//! signals ──► control socket ──► the program ──► socket 1 ──► standard error
//! ```
//!
//! With a terminal there is one socket, and its keys are the program's, except
//! Ctrl-], which leaves.

use std::os::fd::OwnedFd;
use std::time::Duration;

use croft_api::control::Request;
use croft_api::{Outcome, pair};
use croft_host::{Client, InstanceName, Instances, StartError};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::tcgetwinsize;

use crate::exit::Exit;
use crate::instance::Fault;
use crate::run::host;
use crate::run::input::{Heard, Input};
use crate::run::output::Output;
use crate::run::signals::Signals;
use crate::run::terminal::Terminal;
use crate::say;

/// Signals that end croft: the third leaves the container to itself.
const INSISTENCE: u32 = 3;

/// What of this process is the container's.
#[derive(Clone, Copy, Debug)]
pub struct Foreground {
    /// It has a terminal.
    pub tty: bool,
    /// It reads standard input.
    pub stdin: bool,
}

/// Starts a container and stays with it to its end.
pub fn run(
    instances: &Instances,
    name: &InstanceName,
    foreground: Foreground,
) -> Result<Exit, Fault> {
    let signals = signals()?;
    let count = if foreground.tty { 1 } else { 2 };
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..count {
        let made = pair().map_err(host("cannot make a socket"));
        let (near, far) = made.map_err(Fault::failed)?;
        ours.push(near);
        theirs.push(far);
    }
    let log = |text: &str| say::line(&format!("croft: {name}: {text}"));
    let attached = match instances.start_attached(name, theirs, log) {
        Ok(attached) => attached,
        Err(error) => return refused(name, error),
    };
    let mut streams = Streams::new(instances, name, foreground, ours, signals)?;
    if let Some(exit) = streams.follow()? {
        return Ok(exit);
    }
    // The terminal is the shell's again before anything is said.
    drop(streams);
    let outcome = attached.wait(log);
    ended(name, outcome.map_err(|error| Fault::from(error).of(name))?)
}

/// How a container was not started.
pub fn refused(name: &InstanceName, error: StartError) -> Result<Exit, Fault> {
    match error {
        StartError::NotExecuted { status, message } => {
            say::line(&format!("croft: {name}: {message}"));
            Ok(Exit::Command(status))
        }
        // It is over already.
        StartError::Ended(outcome) => ended(name, outcome),
        error => Err(Fault::from(error).of(name)),
    }
}

/// How a container ended, as its exit code.
pub fn ended(name: &InstanceName, outcome: Outcome) -> Result<Exit, Fault> {
    match outcome {
        Outcome::Exited { status } => Ok(Exit::Command(status)),
        Outcome::Killed {
            signal,
            out_of_memory,
        } => {
            if out_of_memory {
                say::line(&format!(
                    "croft: {name} was ended for want of memory; --memory gives it more"
                ));
            }
            Ok(Exit::Signal(signal))
        }
        Outcome::NotExecuted { status, message } => {
            say::line(&format!("croft: {name}: {message}"));
            Ok(Exit::Command(status))
        }
        Outcome::Invalid { message } => Err(Fault::usage(message).of(name)),
        Outcome::Failed { message } => Err(Fault::failed(message).of(name)),
        Outcome::PowerOff
        | Outcome::Reset
        | Outcome::TripleFault { .. }
        | Outcome::DebugExit { .. }
        | Outcome::Requested
        | Outcome::Saved => Ok(Exit::PowerOff),
    }
}

/// Those that are the container's, before any thread is made.
pub fn signals() -> Result<Signals, Fault> {
    let others = [Signal::SIGWINCH, Signal::SIGUSR1, Signal::SIGUSR2];
    Signals::with(&others)
        .map_err(host("cannot wait for signals"))
        .map_err(Fault::failed)
}

/// A container's streams, joined to this process's.
pub struct Streams<'a> {
    instances: &'a Instances,
    name: &'a InstanceName,
    foreground: Foreground,
    sockets: Vec<OwnedFd>,
    outputs: Vec<Output>,
    input: Input,
    input_closed: bool,
    terminal: Option<Terminal>,
    signals: Signals,
    /// How often somebody wanted croft to end.
    insisted: u32,
}

impl<'a> Streams<'a> {
    /// Joins them.
    pub fn new(
        instances: &'a Instances,
        name: &'a InstanceName,
        foreground: Foreground,
        sockets: Vec<OwnedFd>,
        signals: Signals,
    ) -> Result<Self, Fault> {
        let mut outputs = Vec::new();
        for (socket, to) in sockets.iter().zip([stdout(), stderr()]) {
            let output = socket.try_clone().and_then(|one| Output::start_to(one, to));
            let output = output.map_err(host("cannot show the streams"));
            outputs.push(output.map_err(Fault::failed)?);
        }
        let mut terminal = match foreground.tty && foreground.stdin {
            true => Terminal::open(),
            false => None,
        };
        if let Some(Err(error)) = terminal.as_mut().map(Terminal::make_raw) {
            say::line(&format!("croft: the terminal stays as it is: {error}"));
        }
        let streams = Streams {
            instances,
            name,
            foreground,
            sockets,
            outputs,
            input: Input::new(terminal.is_some(), foreground.stdin),
            input_closed: false,
            terminal,
            signals,
            insisted: 0,
        };
        streams.resize();
        Ok(streams)
    }

    /// Until they have ended; the exit code if they were left.
    pub fn follow(&mut self) -> Result<Option<Exit>, Fault> {
        while !self.outputs.is_empty() {
            if let Some(exit) = self.step()? {
                return Ok(Some(exit));
            }
        }
        Ok(None)
    }

    fn step(&mut self) -> Result<Option<Exit>, Fault> {
        let mut waits = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let reads = self.input.wants_input();
        if reads {
            waits.push(PollFd::from_borrowed_fd(stdin(), PollFlags::IN));
        }
        let writes = self.input.wants_output();
        if let Some(socket) = self.sockets.first().filter(|_| writes) {
            waits.push(PollFd::new(socket, PollFlags::OUT));
        }
        for output in &self.outputs {
            waits.push(PollFd::new(&output.ended, PollFlags::IN));
        }
        match poll(&mut waits, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Fault::failed(format!("cannot wait: {error}"))),
        }
        let mut ready = waits.iter().map(|wait| !wait.revents().is_empty());
        let mut next = |there: bool| there && ready.next() == Some(true);
        let signal = next(true);
        let (input, output) = (next(reads), next(writes));
        let ended: Vec<bool> = ready.collect();
        drop(waits);
        if signal && let Some(exit) = self.hear_signal() {
            return Ok(Some(exit));
        }
        if input && self.input.read() == Heard::Leave {
            say::ended("", "\r\n");
            drop(self.terminal.take());
            let name = self.name;
            say::line(&format!(
                "croft: {name} goes on; 'croft attach {name}' comes back to it"
            ));
            return Ok(Some(Exit::Left));
        }
        if output && let Some(socket) = self.sockets.first() {
            self.input.write(socket);
        }
        self.close_input();
        for (index, _) in ended.iter().enumerate().rev().filter(|(_, ended)| **ended) {
            let joined = self.outputs.remove(index).join();
            joined.map_err(|error| {
                Fault::failed(format!("cannot write to standard output: {error}"))
            })?;
        }
        Ok(None)
    }

    /// The end of standard input is the end of the program's.
    fn close_input(&mut self) {
        if self.foreground.stdin && self.input.is_ended() && !self.input_closed {
            self.input_closed = true;
            if let Some(socket) = self.sockets.first() {
                // It may have ended.
                let _ = shutdown(socket, Shutdown::Write);
            }
        }
    }

    fn hear_signal(&mut self) -> Option<Exit> {
        match self.signals.next()? {
            Signal::SIGCONT => {
                if let Some(terminal) = &mut self.terminal {
                    terminal.make_raw_again();
                }
                self.resize();
            }
            Signal::SIGWINCH => self.resize(),
            signal => {
                let number = signal as i32;
                if matches!(signal, Signal::SIGINT | Signal::SIGTERM) {
                    self.insisted += 1;
                }
                if self.insisted >= INSISTENCE {
                    return Some(Exit::Signal(u8::try_from(number).unwrap_or(0)));
                }
                self.ask(&Request::Signal { signal: number });
            }
        }
        None
    }

    /// Tells the container's terminal the size of this one.
    fn resize(&self) {
        if !self.foreground.tty {
            return;
        }
        if let Ok(size) = tcgetwinsize(stdin()) {
            self.ask(&Request::ResizeConsole {
                console: 0,
                columns: size.ws_col,
                rows: size.ws_row,
            });
        }
    }

    /// Asks the monitor for something. A container that is ending hears
    /// nothing, which is soon seen.
    fn ask(&self, request: &Request) {
        const SOON: Duration = Duration::from_secs(5);
        let socket = self.instances.directories().socket(self.name);
        if let Ok(mut client) = Client::connect(&socket) {
            let _ = client.ask_within(request, vec![], Some(SOON));
        }
    }
}
