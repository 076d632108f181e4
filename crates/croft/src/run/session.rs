//! The loop of `croft run`.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use croft_api::monitor::{Event, Request};
use croft_api::{Outcome, WireError};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;
use rustix::termios::isatty;

use super::host;
use super::input::{Heard, Input};
use super::monitor::{Monitor, Start};
use super::output::Output;
use super::signals::Signals;
use super::terminal::Terminal;
use crate::exit::Exit;
use crate::say;

/// How long a machine that was asked to end may take, before croft goes and
/// everything goes with it. A little more than the monitor allows the vmm.
const GRACE: Duration = Duration::from_secs(6);
/// The same when nobody can read its output.
const STALLED: Duration = Duration::from_secs(1);

/// Runs a machine until it ends.
pub fn run(start: Start, auto: bool) -> Result<Exit, String> {
    // Before any thread is made, so that all of them leave the signals to us.
    let signals = Signals::new().map_err(host("cannot wait for signals"))?;
    let terminal = Terminal::open();
    let sockets = start.sockets();
    let monitor = Monitor::start(start, terminal.as_ref())?;
    let console = monitor
        .console
        .try_clone()
        .map_err(host("cannot share the console"))?;
    let output = Output::start(console).map_err(host("cannot start a thread"))?;
    let mut session = Session {
        input: Input::new(terminal.is_some(), terminal.is_some() || !isatty(stdin())),
        signals,
        terminal,
        monitor,
        output: Some(output),
        output_error: None,
        auto,
        running: false,
        outcome: None,
        leaving: None,
    };
    let result = session.serve();
    session.terminal.take();
    let Session {
        monitor,
        output_error,
        outcome,
        leaving,
        running,
        ..
    } = session;
    if let Some(error) = output_error {
        return Err(format!(
            "cannot write to standard output: {error}; the machine was ended"
        ));
    }
    result.map_err(|error| error.to_string())?;
    if let Some(leaving) = leaving {
        if monitor.receiver.ended() {
            monitor.reap();
        }
        return Ok(leaving.exit);
    }
    match outcome {
        Some(outcome) => {
            monitor.reap();
            Ok(report(&outcome))
        }
        None => {
            let message = monitor.reap();
            for path in sockets.into_iter().filter(|_| running) {
                // The monitor made it and had no chance to remove it.
                let _ = std::fs::remove_file(path);
            }
            Err(message)
        }
    }
}

/// Says how the machine ended, where there is more to say than the code.
fn report(outcome: &Outcome) -> Exit {
    match outcome {
        Outcome::PowerOff => Exit::PowerOff,
        Outcome::Reset => {
            say::line("croft: the guest asked for a reset (--no-reboot)");
            Exit::Reset
        }
        Outcome::TripleFault { report } => {
            say::line("croft: the guest faulted three times in a row; its registers were");
            for line in report.lines() {
                say::line(&format!("  {line}"));
            }
            Exit::TripleFault
        }
        Outcome::DebugExit { status } => Exit::Debug(*status),
        Outcome::Requested => {
            say::line("croft: the machine was ended on request");
            Exit::Failed
        }
        Outcome::Saved => {
            say::line("croft: the machine was saved");
            Exit::Saved
        }
        // What is in the foreground is a machine.
        Outcome::Exited { status } => Exit::Command(*status),
        Outcome::Killed { signal, .. } => Exit::Signal(*signal),
        Outcome::Invalid { message } | Outcome::NotExecuted { message, .. } => {
            say::line(&format!("croft: {message}"));
            Exit::Usage
        }
        Outcome::Failed { message } => {
            say::line(&format!("croft: {message}"));
            Exit::Failed
        }
    }
}

/// The machine was asked to end.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    exit: Exit,
    /// Nothing is waited for after this.
    at: Instant,
}

struct Session {
    input: Input,
    signals: Signals,
    terminal: Option<Terminal>,
    monitor: Monitor,
    /// Until it has ended.
    output: Option<Output>,
    output_error: Option<io::Error>,
    auto: bool,
    running: bool,
    outcome: Option<Outcome>,
    leaving: Option<Leaving>,
}

