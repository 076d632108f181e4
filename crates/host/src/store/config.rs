//! What an instance is: `config.json` in its directory.

use croft_api::monitor::{KeepPayload, KeepRequest, RunContainer};
use croft_api::net::NicSpec;
use croft_api::{ContainerSpec, RestartPolicy};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::directories::Directories;
use crate::name::InstanceName;

/// Version that this build writes.
pub const VERSION: u32 = 1;

/// What an instance is, as somebody wants it. Relative paths are in the
/// instance's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Config {
    /// [`VERSION`].
    pub version: u32,
    /// When it was created, in milliseconds after 1970.
    pub created: u64,
    /// What is run.
    pub kind: Kind,
    /// The NICs, in the guest's order.
    pub nics: Vec<NicSpec>,
    /// The image that it was created from.
    pub image: Option<ImageUse>,
    /// The user that was made in it, besides those of the image.
    pub user: Option<String>,
    /// What happens when it ends.
    pub restart: RestartPolicy,
    /// It is deleted when it has ended for good.
    pub ephemeral: bool,
    /// It is started by `croft autostart`.
    pub autostart: bool,
}

/// What an instance runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A machine.
    Machine(Box<Machine>),
    /// A container; its name is the instance's.
    Container(Box<ContainerSpec>),
}

/// [`Config`] as it is in its file: what a kind has is beside what all have,
/// as it was when machines were the only kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    created: u64,
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    container: Option<Box<ContainerSpec>>,
    #[serde(default)]
    nics: Vec<NicSpec>,
    image: Option<ImageUse>,
    #[serde(default)]
    user: Option<String>,
    restart: RestartPolicy,
    ephemeral: bool,
    autostart: bool,
}

impl From<Config> for Stored {
    fn from(config: Config) -> Self {
        let (machine, container) = match config.kind {
            Kind::Machine(machine) => (Some(*machine), None),
            Kind::Container(container) => (None, Some(container)),
        };
        Stored {
            version: config.version,
            created: config.created,
            machine,
            container,
            nics: config.nics,
            image: config.image,
            user: config.user,
            restart: config.restart,
            ephemeral: config.ephemeral,
            autostart: config.autostart,
        }
    }
}

impl TryFrom<Stored> for Config {
    type Error = &'static str;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        let kind = match (stored.machine, stored.container) {
            (Some(machine), None) => Kind::Machine(Box::new(machine)),
            (None, Some(container)) => Kind::Container(container),
            (None, None) => return Err("it says of no machine and no container"),
            (Some(_), Some(_)) => return Err("it says of a machine and a container"),
        };
        Ok(Config {
            version: stored.version,
            created: stored.created,
            kind,
            nics: stored.nics,
            image: stored.image,
            user: stored.user,
            restart: stored.restart,
            ephemeral: stored.ephemeral,
            autostart: stored.autostart,
        })
    }
}

impl Config {
    /// The machine, if it is one.
    pub fn machine(&self) -> Option<&Machine> {
        match &self.kind {
            Kind::Machine(machine) => Some(machine),
            Kind::Container(_) => None,
        }
    }

    /// The machine, if it is one.
    pub fn machine_mut(&mut self) -> Option<&mut Machine> {
        match &mut self.kind {
            Kind::Machine(machine) => Some(machine),
            Kind::Container(_) => None,
        }
    }

    /// The container, if it is one.
    pub fn container(&self) -> Option<&ContainerSpec> {
        match &self.kind {
            Kind::Container(container) => Some(container),
            Kind::Machine(_) => None,
        }
    }

    /// The container, if it is one.
    pub fn container_mut(&mut self) -> Option<&mut ContainerSpec> {
        match &mut self.kind {
            Kind::Container(container) => Some(container),
            Kind::Machine(_) => None,
        }
    }

    /// What its monitor is asked for.
    pub fn keep_request(&self, directories: &Directories, name: &InstanceName) -> KeepRequest {
        let directory = directories.instance(name);
        let payload = match &self.kind {
            Kind::Machine(machine) => {
                let vsock = directories.vsock(name);
                let run = machine.run_request(&self.nics, &directory, vsock);
                KeepPayload::Machine(Box::new(run))
            }
            Kind::Container(container) => KeepPayload::Container(Box::new(RunContainer {
                container: (**container).clone(),
                nics: self.nics.clone(),
            })),
        };
        KeepRequest {
            payload,
            socket: directories.socket(name).into(),
            directory: directory.into(),
            restart: self.restart,
            ephemeral: self.ephemeral,
            attached: 0,
        }
    }
}

/// An image in use: it is kept as long as an instance names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUse {
    /// The name it had.
    pub name: String,
    /// What it is, by its contents.
    pub id: String,
}
