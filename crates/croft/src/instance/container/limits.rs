//! `croft set`: a container's limits, now and from its next start on.

use croft_api::container::ContainerLimits;
use croft_api::control::Request;

use super::{container_of, equip};
use crate::args::running::{Limit, SetOptions};
use crate::exit::Exit;
use crate::instance::{Fault, SOON, connect, finish, open};

/// Changes a container's limits.
pub fn set(options: &SetOptions) -> Exit {
    let name = &options.name.name;
    finish(open().and_then(|instances| {
        let config = instances.config(name)?;
        let before = container_of(&config, name)?.limits.clone();
        let mut limits = equip::limits(&options.limits, before.clone());
        for limit in &options.unlimited {
            clear(&mut limits, *limit);
        }
        if limits == before {
            return Err(Fault::usage(
                "nothing changes; name a limit, as --memory 256M (croft set --help)",
            ));
        }
        if instances.status(name)?.phase.is_live() {
            let mut monitor = connect(&instances, name).map_err(|fault| fault.of(name))?;
            let request = Request::SetLimits(Box::new(limits));
            let answer = monitor.ask_within(&request, vec![], Some(SOON));
            answer.map_err(|error| Fault::from(error).of(name))?;
        } else {
            instances.change(name, |config| {
                if let Some(container) = config.container_mut() {
                    container.limits = limits;
                }
            })?;
        }
        Ok(Exit::PowerOff)
    }))
}

fn clear(limits: &mut ContainerLimits, limit: Limit) {
    match limit {
        Limit::Memory => limits.memory = None,
        Limit::MemoryHigh => limits.memory_high = None,
        Limit::Swap => limits.swap = None,
        Limit::Cpus => limits.cpus = None,
        Limit::Cpuset => limits.cpuset = None,
        Limit::Pids => limits.pids = None,
    }
}
