//! `croft start`, `stop`, `restart`, `pause` and `resume`.

use std::time::{Duration, Instant};

use croft_api::container::ContainerRole;
use croft_api::control::{Event, Request};
use croft_api::{Outcome, Phase, Status};
use croft_host::{Client, ClientError, InstanceName, Instances};

use super::console::{self, View};
use super::container::foreground::{self, Foreground};
use super::{Fault, SOON, connect, each, finish, open};
use crate::args::instance::{NamesOptions, StartOptions, StopOptions};
use crate::args::running::KillOptions;
use crate::exit::Exit;
use crate::say;

/// How long a whole system has to end by itself.
const SYSTEM: Duration = Duration::from_secs(60);
/// How long a container of one program has.
const APPLICATION: Duration = Duration::from_secs(10);
/// How much longer than the guest's own time stopping may take: the plug's
/// and the kill's, and what a busy host takes for either.
const FORCE: Duration = Duration::from_secs(60);

/// Starts instances.
pub fn start(options: &StartOptions) -> Exit {
    if !options.attach {
        return each(&options.names.names, start_one);
    }
    let [name] = options.names.names.as_slice() else {
        return finish(Err(Fault::usage(
            "one instance's console fits on a terminal; name one with --attach",
        )));
    };
    finish(open().and_then(|instances| {
        if let Some(container) = instances.config(name)?.container() {
            let foreground = Foreground {
                tty: container.tty,
                stdin: container.stdin,
            };
            return foreground::run(&instances, name, foreground);
        }
        start_one(&instances, name)?;
        console::view(&instances, name, View::default())
    }))
}

/// Starts an instance.
pub fn start_one(instances: &Instances, name: &InstanceName) -> Result<(), Fault> {
    let status = instances.status(name)?;
    match status.phase {
        // It need not wait for its policy.
        Phase::Waiting => Ok(connect(instances, name)?.command(&Request::Restart { timeout: 0 })?),
        phase if phase.is_live() => Err(Fault::failed(format!("it is {phase} already"))),
        _ => {
            let started =
                instances.start(name, |text| say::line(&format!("croft: {name}: {text}")));
            Ok(started.map(drop)?)
        }
    }
}

/// Stops instances.
pub fn stop(options: &StopOptions) -> Exit {
    with(options, |instances, name| {
        stop_one(instances, name, patience(instances, name, options))
    })
}

/// Does something with the instances that are meant.
fn with(
    options: &StopOptions,
    work: impl FnMut(&Instances, &InstanceName) -> Result<(), Fault>,
) -> Exit {
    if !options.all {
        return each(&options.names, work);
    }
    let live = open().and_then(|instances| {
        let mut names = instances.names()?;
        names.retain(|name| {
            instances
                .status(name)
                .is_ok_and(|status| status.phase.is_live())
        });
        Ok(names)
    });
    match live {
        Ok(names) => each(&names, work),
        Err(fault) => finish(Err(fault)),
    }
}

fn patience(instances: &Instances, name: &InstanceName, options: &StopOptions) -> Duration {
    if options.force {
        return Duration::ZERO;
    }
    options
        .timeout
        .map_or_else(|| patience_with(instances, name), Duration::from_secs)
}

/// How long an instance may take to end by itself if nobody says.
pub fn patience_with(instances: &Instances, name: &InstanceName) -> Duration {
    let config = instances.config(name).ok();
    let container = config.as_ref().and_then(|config| config.container());
    match container.map(|container| container.role) {
        Some(ContainerRole::Application) => APPLICATION,
        _ => SYSTEM,
    }
}

/// Ends instances at once, or sends containers a signal.
pub fn kill(options: &KillOptions) -> Exit {
    each(&options.names.names, |instances, name| {
        let mut client = connect(instances, name)?;
        match options.signal {
            Some(signal) => Ok(client.command(&Request::Signal { signal })?),
            None => {
                drop(client);
                stop_one(instances, name, Duration::ZERO)
            }
        }
    })
}

