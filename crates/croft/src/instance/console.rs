//! `croft console`, and whatever else shows a console.
//!
//! ```text
//! attached ──► looking ──► Ctrl-], signal: the instance goes on
//!                 └─ end of its console ──► how it ended
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use croft_api::control::{Event, Request, Writing};
use croft_api::{Outcome, Status};
use croft_host::{Client, ClientError, InstanceName, Instances};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;
use rustix::termios::isatty;

use super::{Fault, connect, finish, open};
use crate::args::instance::ConsoleOptions;
use crate::exit::Exit;
use crate::run::host;
use crate::run::input::{Heard, Input};
use crate::run::output::Output;
use crate::run::signals::Signals;
use crate::run::terminal::Terminal;
use crate::say;

/// Shows an instance's console.
pub fn console(options: &ConsoleOptions) -> Exit {
    let view_options = View {
        console: options.port,
        writing: match (options.read_only, options.take) {
            (true, _) => Writing::No,
            (_, true) => Writing::Take,
            _ => Writing::IfFree,
        },
        lines: None,
    };
    finish(open().and_then(|instances| view(&instances, &options.name.name, view_options)))
}

/// How to look at a console.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Which one.
    pub console: u32,
    /// Whether to write to it.
    pub writing: Writing,
    /// So many lines of the past at most.
    pub lines: Option<u32>,
}

impl Default for View {
    fn default() -> Self {
        View {
            console: 0,
            writing: Writing::IfFree,
            lines: None,
        }
    }
}

/// Shows a console until it ends or whoever looks leaves.
pub fn view(instances: &Instances, name: &InstanceName, view: View) -> Result<Exit, Fault> {
    // Before any thread is made, so that all of them leave the signals to us.
    let signals = Signals::new()
        .map_err(host("cannot wait for signals"))
        .map_err(Fault::failed)?;
    let mut client = connect(instances, name).map_err(|fault| fault.of(name))?;
    let (event, console) = client
        .descriptor(&Request::Attach {
            console: view.console,
            writing: view.writing,
            lines: view.lines,
        })
        .map_err(|error| Fault::from(error).of(name))?;
    client.watch()?;
    let writer = matches!(event, Event::Attached { writer: true });
    let mut terminal = match view.writing {
        Writing::No => None,
        _ => Terminal::open(),
    };
    let raw = terminal.as_mut().map(Terminal::make_raw);
    let output = console
        .try_clone()
        .and_then(Output::start)
        .map_err(host("cannot show the console"))
        .map_err(Fault::failed)?;
    let readable = writer && (terminal.is_some() || !isatty(stdin()));
    let mut viewer = Viewer {
        // Ctrl-] is heard of who may not write, too.
        input: Input::new(terminal.is_some(), readable || terminal.is_some()),
        writer,
        signals,
        terminal,
        console,
        client,
        client_ended: false,
        output: Some(output),
        last: None,
    };
    viewer.greet(name, view.writing, raw);
    let left = viewer.look()?;
    viewer.terminal.take();
    match (left, viewer.last) {
        (Some(exit), _) => {
            say::line(&format!(
                "croft: {name} goes on; 'croft console {name}' comes back to it"
            ));
            Ok(exit)
        }
        (None, status) => ended(name, status),
    }
}

/// How an instance ended whose console has ended.
fn ended(name: &InstanceName, status: Option<Status>) -> Result<Exit, Fault> {
    let Some(outcome) = status.and_then(|status| status.outcome) else {
        return Err(Fault::failed("its monitor died").of(name));
    };
    match outcome {
        Outcome::PowerOff => Ok(Exit::PowerOff),
        Outcome::Requested => {
            say::line(&format!("croft: {name} was stopped"));
            Ok(Exit::PowerOff)
        }
        Outcome::Saved => Ok(Exit::Saved),
        Outcome::Reset => Ok(Exit::Reset),
        Outcome::DebugExit { status } => Ok(Exit::Debug(status)),
        Outcome::TripleFault { report } => {
            say::line(&format!(
                "croft: {name} faulted three times in a row; its registers were"
            ));
            for line in report.lines() {
                say::line(&format!("  {line}"));
            }
            Ok(Exit::TripleFault)
        }
        Outcome::Exited { status } => Ok(Exit::Command(status)),
        Outcome::Killed { signal, .. } => Ok(Exit::Signal(signal)),
        Outcome::NotExecuted { status, message } => {
            say::line(&format!("croft: {name}: {message}"));
            Ok(Exit::Command(status))
        }
        Outcome::Invalid { message } => Err(Fault::usage(message).of(name)),
        Outcome::Failed { message } => Err(Fault::failed(message).of(name)),
    }
}

