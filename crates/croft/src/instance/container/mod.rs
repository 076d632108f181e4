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

use croft_api::ContainerSpec;
use croft_host::InstanceName;
use croft_host::store::Config;

pub use self::attach::attach;
pub use self::copy::{get, put};
pub use self::create::{create, run};
pub use self::exec::in_container;
pub use self::follow::{logs, wait};
pub use self::limits::set;
pub use self::stats::stats;
pub use self::top::top;
use super::Fault;

/// The container that an instance is.
fn container_of<'a>(config: &'a Config, name: &InstanceName) -> Result<&'a ContainerSpec, Fault> {
    config
        .container()
        .ok_or_else(|| Fault::usage(format!("{name} is a machine; this is for containers")))
}
