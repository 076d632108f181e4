//! `croft exec` and `croft shell`.
//!
//! ```text
//! standard input ─ thread ─┐                       ┌─ thread ─► standard output
//!                          ├─► agent ─► command ───┤            and error
//! signals, size ─ main ────┘                       └─ how it ended ─► main
//! ```

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;

use croft_agent::AgentError;
use croft_agent::client::{Event, Input, Output, Running, failure_status, status};
use croft_api::agent::{Exec, Size};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{isatty, tcgetwinsize};

use super::connect;
use crate::args::agent::{ExecOptions, PlaceOptions, ShellOptions};
use crate::exit::Exit;
use crate::instance::{Fault, open};
use crate::run::terminal::Terminal;
use crate::say;

/// Status of a command that was not started.
const NOT_STARTED: u8 = 125;
/// Bytes of input read at once.
const CHUNK: usize = 32 << 10;

/// Runs a command in an instance.
pub fn exec(options: &ExecOptions) -> Exit {
    let terminals = isatty(stdin()) && isatty(stdout());
    let wanted = options.tty || terminals && !options.no_tty && !options.no_stdin;
    let exec = request(&options.place, options.command.clone(), wanted);
    run(
        options.name.name.clone(),
        Exec {
            stdin: !options.no_stdin,
            ..exec
        },
    )
}

/// Gives a login shell in an instance.
pub fn shell(options: &ShellOptions) -> Exit {
    let exec = request(&options.place, Vec::new(), isatty(stdin()));
    run(
        options.name.name.clone(),
        Exec {
            stdin: true,
            ..exec
        },
    )
}

fn request(place: &PlaceOptions, argv: Vec<OsString>, terminal: bool) -> Exec {
    let mut env = place.env.clone();
    if terminal
        && let Some(kind) = std::env::var_os("TERM")
        && !env.iter().any(|(name, _)| name == "TERM")
    {
        env.push(("TERM".into(), kind));
    }
    Exec {
        argv,
        env,
        cwd: place.workdir.clone(),
        user: Some(place.user.clone()),
        pty: terminal.then(size),
        stdin: false,
    }
}

/// The size of our terminal.
fn size() -> Size {
    let known = [stdout(), stdin(), stderr()]
        .into_iter()
        .find_map(|descriptor| tcgetwinsize(descriptor).ok());
    match known {
        Some(size) if size.ws_row > 0 && size.ws_col > 0 => Size {
            rows: size.ws_row,
            columns: size.ws_col,
        },
        _ => Size {
            rows: 24,
            columns: 80,
        },
    }
}

fn run(name: croft_host::InstanceName, exec: Exec) -> Exit {
    let reads = exec.stdin;
    let has_terminal = exec.pty.is_some();
    // Before any thread is made, so that all of them leave the signals to us.
    let started = signals()
        .map_err(|error| Fault::failed(format!("cannot wait for signals: {error}")))
        .and_then(|signals| Ok((signals, open()?)))
        .and_then(|(signals, instances)| Ok((signals, connect(&instances, &name)?)));
    let (signals, client) = match started {
        Ok(started) => started,
        Err(fault) => {
            say::line(&format!("croft: {}", fault.of(&name).message));
            return Exit::Command(NOT_STARTED);
        }
    };
    let running = match client.exec(exec) {
        Ok(running) => running,
        Err(error) => {
            say::line(&format!("croft: {name}: {error}"));
            return Exit::Command(failure_status(&error));
        }
    };
    match attend(running, &signals, reads, has_terminal) {
        Ok(exit) => exit,
        Err(error) => {
            say::line(&format!("croft: {name}: {error}"));
            Exit::Command(NOT_STARTED)
        }
    }
}

fn signals() -> io::Result<SignalFd> {
    let set = SigSet::from_iter([
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGCONT,
        Signal::SIGWINCH,
    ]);
    set.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&set, flags)?)
}

/// How a command ended, or why that is not known.
type End = Result<Exit, AgentError>;

/// Stays with a command until it has ended.
fn attend(
    running: Running,
    signals: &SignalFd,
    reads: bool,
    has_terminal: bool,
) -> Result<Exit, AgentError> {
    let local = |source| AgentError::Io {
        peer: "the terminal",
        source,
    };
    let mut terminal = Terminal::open().filter(|_| has_terminal);
    if let Some(terminal) = &mut terminal {
        // One that stays as it is still serves.
        let _ = terminal.make_raw();
    }
    let input = Arc::new(Mutex::new(running.input));
    let (ended, end) = follow(running.output).map_err(local)?;
    if reads {
        pass_on(input.clone()).map_err(local)?;
    }
    loop {
        let mut waits = [
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
        ];
        match poll(&mut waits, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(local(error.into())),
        }
        if !waits[1].revents().is_empty() {
            // The thread says how before it ends.
            return end.recv().unwrap_or(Err(AgentError::Closed("the agent")));
        }
        while let Some(signal) = next(signals) {
            // Input that the command does not take is in the way of all else.
            let free = input.try_lock().ok();
            match (signal, free) {
                (Signal::SIGWINCH, Some(mut input)) if has_terminal => input.resize(size())?,
                (Signal::SIGCONT, _) => {
                    if let Some(terminal) = &mut terminal {
                        terminal.make_raw_again();
                    }
                }
                (Signal::SIGWINCH, _) => {}
                (signal, Some(mut input)) => input.signal(signal as i32)?,
                // The end of the connection hangs up on the command.
                (signal, None) => {
                    return Ok(Exit::Signal(u8::try_from(signal as i32).unwrap_or(0)));
                }
            }
        }
    }
}

fn next(signals: &SignalFd) -> Option<Signal> {
    let info = signals.read_signal().ok()??;
    let number = i32::try_from(info.ssi_signo).ok()?;
    Signal::try_from(number).ok()
}

/// Writes what the command writes, on a thread. Its end is the end of the
/// descriptor; then the other half says how the command ended.
fn follow(mut output: Output) -> io::Result<(OwnedFd, Receiver<End>)> {
    let (ended, guard) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("output".to_owned())
        .spawn(move || {
            let _guard = guard;
            let end = loop {
                let written = match output.next_event() {
                    Ok(Event::Stdout(bytes)) => write(&mut io::stdout().lock(), &bytes),
                    Ok(Event::Stderr(bytes)) => write(&mut io::stderr().lock(), &bytes),
                    Ok(Event::Exited(exit)) => break Ok(Exit::Command(status(exit))),
                    Err(error) => break Err(error),
                };
                // As after SIGPIPE: nobody reads any more.
                if written.is_err() {
                    break Ok(Exit::Signal(13));
                }
            };
            let _ = sender.send(end);
        })?;
    Ok((ended, receiver))
}

fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Hands standard input to the command, on a thread that ends with croft.
fn pass_on(input: Arc<Mutex<Input>>) -> io::Result<()> {
    let body = move || {
        let mut bytes = [0; CHUNK];
        loop {
            let count = match rustix::io::read(stdin(), &mut bytes) {
                Err(Errno::INTR) => continue,
                Ok(count) => count,
                Err(_) => 0,
            };
            let Ok(mut input) = input.lock() else { return };
            let there = bytes.get(..count).unwrap_or_default();
            let passed = match there {
                [] => input.close(),
                there => input.write(there),
            };
            // The other thread hears of whatever is wrong.
            if count == 0 || passed.is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("input".to_owned())
        .spawn(body)
        .map(drop)
}
