//! What a container is at this moment.
//!
//! ```text
//!            create                start                 end of init
//! (nothing) ───────► creating ──► created ──► running ──────────────► stopped
//!                                    │          │ ▲                      │
//!                                    │     pause▼ │resume                │delete
//!                                    │         paused                    ▼
//!                                    └── end of init ─► stopped      (nothing)
//! ```
//!
//! Nothing of it is written down but which process is the init: that would be
//! wrong as soon as somebody is killed. A container waits, as `created`, as
//! long as its init answers at its socket, which the program that it becomes
//! does not inherit.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::error::Error;
use super::groups;
use super::store::{Entry, Record};

/// State of a container (runtime-spec, `runtime.md`, State), and paused, which
/// is a way to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is being made.
    Creating,
    /// It waits for `start`.
    Created,
    /// It runs its program.
    Running,
    /// It does, and is stopped for the moment.
    Paused,
    /// Its init has ended.
    Stopped,
}

impl Status {
    /// As the specification writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }

    /// Whether its init lives.
    pub const fn is_alive(self) -> bool {
        matches!(self, Status::Created | Status::Running | Status::Paused)
    }

    /// The error for a command that asks for another state.
    pub fn refuse(self, id: &str, why: &'static str) -> Error {
        Error::Status {
            id: id.to_owned(),
            status: self.word(),
            why,
        }
    }
}

/// Looks.
pub fn of(entry: &Entry, record: Option<&Record>) -> Result<Status, Error> {
    let Some(record) = record else {
        return Ok(if is_locked(entry) {
            Status::Creating
        } else {
            Status::Stopped
        });
    };
    let Some(init) = record.init else {
        let making = record.creator.is_some_and(|maker| maker.is_alive());
        return Ok(if making {
            Status::Creating
        } else {
            Status::Stopped
        });
    };
    if !init.is_alive() {
        return Ok(Status::Stopped);
    }
    if waits(entry)? {
        return Ok(Status::Created);
    }
    let paused = match groups::open(record)? {
        Some(group) => group.is_frozen().unwrap_or(false),
        None => false,
    };
    Ok(if paused {
        Status::Paused
    } else {
        Status::Running
    })
}

fn is_locked(entry: &Entry) -> bool {
    match flock(entry, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            entry.unlock();
            false
        }
        Err(_) => true,
    }
}

/// Whether init answers at its socket.
fn waits(entry: &Entry) -> Result<bool, Error> {
    let socket = entry.socket();
    let failed = |error: Errno| Error::file("connect to", &socket, error);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let own = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    let address = SocketAddrUnix::new(&socket).map_err(failed)?;
    match connect(&own, &address) {
        // Full: others ask, or start it, at this moment.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}