struct Viewer {
    input: Input,
    writer: bool,
    signals: Signals,
    terminal: Option<Terminal>,
    console: OwnedFd,
    client: Client,
    client_ended: bool,
    /// Until it has ended.
    output: Option<Output>,
    /// What was last known of the instance.
    last: Option<Status>,
}

impl Viewer {
    fn greet(&self, name: &InstanceName, wanted: Writing, raw: Option<io::Result<()>>) {
        if !self.writer && wanted != Writing::No {
            self.say("somebody else writes to this console; --take takes it over");
        }
        match raw {
            Some(Ok(())) => self.say(&format!(
                "this terminal is the console of {name}; Ctrl-] leaves"
            )),
            Some(Err(error)) => self.say(&format!("the terminal stays as it is: {error}")),
            None => {}
        }
    }

    /// Until the console has ended; the exit code if it was left.
    fn look(&mut self) -> Result<Option<Exit>, Fault> {
        while !(self.output.is_none() && self.client_ended) {
            if let Some(exit) = self.step()? {
                return Ok(Some(exit));
            }
        }
        Ok(None)
    }

    fn step(&mut self) -> Result<Option<Exit>, Fault> {
        let when = |condition: bool, flag: PollFlags| {
            if condition { flag } else { PollFlags::empty() }
        };
        let interests = [
            (self.signals.as_fd(), PollFlags::IN),
            (self.client.as_fd(), when(!self.client_ended, PollFlags::IN)),
            (
                self.output.as_ref().map_or(stdin(), |o| o.ended.as_fd()),
                when(self.output.is_some(), PollFlags::IN),
            ),
            (stdin(), when(self.input.wants_input(), PollFlags::IN)),
            (
                self.console.as_fd(),
                when(self.writer && self.input.wants_output(), PollFlags::OUT),
            ),
        ];
        // A hang-up is reported even where nothing is asked for: what is of
        // no interest stays out.
        let (places, mut descriptors): (Vec<usize>, Vec<PollFd<'_>>) = interests
            .iter()
            .enumerate()
            .filter(|(_, (_, flags))| !flags.is_empty())
            .map(|(place, (descriptor, flags))| {
                (place, PollFd::from_borrowed_fd(*descriptor, *flags))
            })
            .unzip();
        match poll(&mut descriptors, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Fault::failed(format!("cannot wait: {error}"))),
        }
        let mut ready = [false; 5];
        for (place, descriptor) in places.iter().zip(&descriptors) {
            if let Some(ready) = ready.get_mut(*place) {
                *ready = !descriptor.revents().is_empty();
            }
        }
        let [signal, client, output, input, console] = ready;
        if signal && let Some(exit) = self.hear_signal() {
            return Ok(Some(exit));
        }
        if client {
            self.hear_client()?;
        }
        if output
            && let Some(output) = self.output.take()
            && let Err(error) = output.join()
        {
            return Err(Fault::failed(format!(
                "cannot write to standard output: {error}"
            )));
        }
        if input && self.input.read() == Heard::Leave {
            // The guest's line is not ended.
            say::ended("", "\r\n");
            return Ok(Some(Exit::Left));
        }
        if console {
            self.input.write(&self.console);
        }
        if !self.writer {
            self.input.forget();
        }
        Ok(None)
    }

    fn hear_signal(&mut self) -> Option<Exit> {
        match self.signals.next() {
            Some(Signal::SIGCONT) => {
                if let Some(terminal) = &mut self.terminal {
                    terminal.make_raw_again();
                }
                None
            }
            Some(signal) => {
                let number = u8::try_from(signal as i32).unwrap_or(0);
                Some(Exit::Signal(number))
            }
            None => None,
        }
    }

    fn hear_client(&mut self) -> Result<(), Fault> {
        loop {
            match self.client.next(Some(Duration::ZERO)) {
                Ok(Some(Event::Status(status))) => self.last = Some(*status),
                Ok(Some(Event::Log { text })) => self.say(&text),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(ClientError::Gone) => {
                    self.client_ended = true;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn say(&self, text: &str) {
        let raw = self.terminal.as_ref().is_some_and(Terminal::is_raw);
        let end = if raw { "\r\n" } else { "\n" };
        say::ended(&format!("croft: {text}"), end);
    }
}
