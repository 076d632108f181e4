//! Instances: machines and containers that are kept, and run in the background.

mod autostart;
mod console;
pub mod container;
mod copy;
mod create;
mod delete;
mod devices;
mod guest;
mod image;
mod list;
mod logs;
mod nics;
mod power;
mod reach;
mod resize;
mod run;
mod show;
mod spec;
mod ssh;
mod wait;

use std::io;
use std::path::Path;
use std::time::Duration;

use croft_host::store::{Config, Machine};
use croft_host::{
    Client, ClientError, Directories, DirectoriesError, InstanceName, Instances, StartError,
    StoreError,
};

pub use self::autostart::autostart;
pub use self::console::console;
pub use self::copy::cp;
pub use self::create::create;
pub use self::delete::delete;
pub use self::devices::{disk, nic};
pub use self::guest::{exec, shell};
pub use self::list::list;
pub use self::logs::logs;
pub use self::nics::{ByDefault, nets, nics};
pub use self::power::{kill, pause, restart, resume, start, stop};
pub use self::run::run;
pub use self::show::show;
pub use self::spec::machine_spec;
pub use self::ssh::ssh;
pub use self::wait::wait;
use crate::exit::Exit;
use crate::say;

/// How long a monitor may take for what it does at once.
const SOON: Duration = Duration::from_secs(30);

/// Why a command was not done.
#[derive(Debug)]
pub struct Fault {
    exit: Exit,
    message: String,
}

impl Fault {
    /// Something about the command is wrong; nothing was done.
    pub fn usage(message: impl Into<String>) -> Self {
        Fault {
            exit: Exit::Usage,
            message: message.into(),
        }
    }

    /// It could not be done.
    pub fn failed(message: impl Into<String>) -> Self {
        Fault {
            exit: Exit::Failed,
            message: message.into(),
        }
    }

    /// It was not done in time.
    pub fn timeout(message: impl Into<String>) -> Self {
        Fault {
            exit: Exit::Timeout,
            message: message.into(),
        }
    }

    /// Of this instance.
    fn of(self, name: &InstanceName) -> Self {
        Fault {
            exit: self.exit,
            message: format!("{name}: {}", self.message),
        }
    }
}

impl From<DirectoriesError> for Fault {
    fn from(error: DirectoriesError) -> Self {
        Fault::usage(error.to_string())
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::None(_) | StoreError::Exists(_) => Fault::usage(error.to_string()),
            _ => Fault::failed(error.to_string()),
        }
    }
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Store(error) => error.into(),
            StartError::Invalid(message) => Fault::usage(message),
            StartError::NotExecuted { message, .. } => Fault::failed(message),
            error => Fault::failed(error.to_string()),
        }
    }
}

impl From<croft_image::Error> for Fault {
    fn from(error: croft_image::Error) -> Self {
        if error.is_usage() {
            Fault::usage(error.to_string())
        } else {
            Fault::failed(error.to_string())
        }
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Late => Fault::timeout(error.to_string()),
            error => Fault::failed(error.to_string()),
        }
    }
}

/// The instances of this user.
fn open() -> Result<Instances, Fault> {
    let directories = Directories::find()?;
    directories.create()?;
    let remover = |path: &Path| croft_image::remove_tree(path).map_err(io::Error::other);
    Ok(Instances::new(directories).with_remover(remover))
}

/// The machine that an instance is.
fn machine_of<'a>(config: &'a Config, name: &InstanceName) -> Result<&'a Machine, Fault> {
    config
        .machine()
        .ok_or_else(|| Fault::usage(format!("{name} is a container; this is for machines")))
}

/// Connects to the monitor of an instance, which must be there.
fn connect(instances: &Instances, name: &InstanceName) -> Result<Client, Fault> {
    // Names what is no instance.
    let status = instances.status(name)?;
    Client::connect(&instances.directories().socket(name)).map_err(|error| match error {
        ClientError::NoMonitor => Fault::failed(format!(
            "it is {}; 'croft start {name}' starts it",
            status.phase
        )),
        error => error.into(),
    })
}

/// Does a command and tells how it went.
fn finish(result: Result<Exit, Fault>) -> Exit {
    result.unwrap_or_else(|fault| {
        say::line(&format!("croft: {}", fault.message));
        fault.exit
    })
}

/// Does something with each instance, and with all of them whatever becomes
/// of the others.
fn each(
    names: &[InstanceName],
    mut work: impl FnMut(&Instances, &InstanceName) -> Result<(), Fault>,
) -> Exit {
    let instances = match open() {
        Ok(instances) => instances,
        Err(fault) => return finish(Err(fault)),
    };
    let mut exit = Exit::PowerOff;
    for name in names {
        if let Err(fault) = work(&instances, name) {
            let last = finish(Err(match fault.exit {
                // The message has the name already.
                Exit::Usage => fault,
                _ => fault.of(name),
            }));
            if exit == Exit::PowerOff {
                exit = last;
            }
        }
    }
    exit
}
