//! An instance that is kept: it runs in the background, for as long as it
//! lives, whoever comes and goes.
//!
//! ```text
//!  Keep         lock, socket          spawn          policy
//! ──────► (new) ────────────► living ◄───────► payload
//!            │ Stopped{Invalid}  │ it has ended for good
//!            ▼                   ▼
//!          exit            last words ──► socket gone, lock free ──► exit
//! ```
//!
//! `croft_host::lifecycle` decides; this does what it says ([`keeper`]), and
//! answers those who ask at the control socket. When this process is killed
//! the payload goes with it, and the lock: whoever looks next sees from the
//! lock that what `state.json` says is no longer so.

mod clients;
mod console;
mod container;
mod keeper;
mod log;
mod machine;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_api::instance::{ProcessId, Status};
use croft_api::monitor::{Event, KeepPayload, KeepRequest};
use croft_api::{Outcome, Receiver, RestartPolicy, Sender, WireError};
use croft_host::{InstanceLock, LockError, process, store};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::clients::Clients;
use self::container::Container;
use self::keeper::Keeper;
use self::machine::Machine;

/// How long a payload may take to be gone whose monitor was killed.
const ORPHAN: Duration = Duration::from_secs(10);

/// Keeps an instance until it has ended for good.
pub fn serve(
    request: KeepRequest,
    mut sender: Sender,
    receiver: Receiver,
    attached: Vec<OwnedFd>,
) -> Result<(), WireError> {
    if attached.len() != usize::from(request.attached) {
        return Err(WireError::Damaged("Keep comes with other descriptors"));
    }
    let kept = prepare(&request).and_then(|place| match request.payload {
        KeepPayload::Machine(run) => {
            let machine = Machine::new(*run, &place);
            Ok(Kept::Machine(Box::new((machine, place))))
        }
        KeepPayload::Container(run) => {
            let container = Container::new(*run, &place, attached)?;
            Ok(Kept::Container(Box::new((container, place))))
        }
    });
    match kept {
        Ok(Kept::Machine(kept)) => Keeper::new(kept.0, kept.1, sender, receiver).run(),
        Ok(Kept::Container(kept)) => Keeper::new(kept.0, kept.1, sender, receiver).run(),
        Err(message) => {
            // Whoever asked may have gone.
            let _ = sender.deliver(&Event::Stopped(Outcome::Invalid { message }), vec![]);
        }
    }
    Ok(())
}

/// What is kept, and where.
enum Kept {
    Machine(Box<(Machine, Place)>),
    Container(Box<(Container, Place)>),
}

/// What an instance needs before it can live.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
    restart: RestartPolicy,
    ephemeral: bool,
    lock: InstanceLock,
    clients: Clients,
    signals: SignalFd,
    /// What was known of it when it last lived.
    before: Option<Status>,
}

fn prepare(request: &KeepRequest) -> Result<Place, String> {
    // A group's leader cannot begin a session; then it has one of its own.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").map_err(|error| format!("cannot go to '/': {error}"))?;
    let signals = signals().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let directory = PathBuf::from(&request.directory);
    let lock = InstanceLock::take(&directory).map_err(|error| match error {
        LockError::Held => "it runs already, or is being changed or deleted".to_owned(),
        error => error.to_string(),
    })?;
    let before = store::read_state(&directory);
    if let Some(orphan) = before.as_ref().and_then(|status| status.payload) {
        end_orphan(orphan)?;
    }
    let path = Path::new(&request.socket);
    let clients = Clients::bind(path).map_err(|error| {
        format!(
            "control socket '{}': {error}; check the runtime directory",
            path.display()
        )
    })?;
    Ok(Place {
        directory,
        restart: request.restart,
        ephemeral: request.ephemeral,
        lock,
        clients,
        signals,
        before,
    })
}

/// A payload dies with its monitor, but not in the same moment, and until then
/// it has the disks.
fn end_orphan(orphan: ProcessId) -> Result<(), String> {
    if process::end(orphan, ORPHAN) {
        return Ok(());
    }
    Err(format!(
        "its last payload, process {}, does not end; wait until the host has done its input and output",
        orphan.pid
    ))
}

/// What ends a process is an orderly stop here; what a terminal sends is for
/// others.
fn signals() -> Result<SignalFd, nix::Error> {
    let waited = SigSet::from_iter([Signal::SIGTERM]);
    let ignored = [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    waited.thread_block()?;
    SigSet::from_iter(ignored).thread_block()?;
    SignalFd::with_flags(&waited, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
