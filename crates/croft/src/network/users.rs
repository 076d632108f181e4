//! Instances that name a network: it is kept for them while they do not run.

use croft_api::net::NicKind;
use croft_host::{Directories, Instances};
use croft_network::NetworkName;

use super::{Fault, usage};

/// Fails if an instance names the network.
pub fn none(directories: &Directories, network: &NetworkName) -> Result<(), Fault> {
    let instances = Instances::new(directories.clone());
    let names = instances
        .names()
        .map_err(|error| usage(error.to_string()))?;
    for name in names {
        // One that cannot be read cannot be started either.
        let Ok(config) = instances.config(&name) else {
            continue;
        };
        let uses = config.nics.iter().any(
            |nic| matches!(&nic.kind, NicKind::Network(nic) if nic.network == network.as_str()),
        );
        if uses {
            return Err(usage(format!(
                "network '{network}' is that of instance '{name}'; delete that first"
            )));
        }
    }
    Ok(())
}