impl Session {
    /// Until the monitor has said everything and all output is written, or
    /// there was enough time for it.
    fn serve(&mut self) -> Result<(), WireError> {
        while !(self.monitor.receiver.ended() && self.output.is_none()) {
            if self
                .leaving
                .is_some_and(|leaving| leaving.at <= Instant::now())
            {
                return Ok(());
            }
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), WireError> {
        let when = |condition: bool, flag: PollFlags| {
            if condition { flag } else { PollFlags::empty() }
        };
        let ended = self.monitor.receiver.ended();
        let interests = [
            (self.signals.as_fd(), PollFlags::IN),
            (
                self.monitor.receiver.as_fd(),
                when(!ended, PollFlags::IN)
                    | when(!ended && self.monitor.sender.backlog() > 0, PollFlags::OUT),
            ),
            (
                self.output.as_ref().map_or(stdin(), |o| o.ended.as_fd()),
                when(self.output.is_some(), PollFlags::IN),
            ),
            (stdin(), when(self.input.wants_input(), PollFlags::IN)),
            (
                self.monitor.console.as_fd(),
                when(self.input.wants_output(), PollFlags::OUT),
            ),
        ];
        let mut ready = [false; 5];
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
        let timeout = self.leaving.map(|leaving| {
            let left = leaving.at.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or_default()
        });
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(WireError::Io {
                    peer: "poll",
                    source: error.into(),
                });
            }
        }
        for (place, descriptor) in places.iter().zip(&descriptors) {
            if let Some(ready) = ready.get_mut(*place) {
                *ready = !descriptor.revents().is_empty();
            }
        }
        let [signal, monitor, output, input, console] = ready;
        if signal {
            self.hear_signal()?;
        }
        if monitor {
            self.hear_monitor()?;
        }
        if output
            && let Some(output) = self.output.take()
            && let Err(error) = output.join()
        {
            self.output_error = Some(error);
            self.ask_to_end(Exit::Failed, STALLED)?;
        }
        if input && self.input.read() == Heard::Leave {
            // The guest's line is not ended.
            say::ended("", "\r\n");
            self.say("left");
            self.ask_to_end(Exit::Left, GRACE)?;
        }
        if console {
            self.input.write(&self.monitor.console);
        }
        // A monitor that cannot be written to is about to be seen dead, after
        // its last words.
        let _ = self.monitor.sender.flush();
        Ok(())
    }

    fn hear_signal(&mut self) -> Result<(), WireError> {
        match self.signals.next() {
            Some(Signal::SIGCONT) => {
                if let Some(terminal) = &mut self.terminal {
                    terminal.make_raw_again();
                }
                Ok(())
            }
            Some(signal) => {
                let number = u8::try_from(signal as i32).unwrap_or(0);
                self.say(&format!("{signal}: ending the machine"));
                self.ask_to_end(Exit::Signal(number), GRACE)
            }
            None => Ok(()),
        }
    }

    fn hear_monitor(&mut self) -> Result<(), WireError> {
        self.monitor.receiver.fill()?;
        while let Some((event, _)) = self.monitor.receiver.message::<Event>()? {
            match event {
                Event::Started { engine, reason } => self.started(&engine, &reason),
                Event::Log { text } => self.say(&text),
                // A line in the log says so, too.
                Event::Panicked { .. } => {}
                Event::Paused => self.say("paused"),
                Event::Resumed => self.say("resumed"),
                Event::DiskFailed { disk, message } => self.say(&format!(
                    "paused because the host failed: {disk}, {message}; it goes on by itself when \
                     that is mended"
                )),
                Event::Stopped(outcome) => self.outcome = Some(outcome),
            }
        }
        Ok(())
    }

    fn started(&mut self, engine: &str, reason: &str) {
        self.running = true;
        if self.auto {
            self.say(&format!("engine {engine}: {reason}"));
        }
        let Some(terminal) = &mut self.terminal else {
            return;
        };
        match terminal.make_raw() {
            Ok(()) => self.say("this terminal is the guest's console; Ctrl-] leaves"),
            Err(error) => self.say(&format!("the terminal stays as it is: {error}")),
        }
    }

    /// Asks once; asking again ends the waiting.
    fn ask_to_end(&mut self, exit: Exit, patience: Duration) -> Result<(), WireError> {
        match &mut self.leaving {
            Some(leaving) => leaving.at = Instant::now(),
            None => {
                self.leaving = Some(Leaving {
                    exit,
                    at: Instant::now() + patience,
                });
                self.monitor.sender.push(&Request::Stop, vec![])?;
            }
        }
        Ok(())
    }

    fn say(&self, text: &str) {
        let raw = self.terminal.as_ref().is_some_and(Terminal::is_raw);
        let end = if raw { "\r\n" } else { "\n" };
        say::ended(&format!("croft: {text}"), end);
    }
}
