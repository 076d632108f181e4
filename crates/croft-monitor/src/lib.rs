//! `croft-monitor`: the small, single-threaded process beside each instance.
//!
//! It opens what the instance is made from, starts the payload (`croft-vmm`)
//! and hands it descriptors, never paths; it owns the console, its log, and
//! the exit status.
//!
//! ```text
//!        Run, Restore                spawn, Start
//! waiting ─────────► opening ─────────────────────► relaying ──► reporting
//!    │                  │ a file is wrong               │ croft is gone
//!    ▼ end of file      ▼                               ▼
//!   exit           Stopped{Invalid}             kill, clean up, exit
//! ```
//!
//! With `Keep` in the place of `Run` it does so in the background, for as long
//! as the instance lives (`keep`).

mod console;
mod control;
mod disks;
mod files;
mod gdb;
mod keep;
mod lines;
mod nics;
mod payload;
mod ports;
mod relay;
mod shares;
mod terminal;
mod vsock;
mod wait;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use croft_api::channel::channel;
use croft_api::monitor::{self, Event, Request, RunRequest};
use croft_api::saved::SavedRun;
use croft_api::{Outcome, Receiver, Sender, WireError};
use nix::sys::signal::{SigSet, Signal};

use crate::files::Files;
use crate::payload::Payload;
use crate::relay::Relay;
use crate::terminal::Terminal;

/// Name of the other end in messages.
const PEER: &str = "croft";

/// What the program does.
pub fn main() -> ExitCode {
    // croft blocks signals to wait for them and children inherit that. Here
    // two stay blocked: SIGTTOU, as the terminal is given back from the
    // background, and SIGHUP, which the kernel sends us if we are stopped when
    // croft dies, before we could clean up.
    let blocked = SigSet::from_iter([Signal::SIGTTOU, Signal::SIGHUP]);
    let prepared = blocked.thread_set_mask().map_err(io::Error::from);
    match prepared.and_then(|()| io::stdin().as_fd().try_clone_to_owned()) {
        Ok(socket) if is_socket(&socket) => {
            let (sender, receiver) = channel(socket, monitor::PROTOCOL, PEER);
            match serve(sender, receiver) {
                // A croft that is gone needs no telling.
                Ok(()) | Err(WireError::Io { .. }) => ExitCode::SUCCESS,
                Err(error) => complain(&error.to_string()),
            }
        }
        Ok(_) => complain("this program is started by croft, not by hand; see 'croft run --help'"),
        Err(error) => complain(&error.to_string()),
    }
}

fn complain(text: &str) -> ExitCode {
    // There may be nobody to tell.
    let _ = io::stderr().write_all(format!("croft-monitor: {text}\n").as_bytes());
    ExitCode::from(2)
}

fn is_socket(descriptor: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_type(descriptor).is_ok()
}

/// Runs one instance for the croft at the other end.
fn serve(mut sender: Sender, mut receiver: Receiver) -> Result<(), WireError> {
    let Some((request, descriptors)) = receiver.wait::<Request>()? else {
        return Ok(());
    };
    if let Request::Keep(request) = request {
        return keep::serve(*request, sender, receiver, descriptors);
    }
    let Given {
        run,
        console,
        saved,
        terminal,
    } = Given::new(request, descriptors)?;
    let terminal = terminal.map(Terminal::new);
    let opened = run.and_then(|run| Files::open(&run, saved).map(|files| (run, files)));
    let (run, files) = match opened {
        Ok(opened) => opened,
        Err(message) => {
            return sender.deliver(&Event::Stopped(Outcome::Invalid { message }), vec![]);
        }
    };
    if let Some(address) = files.gdb.as_ref().map(|listener| listener.address()) {
        let text = format!("gdb can connect to {address}");
        sender.push(&Event::Log { text }, vec![])?;
    }
    let start = files.start_request(&run);
    let (handed, kept) = files.split();
    match Payload::start(start, handed, run.no_jail) {
        Ok(mut payload) => {
            for text in payload.complaints.drain(..) {
                sender.push(&Event::Log { text }, vec![])?;
            }
            Relay::new(sender, receiver, console, payload, kept, terminal).run()
        }
        Err(message) => sender.deliver(&Event::Stopped(Outcome::Failed { message }), vec![]),
    }
}

/// What croft gave.
struct Given {
    /// What to run, or what is wrong with the file of a saved machine.
    run: Result<RunRequest, String>,
    console: OwnedFd,
    /// The file of a saved machine, at its state.
    saved: Option<File>,
    terminal: Option<OwnedFd>,
}

impl Given {
    fn new(request: Request, descriptors: Vec<OwnedFd>) -> Result<Self, WireError> {
        let expected = match &request {
            Request::Run(run) => run.descriptors(),
            Request::Restore(restore) => restore.descriptors(),
            _ => {
                return Err(WireError::Damaged(
                    "the first request is Run, Restore or Keep",
                ));
            }
        };
        let complete = descriptors.len() == expected;
        let mut descriptors = descriptors.into_iter();
        let (true, Some(console)) = (complete, descriptors.next()) else {
            return Err(WireError::Damaged("Run comes with other descriptors"));
        };
        let (run, saved) = match request {
            Request::Restore(restore) => {
                let mut saved = descriptors.next().map(File::from);
                let read = saved.as_mut().map(SavedRun::read);
                let run = match read {
                    Some(Ok(read)) => restore.apply(read),
                    Some(Err(error)) => Err(format!("{} {error}", restore.file)),
                    None => return Err(WireError::Damaged("Restore comes without a file")),
                };
                (run, saved)
            }
            Request::Run(run) => (Ok(*run), None),
            _ => {
                return Err(WireError::Damaged(
                    "the first request is Run, Restore or Keep",
                ));
            }
        };
        Ok(Given {
            run,
            console,
            saved,
            terminal: descriptors.next(),
        })
    }
}
