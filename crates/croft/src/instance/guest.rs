//! `croft exec` and `shell`: by the agent in the guest, of a machine.
//!
//! ```text
//! standard input ──thread──► Input ──┐
//! signals ─────────thread──► Input ──┼──► agent ──► the command
//! standard outputs ◄─────── Output ◄─┘
//! ```

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use croft_agent::AgentError;
use croft_agent::client::{Client, Event, Input, failure_status, status};
use croft_api::agent::{Exec, PORT, Size};
use croft_host::{InstanceName, Instances};
use nix::sys::signal::{SigSet, Signal};
use rustix::net::{Shutdown, shutdown};
use rustix::stdio::{stdin, stdout};
use rustix::termios::{isatty, tcgetwinsize};

use super::{Fault, connect, container, finish, open};
use crate::args::guest::{ExecOptions, ShellOptions, TaskOptions};
use crate::exit::Exit;
use crate::run::terminal::Terminal;
use crate::say;

/// How long the agent may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// A login shell of a container's: the best that it has.
const LOGIN: [&str; 3] = [
    "/bin/sh",
    "-c",
    "if command -v bash > /dev/null; then exec bash -l; else exec sh -l; fi",
];
/// Bytes of input moved at once.
const PIECE: usize = 32 * 1024;
/// The exit status of a command that was not started.
pub const NOT_STARTED: u8 = 125;

/// Runs a command in an instance.
pub fn exec(options: &ExecOptions) -> Exit {
    let task = Exec {
        stdin: !options.no_stdin,
        ..task(&options.task, &options.command)
    };
    run_task(&options.name.name, task, options.tty)
}

/// A login shell in an instance.
pub fn shell(options: &ShellOptions) -> Exit {
    let tty = isatty(stdin()) && isatty(stdout());
    run_task(&options.name.name, task(&options.task, &[]), tty)
}

/// What the agent is asked for.
fn task(options: &TaskOptions, command: &[std::ffi::OsString]) -> Exec {
    let variables = options.variables.iter();
    Exec {
        argv: command.to_vec(),
        env: variables
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        cwd: options.cwd.clone(),
        user: options.user.clone(),
        pty: None,
        stdin: true,
    }
}

fn run_task(name: &InstanceName, task: Exec, tty: bool) -> Exit {
    let done = open().and_then(|instances| in_instance(&instances, name, task, tty));
    match done {
        Ok(exit) => exit,
        Err(fault) => match finish(Err(fault)) {
            Exit::Failed => Exit::Command(NOT_STARTED),
            exit => exit,
        },
    }
}

/// Runs a command in an instance of either kind.
pub fn in_instance(
    instances: &Instances,
    name: &InstanceName,
    mut task: Exec,
    tty: bool,
) -> Result<Exit, Fault> {
    if instances.config(name)?.container().is_none() {
        return in_guest(instances, name, task, tty);
    }
    if task.argv.is_empty() {
        task.argv = LOGIN.map(OsString::from).to_vec();
    }
    container::in_container(instances, name, &task, tty)
}

