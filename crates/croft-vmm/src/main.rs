//! `croft-vmm`: one machine.
//!
//! Started by `croft-monitor`, from which it gets a configuration and open
//! descriptors and never a path. It lives as long as its machine, and never
//! longer than its monitor.

mod console;
mod control;
mod counts;
mod disks;
mod engine;
mod jail;
mod nics;
mod report;
mod start;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use croft_api::channel::channel;
use croft_api::vmm::{Event, PROTOCOL, Request};
use croft_api::{Outcome, Receiver, WireError};
use croft_api::{engines, jail as jail_report};
use croft_isolate::{Role, spawn};
use croft_machine::Machine;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Serialize;

use crate::console::Console;
use crate::jail::Jail;
use crate::report::{Reporter, gone};
use crate::start::Start;

/// Name of the other end in messages.
const PEER: &str = "croft-monitor";

fn main() -> ExitCode {
    let asks = |word: &str| {
        env::args_os()
            .nth(1)
            .is_some_and(|first| first == OsStr::new(word))
    };
    if asks(engines::ARGUMENT) {
        return print(&engine::report());
    }
    if asks(jail_report::ARGUMENT) {
        return print(&Jail::enter().report());
    }
    match prepare() {
        Ok((reporter, receiver, jail)) => {
            let outcome = run(&reporter, receiver, jail);
            reporter.report(&Event::Stopped(outcome));
            ExitCode::SUCCESS
        }
        Err(error) => {
            // There may be nobody to tell.
            let _ = writeln!(io::stderr(), "croft-vmm: {error}");
            ExitCode::from(2)
        }
    }
}

/// Prints what `croft doctor` asks for.
fn print(report: &impl Serialize) -> ExitCode {
    let written = serde_json::to_string(report)
        .map_err(io::Error::from)
        .and_then(|text| io::stdout().write_all(text.as_bytes()));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The conversation with the monitor, from within the jail's walls. If the
/// monitor died before the death signal was asked for, its socket is at its
/// end.
fn prepare() -> io::Result<(Reporter, Receiver, Jail)> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    if rustix::net::sockopt::socket_type(&socket).is_err() {
        return Err(io::Error::other(
            "this program is started by croft, not by hand; see 'croft run --help'",
        ));
    }
    let jail = Jail::enter();
    set_parent_process_death_signal(Some(Signal::KILL))?;
    counts::hold_signal()?;
    let (sender, receiver) = channel(socket, PROTOCOL, PEER);
    Ok((Reporter::new(sender)?, receiver, jail))
}

/// Makes the machine that the monitor asks for, and runs it.
fn run(reporter: &Reporter, mut receiver: Receiver, jail: Jail) -> Outcome {
    let start = match receiver.wait::<Request>() {
        Ok(Some((Request::Start(request), descriptors))) => Start::new(*request, descriptors),
        Ok(Some(_)) => Err(WireError::Damaged("Start comes first")),
        Ok(None) => gone(None),
        Err(error) => Err(error),
    };
    let (start, console) = start.unwrap_or_else(|error| gone(Some(&error)));
    match jail.close(start.wants(), &start.shares()) {
        Ok(complaints) => complaints.iter().for_each(|line| reporter.log(line)),
        Err(error) => {
            return Outcome::Failed {
                message: error.to_string(),
            };
        }
    }
    let mut start = match start.open() {
        Ok(start) => start,
        Err(error) => return start::refusal(error.into()),
    };
    let kvm = start.kvm();
    let chosen = match engine::choose(start.wanted(), kvm) {
        Ok(chosen) => chosen,
        Err(message) => return Outcome::Invalid { message },
    };
    let console = Arc::new(Console::new(console, reporter.clone()));
    let machine = match start.make(&chosen, console.clone(), reporter) {
        Ok(machine) => machine,
        Err(outcome) => return outcome,
    };
    let started =
        serve(&machine, &console, receiver, reporter).and_then(|()| match &chosen.statistics {
            Some(counts) => counts::report_at_signals(counts.clone(), reporter.clone()),
            None => Ok(()),
        });
    if let Err(error) = started {
        return Outcome::Failed {
            message: format!("cannot start a thread: {error}"),
        };
    }
    reporter.report(&Event::Started {
        engine: chosen.engine.name().to_owned(),
        reason: chosen.reason,
    });
    let outcome = outcome(machine.run());
    if let Some(counts) = &chosen.statistics {
        counts::report(counts, reporter);
    }
    if let Some(counts) = &chosen.lockstep {
        let text = format!("lockstep: {counts}");
        reporter.report(&Event::Log { text });
    }
    outcome
}

/// Starts the threads that hear the monitor and the terminal.
fn serve(
    machine: &Machine,
    console: &Console,
    receiver: Receiver,
    reporter: &Reporter,
) -> io::Result<()> {
    console.feed(machine.handle())?;
    let (handle, reporter) = (machine.handle(), reporter.clone());
    spawn(Role::Control, "control", move || {
        control::obey(receiver, &handle, &reporter);
    })
    .map(drop)
}

fn outcome(outcome: croft_machine::Outcome) -> Outcome {
    use croft_machine::Outcome as Machine;
    match outcome {
        Machine::PowerOff => Outcome::PowerOff,
        Machine::Reset => Outcome::Reset,
        Machine::TripleFault(report) => Outcome::TripleFault { report },
        Machine::DebugExit(status) => Outcome::DebugExit { status },
        Machine::Requested => Outcome::Requested,
        Machine::Saved => Outcome::Saved,
        Machine::Failed(message) => Outcome::Failed { message },
    }
}
