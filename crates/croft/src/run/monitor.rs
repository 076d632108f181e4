//! The monitor, as croft sees it.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use croft_api::channel::channel;
use croft_api::monitor::{PROTOCOL, Request, RunRequest};
use croft_api::{Receiver, Sender, pair, programs};

use super::host;
use super::terminal::Terminal;

/// Name of the program, and of the other end in messages.
const PROGRAM: &str = "croft-monitor";

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
    pub fn start(mut request: RunRequest, terminal: Option<&Terminal>) -> Result<Self, String> {
        let program = programs::find(PROGRAM)?;
        let (ours, theirs) = pair().map_err(host("cannot make a socket"))?;
        let (console, far_console) = pair().map_err(host("cannot make a socket"))?;
        let mut descriptors = vec![far_console];
        if let Some(terminal) = terminal {
            descriptors.push(
                terminal
                    .descriptor()
                    .map_err(host("cannot share the terminal"))?,
            );
        }
        request.terminal = terminal.is_some();
        let mut command = Command::new(&program);
        command
            .arg(&request.machine.name)
            // Signals that the terminal sends to croft's job are croft's.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let child = command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        // Our copy of its end of the socket goes with the command: its death
        // is then our end of file.
        drop(command);
        let (mut sender, receiver) = channel(ours, PROTOCOL, PROGRAM);
        sender
            .deliver(&Request::Run(Box::new(request)), descriptors)
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
