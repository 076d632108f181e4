//! `croft attach`.

use std::time::Duration;

use croft_api::Status;
use croft_api::control::{Event, Request, Writing};
use croft_host::{Client, ClientError, InstanceName, Instances};

use super::foreground::{self, Foreground, Streams};
use crate::args::running::AttachOptions;
use crate::exit::Exit;
use crate::instance::console::{self, View};
use crate::instance::{Fault, connect, finish, open};
use crate::say;

/// How long a container that has closed its streams may take to be gone.
const GONE: Duration = Duration::from_secs(30);

/// Takes part in a container's streams; of a machine in its console.
pub fn attach(options: &AttachOptions) -> Exit {
    let name = &options.name.name;
    finish(open().and_then(|instances| {
        let writing = if options.no_stdin {
            Writing::No
        } else {
            Writing::IfFree
        };
        if instances.config(name)?.container().is_none() {
            let view = View {
                writing,
                ..View::default()
            };
            return console::view(&instances, name, view);
        }
        streams(&instances, name, writing)
    }))
}

/// Takes part in a container's streams.
pub fn streams(
    instances: &Instances,
    name: &InstanceName,
    writing: Writing,
) -> Result<Exit, Fault> {
    let config = instances.config(name)?;
    let container = super::container_of(&config, name)?;
    let signals = foreground::signals()?;
    let mut client = connect(instances, name).map_err(|fault| fault.of(name))?;
    let request = Request::AttachStreams {
        writing,
        // What it prints from now on.
        lines: Some(0),
    };
    let answer = client.ask(&request, vec![]);
    let (event, sockets) = answer.map_err(|error| Fault::from(error).of(name))?;
    let writer = matches!(event, Event::Streams { writer: true });
    if !writer && writing != Writing::No {
        say::line(&format!(
            "croft: {name}: somebody else writes to its input; this only looks"
        ));
    }
    client.watch()?;
    let foreground = Foreground {
        tty: container.tty,
        stdin: container.stdin && writer,
    };
    let mut streams = Streams::new(instances, name, foreground, sockets, signals)?;
    if let Some(exit) = streams.follow()? {
        return Ok(exit);
    }
    drop(streams);
    match last(&mut client)? {
        Some(status) => match status.outcome {
            Some(outcome) => foreground::ended(name, outcome),
            None => Err(Fault::failed("its monitor died").of(name)),
        },
        None => Err(Fault::failed("it has closed its streams, and goes on").of(name)),
    }
}

/// What was last known of an instance, once its monitor is gone.
fn last(client: &mut Client) -> Result<Option<Status>, Fault> {
    let mut last = None;
    loop {
        match client.next(Some(GONE)) {
            Ok(Some(Event::Status(status))) => last = Some(*status),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(ClientError::Gone) => return Ok(last),
            Err(error) => return Err(error.into()),
        }
    }
}
