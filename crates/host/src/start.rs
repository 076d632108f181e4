//! Starting an instance's monitor.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use croft_api::channel::channel;
use croft_api::monitor::{Event, PROTOCOL, Request};
use croft_api::{Outcome, Receiver, WireError, pair, programs};
use thiserror::Error;

use crate::name::InstanceName;
use crate::store::{Instances, StoreError};

/// Name of the program, and of the other end in messages.
const PROGRAM: &str = "croft-monitor";
/// What a monitor that dies has to say, in the instance's directory.
const LAST_WORDS: &str = "monitor.err";

/// Why an instance was not started.
#[derive(Debug, Error)]
pub enum StartError {
    /// It cannot be found or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something about it is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Croft or the host could not do it.
    #[error("{0}")]
    Failed(String),
    /// Its program is not there, or cannot be executed.
    #[error("{message}")]
    NotExecuted {
        /// What a shell would exit with.
        status: u8,
        /// What was tried, and why it failed.
        message: String,
    },
    /// It was ended before it ran.
    #[error("it was ended before it ran")]
    Ended(Outcome),
}

/// An instance that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// On this engine,
    pub engine: String,
    /// for this reason.
    pub reason: String,
}

/// An instance that runs, and tells of its end.
#[derive(Debug)]
pub struct Attached {
    receiver: Receiver,
}

impl Attached {
    /// Waits for its end, after which it can be started anew, or is deleted if
    /// it is ephemeral. What there is to say meanwhile is given to `say`.
    pub fn wait(mut self, mut say: impl FnMut(&str)) -> Result<Outcome, StartError> {
        loop {
            match self.receiver.wait::<Event>().map_err(wire)? {
                Some((Event::Stopped(outcome), _)) => {
                    wait_for_monitor(&mut self.receiver);
                    return Ok(outcome);
                }
                Some((Event::Log { text }, _)) => say(&text),
                Some(_) => {}
                None => return Err(StartError::Failed("its monitor died".to_owned())),
            }
        }
    }
}

/// A monitor that has told of the end for good lets the instance go and deletes
/// it if it is ephemeral; then its connection ends.
fn wait_for_monitor(receiver: &mut Receiver) {
    while let Ok(Some(_)) = receiver.wait::<Event>() {}
}

fn wire(error: WireError) -> StartError {
    StartError::Failed(error.to_string())
}

impl Instances {
    /// Starts an instance: makes its monitor and waits until it runs. What
    /// there is to say meanwhile is given to `say`.
    pub fn start(&self, name: &InstanceName, say: impl FnMut(&str)) -> Result<Started, StartError> {
        self.launch(name, Vec::new(), say)
            .map(|(started, _)| started)
    }

    /// Starts a container whose streams are these sockets, from their first
    /// byte on: that of its terminal; or that of its standard input and output
    /// and that of its standard error.
    pub fn start_attached(
        &self,
        name: &InstanceName,
        streams: Vec<OwnedFd>,
        say: impl FnMut(&str),
    ) -> Result<Attached, StartError> {
        let (_, receiver) = self.launch(name, streams, say)?;
        Ok(Attached { receiver })
    }

    fn launch(
        &self,
        name: &InstanceName,
        streams: Vec<OwnedFd>,
        mut say: impl FnMut(&str),
    ) -> Result<(Started, Receiver), StartError> {
        let config = self.config(name)?;
        let mut request = config.keep_request(self.directories(), name);
        request.attached = u8::try_from(streams.len()).unwrap_or(u8::MAX);
        let host = |what: &str, error: io::Error| StartError::Failed(format!("{what}: {error}"));
        let program = programs::find(PROGRAM).map_err(StartError::Failed)?;
        let (ours, theirs) = pair().map_err(|error| host("cannot make a socket", error))?;
        let last_words = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.directories().instance(name).join(LAST_WORDS))
            .map_err(|error| host("cannot write to the instance's directory", error))?;
        let mut command = Command::new(&program);
        command
            .arg(name.as_str())
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(last_words));
        // It stays when this process goes: whoever is told to adopt orphans
        // waits for it.
        command
            .spawn()
            .map_err(|error| host(&format!("cannot start {}", program.display()), error))?;
        // Our copy of its end of the socket goes with the command: its death
        // is then our end of file.
        drop(command);
        let (mut sender, mut receiver) = channel(ours, PROTOCOL, PROGRAM);
        sender
            .deliver(&Request::Keep(Box::new(request)), streams)
            .map_err(wire)?;
        loop {
            match receiver.wait::<Event>().map_err(wire)? {
                Some((Event::Started { engine, reason }, _)) => {
                    return Ok((Started { engine, reason }, receiver));
                }
                Some((Event::Log { text }, _)) => say(&text),
                Some((Event::Stopped(outcome), _)) => {
                    wait_for_monitor(&mut receiver);
                    return Err(match outcome {
                        Outcome::Invalid { message } => StartError::Invalid(message),
                        Outcome::Failed { message } => StartError::Failed(message),
                        Outcome::NotExecuted { status, message } => {
                            StartError::NotExecuted { status, message }
                        }
                        outcome => StartError::Ended(outcome),
                    });
                }
                Some((
                    Event::Paused
                    | Event::Resumed
                    | Event::DiskFailed { .. }
                    | Event::Panicked { .. },
                    _,
                )) => {}
                None => {
                    return Err(StartError::Failed(format!(
                        "{PROGRAM} ended before it had started the instance; its last words are in {LAST_WORDS} of the instance's directory"
                    )));
                }
            }
        }
    }
}
