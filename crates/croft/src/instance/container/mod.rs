//! Containers: what of their commands differs from machines'.

mod attach;
mod copy;
mod create;
mod equip;
mod exec;
mod follow;
pub mod foreground;
mod limits;
mod stats;
mod top;

use std::path::Path;

use croft_api::ContainerSpec;
use croft_host::store::{self, Config};
use croft_host::{InstanceName, Instances};
use croft_isolate::cgroups::{Group, Hierarchies};

pub use self::attach::attach;
pub use self::copy::{get, put};
pub use self::create::{create, run};
pub use self::exec::in_container;
pub use self::follow::{logs, wait};
pub use self::limits::set;
pub use self::stats::stats;
pub use self::top::top;
use super::Fault;
use crate::say;

/// Ends and removes what a killed monitor may have left of a container that
/// does not run: its control group, and whoever is still ending in it. What
/// cannot be removed is said, and nothing is lost by it.
pub fn sweep(instances: &Instances, name: &InstanceName) {
    let directory = instances.directories().instance(name);
    if let Err(error) = sweep_group(&directory) {
        say::line(&format!(
            "croft: {name}: its control group is left: {error}"
        ));
    }
}

fn sweep_group(directory: &Path) -> Result<(), String> {
    let path = store::control_group(directory).map_err(|error| error.to_string())?;
    let group = Hierarchies::find().and_then(|all| Group::open(&all, &path));
    let group = group.map_err(|error| error.to_string())?;
    if group.is_nowhere() {
        return Ok(());
    }
    let removed = group.kill().and_then(|()| group.delete());
    removed.map_err(|error| error.to_string())
}

/// The container that an instance is.
fn container_of<'a>(config: &'a Config, name: &InstanceName) -> Result<&'a ContainerSpec, Fault> {
    config
        .container()
        .ok_or_else(|| Fault::usage(format!("{name} is a machine; this is for containers")))
}
