//! The host's side: one task on a connected stream.
//!
//! ```no_run
//! # fn main() -> Result<(), croft_agent::AgentError> {
//! # let stream: std::os::unix::net::UnixStream = unimplemented!();
//! use croft_agent::client::Client;
//! let interfaces = Client::connect(stream.into())?.addresses()?;
//! # Ok(()) }
//! ```
//!
//! Nothing here has a time limit of its own: whoever cannot wait sets one on
//! the socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use croft_api::agent::{
    Control, Exec, Exit, Failure, FrameKind, Get, Interface, Put, Ready, Reply, Request, Shutdown,
    Size,
};

use crate::AgentError;
use crate::connection::{Receiver, Sender, halves};
use crate::tree::{self, Arrival, Policy};

/// Name of the other end in messages.
const PEER: &str = "the guest's agent";

/// A connection on which nothing has been asked yet.
#[derive(Debug)]
pub struct Client {
    sender: Sender,
    receiver: Receiver,
}

impl Client {
    /// Greets the agent at the other end of `stream`.
    pub fn connect(stream: OwnedFd) -> Result<Self, AgentError> {
        let (mut sender, mut receiver) = halves(stream, PEER)?;
        sender.hello()?;
        receiver.hello()?;
        Ok(Client { sender, receiver })
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, AgentError> {
        self.sender.message(request)?;
        reply(&mut self.receiver)
    }

    fn unexpected<T>(&self) -> Result<T, AgentError> {
        Err(self.receiver.damaged("an answer to something else"))
    }

    /// Starts a command.
    pub fn exec(mut self, exec: Exec) -> Result<Running, AgentError> {
        match self.ask(&Request::Exec(exec))? {
            Reply::Started { pid } => Ok(Running {
                pid,
                input: Input {
                    sender: self.sender,
                },
                output: Output {
                    receiver: self.receiver,
                },
            }),
            _ => self.unexpected(),
        }
    }

    /// Copies the file or tree at `local` into the guest.
    pub fn put(mut self, local: &Path, put: Put) -> Result<u64, AgentError> {
        self.sender.message(&Request::Put(put))?;
        let sent = tree::send(&mut self.sender, local);
        // The agent's reason is better than ours if it ended the connection.
        let heard = match &sent {
            Err(AgentError::File { .. } | AgentError::Refused { .. }) => return sent.map(|()| 0),
            _ => reply(&mut self.receiver),
        };
        match (sent, heard) {
            (_, Err(error @ AgentError::Failed { .. })) => Err(error),
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(Reply::Copied { entries })) => Ok(entries),
            (Ok(()), Ok(_)) => self.unexpected(),
        }
    }

    /// Copies a file or tree of the guest to `local`. What arrives belongs to
    /// whoever asks, and no file of it is set-user-id: a guest shall not make
    /// programs that run as the host's root.
    pub fn get(mut self, get: Get, local: &Path) -> Result<Arrival, AgentError> {
        const POLICY: Policy = Policy {
            owner: None,
            keep_owner: false,
            shift: 0,
            mode: 0o777,
        };
        match self.ask(&Request::Get(get))? {
            Reply::Sending => tree::receive(&mut self.receiver, local, POLICY),
            _ => self.unexpected(),
        }
    }

    /// The guest's interfaces and addresses.
    pub fn addresses(mut self) -> Result<Vec<Interface>, AgentError> {
        match self.ask(&Request::Addresses)? {
            Reply::Addresses(interfaces) => Ok(interfaces),
            _ => self.unexpected(),
        }
    }

    /// Freezes the guest's file systems for at most `timeout` seconds.
    pub fn freeze(mut self, timeout: u32) -> Result<Frozen, AgentError> {
        match self.ask(&Request::Freeze { timeout })? {
            Reply::Frozen { filesystems } => Ok(Frozen {
                filesystems,
                client: self,
            }),
            _ => self.unexpected(),
        }
    }

    /// Ends or restarts the guest in order.
    pub fn shutdown(mut self, how: Shutdown) -> Result<(), AgentError> {
        match self.ask(&Request::Shutdown(how))? {
            Reply::Done => Ok(()),
            _ => self.unexpected(),
        }
    }

    /// Sets the guest's clock, if it is off by more than a second, to
    /// `nanoseconds` since 1970.
    pub fn set_time(mut self, nanoseconds: u64) -> Result<(), AgentError> {
        match self.ask(&Request::SetTime { nanoseconds })? {
            Reply::Done => Ok(()),
            _ => self.unexpected(),
        }
    }

