//! `croft exec` in a container.
//!
//! ```text
//! standard streams ───descriptors──► monitor ──► the command
//! terminal ◄──► pty ◄──descriptor─── monitor
//! signals ──► ExecSignal ──► monitor ──► the command
//! ```
//!
//! The command has this process's own files and pipes: nothing copies them. A
//! terminal is not given away: the command has a pipe, or a pty with --tty.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use croft_api::agent::Exec;
use croft_api::container::ExecSpec;
use croft_api::control::{Event, Request};
use croft_host::{Client, ClientError, InstanceName, Instances};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{Winsize, isatty, tcgetwinsize, tcsetwinsize};

use super::foreground;
use crate::exit::Exit;
use crate::instance::{Fault, connect};
use crate::run::input::Input;
use crate::run::signals::Signals;
use crate::run::terminal::Terminal;
use crate::say;

/// Bytes moved at once.
const PIECE: usize = 16 * 1024;

/// Runs a command in a container, with this process's inputs and outputs.
pub fn in_container(
    instances: &Instances,
    name: &InstanceName,
    task: &Exec,
    tty: bool,
) -> Result<Exit, Fault> {
    let failed = |error: io::Error| Fault::failed(format!("cannot prepare it: {error}")).of(name);
    let mut terminal = if tty { Terminal::open() } else { None };
    if tty && terminal.is_none() {
        return Err(Fault::usage(
            "standard input is no terminal; leave out --tty",
        ));
    }
    let spec = spec(task, tty)?;
    let signals = foreground::signals()?;
    let (mut ends, descriptors) = match tty {
        true => (Ends::default(), Vec::new()),
        false => Ends::make(task.stdin).map_err(failed)?,
    };
    let mut client = connect(instances, name).map_err(|fault| fault.of(name))?;
    let answer = client.ask(&Request::Exec(Box::new(spec)), descriptors);
    let id = match answer.map_err(|error| Fault::from(error).of(name))? {
        (Event::ExecStarted { id, .. }, descriptors) => {
            ends.terminal = descriptors.into_iter().next();
            id
        }
        (Event::ExecFailed { status, message }, _) => {
            say::line(&format!("croft: {name}: {message}"));
            return Ok(Exit::Command(status));
        }
        _ => return Err(Fault::failed("its monitor says something else").of(name)),
    };
    ends.unblock().map_err(failed)?;
    if let Some(Err(error)) = terminal.as_mut().map(Terminal::make_raw) {
        say::line(&format!("croft: the terminal stays as it is: {error}"));
    }
    let reads = ends.terminal.is_some() || ends.input.is_some();
    let mut running = Running {
        id,
        ends,
        input: Input::new(false, reads),
        terminal,
        signals,
        client,
        status: None,
    };
    running.run().map_err(|fault| fault.of(name))
}

/// What the monitor is asked for.
fn spec(task: &Exec, tty: bool) -> Result<ExecSpec, Fault> {
    let text = |text: &OsString| {
        text.to_str().map(str::to_owned).ok_or_else(|| {
            Fault::usage(format!(
                "'{}' is not UTF-8, and cannot be given to a container",
                text.to_string_lossy().escape_debug()
            ))
        })
    };
    let mut env = Vec::new();
    for (name, value) in &task.env {
        env.push(format!("{}={}", text(name)?, text(value)?));
    }
    if tty
        && !env.iter().any(|one| one.starts_with("TERM="))
        && let Ok(kind) = std::env::var("TERM")
    {
        env.push(format!("TERM={kind}"));
    }
    let size = tcgetwinsize(stdin()).map_or((80, 24), |size| (size.ws_col, size.ws_row));
    Ok(ExecSpec {
        command: task.argv.iter().map(text).collect::<Result<_, _>>()?,
        env,
        cwd: task.cwd.as_ref().map(text).transpose()?,
        user: task.user.clone(),
        tty: tty.then_some(size),
        privileged: false,
    })
}

/// This process's ends of what is not given away.
#[derive(Debug, Default)]
struct Ends {
    terminal: Option<OwnedFd>,
    input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

impl Ends {
    /// And the three that the command gets.
    fn make(reads: bool) -> io::Result<(Self, Vec<OwnedFd>)> {
        let mut ends = Ends::default();
        let null = || open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let input = if !reads {
            null()?
        } else if isatty(stdin()) {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            ends.input = Some(ours);
            theirs
        } else {
            stdin().try_clone_to_owned().or_else(|_| null())?
        };
        let mut descriptors = vec![input];
        for (end, own) in ends.outputs.iter_mut().zip([stdout(), stderr()]) {
            descriptors.push(if isatty(own) {
                let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
                *end = Some(ours);
                theirs
            } else {
                own.try_clone_to_owned().or_else(|_| null())?
            });
        }
        Ok((ends, descriptors))
    }

