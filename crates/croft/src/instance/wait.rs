//! `croft wait`.

use std::time::Duration;

use croft_api::{Phase, Status};
use croft_host::{Client, InstanceName, Instances};

use super::power::{because, follow};
use super::{Fault, connect, finish, open};
use crate::args::instance::WaitOptions;
use crate::exit::Exit;

/// Waits until an instance is ready.
pub fn wait(options: &WaitOptions) -> Exit {
    let name = &options.name.name;
    let patience = Duration::from_secs(options.timeout);
    finish(open().and_then(|instances| {
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