/// Runs a command in a guest, with this process's inputs and outputs.
pub fn in_guest(
    instances: &Instances,
    name: &InstanceName,
    mut task: Exec,
    tty: bool,
) -> Result<Exit, Fault> {
    let mut terminal = if tty { Terminal::open() } else { None };
    if tty && terminal.is_none() {
        return Err(Fault::usage(
            "standard input is no terminal; leave out --tty",
        ));
    }
    if terminal.is_some() {
        task.pty = Some(size());
        let is_set = task.env.iter().any(|(name, _)| name == "TERM");
        if let Some(kind) = std::env::var_os("TERM").filter(|_| !is_set) {
            task.env.push(("TERM".into(), kind));
        }
    }
    let reads = task.stdin;
    // Before any thread is made, so that all of them leave the signals to one.
    let signals = SigSet::from_iter([
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGWINCH,
    ]);
    signals
        .thread_block()
        .map_err(|error| Fault::failed(format!("cannot wait for signals: {error}")))?;
    let running = match agent(instances, name)?.exec(task) {
        Ok(running) => running,
        Err(error) => {
            say::line(&format!("croft: {name}: {error}"));
            return Ok(Exit::Command(failure_status(&error)));
        }
    };
    if let Some(terminal) = &mut terminal
        && let Err(error) = terminal.make_raw()
    {
        say::line(&format!("croft: the terminal stays as it is: {error}"));
    }
    let input = Arc::new(Mutex::new(running.input));
    let mut output = running.output;
    let ended_by = Arc::new(AtomicU8::new(0));
    let started = output.as_fd().try_clone_to_owned().and_then(|socket| {
        let ended_by = ended_by.clone();
        if reads {
            start("input", &input, feed)?;
        }
        start("signals", &input, move |input| {
            pass_on(&signals, input, &socket, &ended_by);
        })
    });
    started.map_err(|error| Fault::failed(format!("cannot start a thread: {error}")))?;
    let ended = loop {
        let written = match output.next_event() {
            Ok(Event::Stdout(bytes)) => write(io::stdout(), &bytes),
            Ok(Event::Stderr(bytes)) => write(io::stderr(), &bytes),
            Ok(Event::Exited(exit)) => break Ok(Exit::Command(status(exit))),
            Err(error) => match ended_by.load(Ordering::SeqCst) {
                0 => break Err(Fault::failed(error.to_string()).of(name)),
                number => break Ok(Exit::Signal(number)),
            },
        };
        if let Err(error) = written {
            break Err(Fault::failed(format!(
                "cannot write to standard output: {error}"
            )));
        }
    };
    drop(terminal);
    ended
}

/// Connects to the agent of a guest.
pub fn agent(instances: &Instances, name: &InstanceName) -> Result<Client, Fault> {
    let mut monitor = connect(instances, name).map_err(|fault| fault.of(name))?;
    let stream = monitor.guest(PORT, PATIENCE).map_err(|error| {
        Fault::failed(format!(
            "{name}: the agent in the guest does not answer: {error}; \
             'croft wait {name}' waits for it, if the guest has one"
        ))
    })?;
    let deaf = |error: io::Error| Fault::failed(error.to_string()).of(name);
    let timed = stream.try_clone().map_err(deaf)?;
    timed.set_read_timeout(Some(PATIENCE)).map_err(deaf)?;
    let client = Client::connect(stream.into());
    let client = client.map_err(|error| Fault::failed(error.to_string()).of(name))?;
    // From here on it may take its time.
    timed.set_read_timeout(None).map_err(deaf)?;
    Ok(client)
}

/// The terminal's.
fn size() -> Size {
    tcgetwinsize(stdin()).map_or_else(
        |_| Size::default(),
        |size| Size {
            rows: size.ws_row,
            columns: size.ws_col,
        },
    )
}

type Shared = Arc<Mutex<Input>>;

fn start(
    name: &str,
    input: &Shared,
    work: impl FnOnce(&Shared) + Send + 'static,
) -> io::Result<()> {
    let input = Arc::clone(input);
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(move || work(&input)).map(drop)
}

/// Standard input to the command, until either ends.
fn feed(input: &Shared) {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match io::stdin().read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let mut input = input.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = match buffer.get(..count) {
            None | Some([]) => {
                // The output's end tells how it went.
                let _ = input.close();
                return;
            }
            Some(bytes) => input.write(bytes),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Signals to this process are the command's. While input waits that the
/// command does not read nothing else can be sent to it; then a signal ends
/// the connection, which hangs up on the command.
fn pass_on(signals: &SigSet, input: &Shared, socket: &OwnedFd, ended_by: &AtomicU8) {
    while let Ok(signal) = signals.wait() {
        let sent: Result<(), AgentError> = match (signal, input.try_lock()) {
            (Signal::SIGWINCH, Ok(mut input)) => input.resize(size()),
            (Signal::SIGWINCH, Err(_)) => Ok(()),
            (signal, Ok(mut input)) => input.signal(signal as i32),
            (signal, Err(_)) => {
                let number = u8::try_from(signal as i32).unwrap_or_default();
                ended_by.store(number, Ordering::SeqCst);
                // It may have ended by itself.
                let _ = shutdown(socket, Shutdown::Both);
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn write(mut output: impl Write, bytes: &[u8]) -> io::Result<()> {
    output.write_all(bytes)?;
    output.flush()
}