    /// What the agent said when it came up.
    pub fn state(mut self) -> Result<Ready, AgentError> {
        match self.ask(&Request::State)? {
            Reply::Ready(ready) => Ok(ready),
            _ => self.unexpected(),
        }
    }
}

/// The next answer; a failure is an error.
fn reply(receiver: &mut Receiver) -> Result<Reply, AgentError> {
    match receiver.message()? {
        Reply::Failed { kind, message } => Err(AgentError::failed(kind, &message)),
        reply => Ok(reply),
    }
}

/// File systems of the guest that are frozen. They thaw when this is dropped.
#[derive(Debug)]
pub struct Frozen {
    /// So many.
    pub filesystems: u32,
    client: Client,
}

impl Frozen {
    /// Thaws them. True if they had thawed by themselves, since their time
    /// had run out: what was copied meanwhile is not of one moment.
    pub fn thaw(mut self) -> Result<bool, AgentError> {
        // After a time-out the agent has said so already, and may have gone.
        let sent = self.client.sender.message(&Control::Thaw);
        match reply(&mut self.client.receiver) {
            Ok(Reply::Thawed { late }) => Ok(late),
            Ok(_) => self.client.unexpected(),
            Err(error) => Err(sent.err().unwrap_or(error)),
        }
    }
}

/// A command that runs in the guest. Its halves can be on different threads.
#[derive(Debug)]
pub struct Running {
    /// Its process id in the guest.
    pub pid: u32,
    /// What goes to it.
    pub input: Input,
    /// What comes from it.
    pub output: Output,
}

/// To a command.
#[derive(Debug)]
pub struct Input {
    sender: Sender,
}

impl Input {
    /// Its standard input; waits while it does not read.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        match bytes {
            [] => Ok(()),
            bytes => self.sender.data(FrameKind::Stdin, bytes),
        }
    }

    /// The end of its standard input.
    pub fn close(&mut self) -> Result<(), AgentError> {
        self.sender.data(FrameKind::Stdin, &[])
    }

    /// Its terminal has another size.
    pub fn resize(&mut self, size: Size) -> Result<(), AgentError> {
        self.sender.message(&Control::Resize(size))
    }

    /// Sends a signal, by its Linux number, to its process group.
    pub fn signal(&mut self, number: i32) -> Result<(), AgentError> {
        self.sender.message(&Control::Signal(number))
    }
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It wrote to its standard output, or its terminal.
    Stdout(Vec<u8>),
    /// It wrote to its standard error.
    Stderr(Vec<u8>),
    /// It ended. Nothing follows.
    Exited(Exit),
}

/// From a command.
#[derive(Debug)]
pub struct Output {
    receiver: Receiver,
}

impl Output {
    /// Waits for what happens next.
    pub fn next_event(&mut self) -> Result<Event, AgentError> {
        loop {
            let frame = self.receiver.frame()?.ok_or(AgentError::Closed(PEER))?;
            match frame.kind {
                // The end of a stream.
                FrameKind::Stdout | FrameKind::Stderr if frame.bytes.is_empty() => {}
                FrameKind::Stdout => return Ok(Event::Stdout(frame.bytes)),
                FrameKind::Stderr => return Ok(Event::Stderr(frame.bytes)),
                FrameKind::Message => match self.receiver.read(&frame)? {
                    Reply::Exited(exit) => return Ok(Event::Exited(exit)),
                    Reply::Failed { kind, message } => {
                        return Err(AgentError::failed(kind, &message));
                    }
                    _ => return Err(self.receiver.damaged("an answer to something else")),
                },
                FrameKind::Stdin | FrameKind::File => {
                    return Err(self.receiver.damaged("data that goes the other way"));
                }
            }
        }
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// The exit status that a shell would have: that of the command, or 128 and
/// the number of the signal that ended it.
pub fn status(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(number) => 128u8.saturating_add(u8::try_from(number).unwrap_or(127)),
    }
}

/// The exit status for a command that was not started, as shells and others
/// have it: 127 if there is none, 126 if it cannot be executed, 125 otherwise.
pub fn failure_status(error: &AgentError) -> u8 {
    match error {
        AgentError::Failed {
            kind: Failure::NotFound,
            ..
        } => 127,
        AgentError::Failed {
            kind: Failure::NotExecutable,
            ..
        } => 126,
        _ => 125,
    }
}
