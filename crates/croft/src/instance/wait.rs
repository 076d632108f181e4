//! `croft wait`.

use std::time::Duration;

use croft_api::{Phase, Status};
use croft_host::{Client, InstanceName, Instances};

use super::power::{because, follow};
use super::{Fault, connect, container, finish, open};
use crate::args::instance::WaitOptions;
use crate::exit::Exit;

/// How long a machine may take to be ready if nobody says.
const READY: Duration = Duration::from_secs(300);

/// Waits until a machine is ready, or a container has ended.
pub fn wait(options: &WaitOptions) -> Exit {
    let name = &options.name.name;
    let patience = options.timeout.map(Duration::from_secs);
    finish(open().and_then(|instances| {
        if instances.config(name)?.container().is_some() {
            return container::wait(&instances, name, patience);
        }
        let patience = patience.unwrap_or(READY);
        until_ready(&instances, name, patience).map_err(|fault| fault.of(name))?;
        Ok(Exit::PowerOff)
    }))
}

/// Waits until the agent in an instance says that it is ready.
pub fn until_ready(
    instances: &Instances,
    name: &InstanceName,
    patience: Duration,
) -> Result<(), Fault> {
    let mut client: Client = connect(instances, name)?;
    client.watch()?;
    let mut heard = false;
    let waited = follow(&mut client, patience, |status: &Status| {
        heard |= status.agent.is_some();
        match status.phase {
            Phase::Stopping | Phase::Stopped | Phase::Failed | Phase::Crashed => {
                let why = because(status);
                Some(Err(Fault::failed(format!("it is {}{why}", status.phase))))
            }
            _ => status
                .agent
                .as_ref()
                .is_some_and(|agent| agent.ready)
                .then_some(Ok(())),
        }
    });
    waited.map_err(|fault| match fault.exit {
        Exit::Timeout if heard => Fault::timeout("it is not ready in time"),
        Exit::Timeout => Fault::timeout(
            "no agent was heard of in time; it may have none, and then it cannot be waited for",
        ),
        _ => fault,
    })
}