/// Stops an instance; one that does not run is stopped.
pub fn stop_one(
    instances: &Instances,
    name: &InstanceName,
    patience: Duration,
) -> Result<(), Fault> {
    if !instances.status(name)?.phase.is_live() {
        return Ok(());
    }
    let mut client = match Client::connect(&instances.directories().socket(name)) {
        Ok(client) => client,
        // It has ended in this moment, or has only begun to start.
        Err(ClientError::NoMonitor) if !instances.status(name)?.phase.is_live() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    client.watch()?;
    let timeout = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    match client.command(&Request::Stop { timeout }) {
        Ok(()) => {}
        Err(ClientError::Gone) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    // At the end of the connection the instance can be started or deleted.
    let deadline = Instant::now() + patience + FORCE;
    loop {
        match client.next(Some(deadline.saturating_duration_since(Instant::now()))) {
            Ok(Some(_)) => {}
            Ok(None) => {
                return Err(Fault::timeout(
                    "it does not end; see 'croft logs --monitor'",
                ));
            }
            Err(ClientError::Gone) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Restarts instances.
pub fn restart(options: &StopOptions) -> Exit {
    with(options, |instances, name| {
        restart_one(instances, name, patience(instances, name, options))
    })
}

fn restart_one(
    instances: &Instances,
    name: &InstanceName,
    patience: Duration,
) -> Result<(), Fault> {
    let before = instances.status(name)?;
    if !before.phase.is_live() {
        return start_one(instances, name);
    }
    let mut client = connect(instances, name)?;
    client.watch()?;
    let timeout = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    client.command(&Request::Restart { timeout })?;
    follow(
        &mut client,
        patience + FORCE + SOON,
        |status| match status.phase {
            Phase::Running if status.starts > before.starts => Some(Ok(())),
            Phase::Stopped | Phase::Failed | Phase::Waiting => Some(Err(ended(status))),
            _ => None,
        },
    )
}

/// Holds instances.
pub fn pause(options: &NamesOptions) -> Exit {
    change(options, &Request::Pause, Phase::Paused)
}

/// Lets instances continue.
pub fn resume(options: &NamesOptions) -> Exit {
    change(options, &Request::Resume, Phase::Running)
}

fn change(options: &NamesOptions, request: &Request, wanted: Phase) -> Exit {
    each(&options.names, |instances, name| {
        let mut client = connect(instances, name)?;
        client.watch()?;
        client.command(request)?;
        follow(&mut client, SOON, |status| match status.phase {
            phase if phase == wanted => Some(Ok(())),
            phase if phase.has_payload() => None,
            _ => Some(Err(ended(status))),
        })
    })
}

fn ended(status: &Status) -> Fault {
    Fault::failed(format!("it is {}{}", status.phase, because(status)))
}

/// Why it is where it is, to be added to that.
pub fn because(status: &Status) -> String {
    if let Some(note) = &status.note {
        return format!(" ({note})");
    }
    match (&status.outcome, status.phase) {
        (_, Phase::Created | Phase::Starting | Phase::Running) | (None, _) => String::new(),
        (Some(outcome), _) => match outcome {
            Outcome::PowerOff => " (it powered off)".to_owned(),
            Outcome::Reset => " (it asked for a reset)".to_owned(),
            Outcome::TripleFault { .. } => " (it faulted three times in a row)".to_owned(),
            Outcome::DebugExit { status } => format!(" (it exited with {status})"),
            Outcome::Requested => String::new(),
            Outcome::Saved => " (it was saved)".to_owned(),
            Outcome::Exited { status } => format!(" (it exited with {status})"),
            Outcome::Killed {
                signal,
                out_of_memory,
            } => {
                let why = if *out_of_memory {
                    ", out of memory"
                } else {
                    ""
                };
                format!(" (it was killed by signal {signal}{why})")
            }
            Outcome::Invalid { message }
            | Outcome::NotExecuted { message, .. }
            | Outcome::Failed { message } => format!(" ({message})"),
        },
    }
}

/// Follows an instance until `look` has seen enough.
pub fn follow<T>(
    client: &mut Client,
    patience: Duration,
    mut look: impl FnMut(&Status) -> Option<Result<T, Fault>>,
) -> Result<T, Fault> {
    let deadline = Instant::now() + patience;
    loop {
        match client.next(Some(deadline.saturating_duration_since(Instant::now())))? {
            Some(Event::Status(status)) => {
                if let Some(seen) = look(&status) {
                    return seen;
                }
            }
            Some(_) => {}
            None => {
                return Err(Fault::timeout(
                    "it takes too long; see 'croft logs --monitor'",
                ));
            }
        }
    }
}
