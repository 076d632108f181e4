//! The monitor, as croft sees it.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use croft_api::channel::channel;
use croft_api::monitor::{GdbAddress, PROTOCOL, Request, RestoreRequest, RunRequest};
use croft_api::{Receiver, Sender, pair, programs};

use super::host;
use super::terminal::Terminal;

/// Name of the program, and of the other end in messages.
const PROGRAM: &str = "croft-monitor";

/// What it is asked for.
#[derive(Debug)]
pub enum Start {
    /// A machine from its beginning.
    Run(RunRequest),
    /// A machine from where it was saved to this file.
    Restore(RestoreRequest, File),
}

impl Start {
    /// Paths of the sockets that the monitor makes.
    pub fn sockets(&self) -> Vec<OsString> {
        let (gdb, control) = match self {
            Start::Run(run) => (&run.gdb, &run.control),
            Start::Restore(restore, _) => (&restore.gdb, &restore.control),
        };
        let gdb = match gdb {
            Some(GdbAddress::Socket(path)) => Some(path),
            _ => None,
        };
        gdb.into_iter().chain(control).cloned().collect()
    }

    /// What `ps` shows beside the monitor.
    fn name(&self) -> &str {
        match self {
            Start::Run(run) => &run.machine.name,
            Start::Restore(restore, _) => restore.name.as_deref().unwrap_or("restored"),
        }
    }

    /// As a request and its descriptors, but for the console and terminal.
    fn request(self, terminal: bool) -> (Request, Option<OwnedFd>) {
        match self {
            Start::Run(mut run) => {
                run.terminal = terminal;
                (Request::Run(Box::new(run)), None)
            }
            Start::Restore(mut restore, file) => {
                restore.terminal = terminal;
                (Request::Restore(Box::new(restore)), Some(file.into()))
            }
        }
    }
}

/// A running monitor. When croft lets go of its sockets it ends the machine
/// and itself.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    /// To it.
    pub sender: Sender,
    /// From it.
    pub receiver: Receiver,
    /// The guest's console.
    pub console: OwnedFd,
}

impl Monitor {
    /// Starts it and asks it to run a machine.
    pub fn start(start: Start, terminal: Option<&Terminal>) -> Result<Self, String> {
        let program = programs::find(PROGRAM)?;
        let (ours, theirs) = pair().map_err(host("cannot make a socket"))?;
        let (console, far_console) = pair().map_err(host("cannot make a socket"))?;
        let mut command = Command::new(&program);
        command
            .arg(start.name())
            // Signals that the terminal sends to croft's job are croft's.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let (request, file) = start.request(terminal.is_some());
        let mut descriptors = vec![far_console];
        descriptors.extend(file);
        if let Some(terminal) = terminal {
            descriptors.push(
                terminal
                    .descriptor()
                    .map_err(host("cannot share the terminal"))?,
            );
        }
        let child = command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        // Our copy of its end of the socket goes with the command: its death
        // is then our end of file.
        drop(command);
        let (mut sender, receiver) = channel(ours, PROTOCOL, PROGRAM);
        sender
            .deliver(&request, descriptors)
            .map_err(|error| error.to_string())?;
        Ok(Monitor {
            child,
            sender,
            receiver,
            console,
        })
    }

    /// Waits for its exit after it has said everything, or says why it went
    /// without doing so.
    pub fn reap(mut self) -> String {
        drop((self.sender, self.receiver, self.console));
        match self.child.wait() {
            Ok(status) => format!("{PROGRAM} ended before its machine did ({status})"),
            Err(error) => format!("{PROGRAM} is lost: {error}"),
        }
    }
}