    fn unblock(&self) -> io::Result<()> {
        let all = self.terminal.iter().chain(&self.input);
        for end in all.chain(self.outputs.iter().flatten()) {
            fcntl_setfl(end, fcntl_getfl(end)? | OFlags::NONBLOCK)?;
        }
        Ok(())
    }
}

struct Running {
    id: u64,
    ends: Ends,
    input: Input,
    terminal: Option<Terminal>,
    signals: Signals,
    client: Client,
    status: Option<u8>,
}

impl Running {
    fn run(&mut self) -> Result<Exit, Fault> {
        // Its end may have come with the news of its start.
        self.hear_client()?;
        while self.status.is_none() {
            self.step()?;
        }
        // What it has printed is there; what it has left behind may print on.
        self.take_outputs()?;
        self.terminal.take();
        Ok(Exit::Command(self.status.unwrap_or_default()))
    }

    fn step(&mut self) -> Result<(), Fault> {
        let to = self.ends.terminal.as_ref().or(self.ends.input.as_ref());
        let mut waits = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.client, PollFlags::IN),
        ];
        if self.input.wants_input() {
            waits.push(PollFd::from_borrowed_fd(stdin(), PollFlags::IN));
        }
        if let Some(to) = to.filter(|_| self.input.wants_output()) {
            waits.push(PollFd::new(to, PollFlags::OUT));
        }
        let outputs = self.ends.outputs.iter().flatten();
        for output in self.ends.terminal.iter().chain(outputs) {
            waits.push(PollFd::new(output, PollFlags::IN));
        }
        match poll(&mut waits, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Fault::failed(format!("cannot wait: {error}"))),
        }
        drop(waits);
        self.hear_signals()?;
        self.hear_client()?;
        if self.input.wants_input() && is_readable(stdin()) {
            self.input.read();
        }
        let to = self.ends.terminal.as_ref().or(self.ends.input.as_ref());
        if let Some(to) = to.filter(|_| self.input.wants_output()) {
            self.input.write_by(|bytes| write(to, bytes));
        }
        if self.input.is_ended() {
            self.ends.input = None;
        }
        self.take_outputs()
    }

    /// Passes on what there is, without waiting.
    fn take_outputs(&mut self) -> Result<(), Fault> {
        let failed = |error| Fault::failed(format!("cannot write to standard output: {error}"));
        let [out, err] = &mut self.ends.outputs;
        for (end, to) in [
            (&mut self.ends.terminal, stdout()),
            (out, stdout()),
            (err, stderr()),
        ] {
            pass_on(end, to).map_err(failed)?;
        }
        Ok(())
    }

    fn hear_signals(&mut self) -> Result<(), Fault> {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGCONT => {
                    if let Some(terminal) = &mut self.terminal {
                        terminal.make_raw_again();
                    }
                }
                Signal::SIGWINCH => {
                    if let (Some(end), Ok(size)) = (&self.ends.terminal, tcgetwinsize(stdin())) {
                        let size = Winsize {
                            ws_xpixel: 0,
                            ws_ypixel: 0,
                            ..size
                        };
                        // It may have ended.
                        let _ = tcsetwinsize(end, size);
                    }
                }
                signal => {
                    let request = Request::ExecSignal {
                        id: self.id,
                        signal: signal as i32,
                    };
                    match self.client.ask(&request, vec![]) {
                        // One that has ended is about to be heard of.
                        Ok(_) | Err(ClientError::Refused(_)) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(())
    }

    fn hear_client(&mut self) -> Result<(), Fault> {
        loop {
            match self.client.next(Some(Duration::ZERO)) {
                Ok(Some(Event::ExecEnded { id, status })) if id == self.id => {
                    self.status = Some(status);
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(ClientError::Gone) if self.status.is_some() => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut wait = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut wait, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// Copies what is there; closes what has ended.
fn pass_on(from: &mut Option<OwnedFd>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = [0; PIECE];
    while let Some(end) = from {
        let mut rest = match read(end.as_fd(), &mut buffer) {
            Ok(count @ 1..) => buffer.get(..count).unwrap_or_default(),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Ok(()),
            // A terminal's end is an error (EIO).
            Ok(_) | Err(_) => {
                *from = None;
                return Ok(());
            }
        };
        while !rest.is_empty() {
            match write(to, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut wait = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                    poll(&mut wait, None)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
