//! `croft delete`.

use std::time::Duration;

use croft_host::StoreError;

use super::{Fault, container, each, power};
use crate::args::instance::DeleteOptions;
use crate::exit::Exit;

/// Deletes instances.
pub fn delete(options: &DeleteOptions) -> Exit {
    each(&options.names.names, |instances, name| {
        // One with a configuration that cannot be read can be deleted too.
        let live = || {
            instances
                .status(name)
                .is_ok_and(|status| status.phase.is_live())
        };
        if live() {
            if !options.force {
                return Err(Fault::failed(format!(
                    "it runs; 'croft stop {name}' first, or delete it with --force"
                )));
            }
            power::stop_one(instances, name, Duration::ZERO)?;
        }
        let config = instances.config(name).ok();
        if config.is_some_and(|config| config.container().is_some()) {
            instances.settle(name)?;
            container::sweep(instances, name);
        }
        match instances.delete(name) {
            // An ephemeral one has deleted itself.
            Err(StoreError::None(_)) if options.force => Ok(()),
            other => Ok(other?),
        }
    })
}
