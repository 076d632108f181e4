//! One connection: one task.

use std::os::fd::OwnedFd;
use std::path::Path;

use croft_api::agent::{Failure, FrameKind, Put, Reply, Request};

use crate::AgentError;
use crate::connection::{Receiver, Sender, halves};
use crate::tree::{self, Policy};

use super::{addresses, clock, exec, freeze, power, ready};

/// Name of the other end in messages.
const PEER: &str = "the host";

/// What went wrong with a task: the host hears of it.
#[derive(Debug)]
pub struct Refusal {
    /// What kind of failure.
    pub kind: Failure,
    /// What, on what.
    pub message: String,
}

impl Refusal {
    /// A failure that nobody acts on.
    pub fn other(message: impl Into<String>) -> Self {
        Refusal {
            kind: Failure::Other,
            message: message.into(),
        }
    }
}

/// Does what the host at the other end of `stream` asks for.
pub fn serve(stream: OwnedFd) -> Result<(), AgentError> {
    let (mut sender, mut receiver) = halves(stream, PEER)?;
    sender.hello()?;
    receiver.hello()?;
    let Some(frame) = receiver.frame()? else {
        return Ok(());
    };
    let request = match receiver.read(&frame) {
        Ok(request) => request,
        Err(error) => {
            let unknown = Refusal {
                kind: Failure::Unknown,
                message: "the guest's agent does not know this request; it may be older than \
                          the host's Croft"
                    .to_owned(),
            };
            refuse(&mut sender, unknown)?;
            return Err(error);
        }
    };
    match request {
        Request::Exec(request) => exec::serve(request, sender, receiver),
        Request::Freeze { timeout } => freeze::serve(timeout, sender, receiver),
        Request::Put(put) => self::put(put, sender, receiver),
        Request::Get(get) => {
            // What is wrong with it, the stream says.
            sender.message(&Reply::Sending)?;
            tree::send(&mut sender, Path::new(&get.path))
        }
        Request::Addresses => answer(&mut sender, addresses::list().map(Reply::Addresses)),
        Request::Shutdown(how) => answer(&mut sender, power::shutdown(how).map(|()| Reply::Done)),
        Request::SetTime { nanoseconds } => {
            answer(&mut sender, clock::set(nanoseconds).map(|()| Reply::Done))
        }
        Request::State => answer(&mut sender, Ok(Reply::Ready(ready::state()))),
    }
}

fn answer(sender: &mut Sender, result: Result<Reply, Refusal>) -> Result<(), AgentError> {
    match result {
        Ok(reply) => sender.message(&reply),
        Err(refusal) => refuse(sender, refusal),
    }
}

/// Says why not.
pub fn refuse(sender: &mut Sender, refusal: Refusal) -> Result<(), AgentError> {
    sender.message(&Reply::Failed {
        kind: refusal.kind,
        message: refusal.message,
    })
}

fn put(put: Put, mut sender: Sender, mut receiver: Receiver) -> Result<(), AgentError> {
    let policy = Policy {
        owner: put.owner,
        keep_owner: put.owner.is_none(),
        shift: 0,
        mode: 0o7777,
    };
    match tree::receive(&mut receiver, Path::new(&put.path), policy) {
        Ok(arrival) => {
            let entries = arrival.entries;
            sender.message(&Reply::Copied { entries })
        }
        Err(error) => {
            refuse(&mut sender, Refusal::other(error.to_string()))?;
            // An end with something unread would take the answer with it.
            while let Ok(Some(frame)) = receiver.frame() {
                let is_end = frame.kind == FrameKind::Message && frame.bytes == b"\"end\"";
                if is_end {
                    break;
                }
            }
            Err(error)
        }
    }
}
