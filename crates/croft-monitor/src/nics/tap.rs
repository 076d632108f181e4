//! A NIC's place in a managed network or on a bridge.

use croft_api::MachineSpec;
use croft_api::net::NicSpec;
use croft_host::{Directories, InstanceName};
use croft_network::{Attached, Networks};

/// A NIC that is attached. Detached when dropped; whatever kills this process
/// first, the tap goes with the payload and the next who looks at the networks
/// forgets the rest.
#[derive(Debug)]
pub struct Attachment {
    networks: Networks,
    instance: InstanceName,
    nic: String,
}

impl Attachment {
    /// Attaches a NIC of `machine` with so many queues.
    pub fn make(
        machine: &MachineSpec,
        nic: &NicSpec,
        queues: u16,
    ) -> Result<(Attachment, Attached), String> {
        let directories = Directories::find().map_err(|error| error.to_string())?;
        let instance: InstanceName = machine
            .name
            .parse()
            .map_err(|error| format!("'{}': {error}", machine.name.escape_debug()))?;
        let networks = Networks::open(&directories);
        let attached = networks
            .attach(&instance, nic, queues)
            .map_err(|error| error.to_string())?;
        let attachment = Attachment {
            networks,
            instance,
            nic: nic.name.clone(),
        };
        Ok((attachment, attached))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // Left to the next who looks.
        let _ = self.networks.detach(&self.instance, Some(&self.nic));
    }
}
