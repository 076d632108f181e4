//! Networks on the host's disk.
//!
//! ```text
//! <data>/networks/.attached/lock               whoever changes anything has it
//! <data>/networks/.attached/NIC@INSTANCE.json  a NIC that is attached
//! <data>/networks/NAME/config.json             what the network is
//! <data>/networks/NAME/leases.json             the addresses of its instances
//! <data>/networks/NAME/dnsmasq/                what dnsmasq reads and writes
//! ```
//!
//! A network is there when its `config.json` is. An attachment counts as long
//! as its interface is there, which ends with the machine's process or the
//! container's network namespace.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use croft_api::net::{Mac, NicLimits, Publish};
use croft_host::files::{read_json, write_json};
use croft_host::{Directories, InstanceLock, InstanceName, LockError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::config::{NetworkConfig, VERSION};
use super::error::{NetworkError, file};
use super::name::NetworkName;

const CONFIG: &str = "config.json";
const LEASES: &str = "leases.json";
const ATTACHED: &str = ".attached";
/// How long somebody else may have the lock, in seconds.
const PATIENCE: u64 = 60;
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);
/// Others may go through a directory but not list it: dnsmasq has a user of
/// its own.
const TRAVERSE: u32 = 0o011;

/// A NIC that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The instance's name.
    pub instance: String,
    /// The NIC's.
    pub nic: String,
    /// Its interface on this host: a tap, or this end of a container's pair.
    pub interface: String,
    /// Its address.
    pub mac: Mac,
    /// How much it may do, where rules of the host's see to that: a
    /// container's. A machine's device does it itself.
    #[serde(default)]
    pub limits: NicLimits,
    /// Its cable is plugged in.
    #[serde(default = "yes")]
    pub link: bool,
    /// Where it is.
    pub place: Place,
}

fn yes() -> bool {
    true
}

/// Where a NIC is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On a managed network.
    Network {
        /// Its name.
        network: NetworkName,
        /// The NIC's address.
        ipv4: Option<Ipv4Addr>,
        /// The same.
        ipv6: Option<Ipv6Addr>,
        /// It does not reach others that are isolated.
        isolated: bool,
        /// Ports of the host that lead to it.
        publish: Vec<Publish>,
    },
    /// On a bridge of the host's.
    Bridge {
        /// Its name.
        bridge: String,
        /// The VLAN of the port.
        vlan: Option<u16>,
        /// It may send as whom it likes.
        spoofing: bool,
    },
}

/// The addresses that a NIC always gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The instance's name.
    pub instance: String,
    /// The NIC's.
    pub nic: String,
    /// Its address.
    pub mac: Mac,
    /// Its address of version 4.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address of version 6.
    pub ipv6: Option<Ipv6Addr>,
}

impl Attachment {
    /// As people call it.
    pub fn title(&self) -> String {
        format!("{} of '{}'", self.nic, self.instance)
    }

    /// The managed network that it is on.
    pub fn network(&self) -> Option<&NetworkName> {
        match &self.place {
            Place::Network { network, .. } => Some(network),
            Place::Bridge { .. } => None,
        }
    }

    fn file(instance: &str, nic: &str) -> String {
        format!("{nic}@{instance}.json")
    }
}

/// Where all of it is.
#[derive(Clone, Debug)]
pub struct Store {
    directories: Directories,
}

impl Store {
    /// In these directories.
    pub fn new(directories: Directories) -> Self {
        Store { directories }
    }

    /// The directory of all networks.
    pub fn root(&self) -> PathBuf {
        self.directories.networks()
    }

    /// That of one.
    pub fn network(&self, name: &NetworkName) -> PathBuf {
        self.root().join(name)
    }

    /// What dnsmasq reads and writes.
    pub fn dnsmasq(&self, name: &NetworkName) -> PathBuf {
        self.network(name).join("dnsmasq")
    }

    /// What is kept of this run of the host.
    pub fn runtime(&self) -> PathBuf {
        self.directories.runtime().to_owned()
    }

    fn attached(&self) -> PathBuf {
        self.root().join(ATTACHED)
    }

    /// Makes the directories, and takes the lock: whoever has it may change
    /// networks, and nobody else does.
    pub fn lock(&self) -> Result<InstanceLock, NetworkError> {
        let attached = self.attached();
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&attached).map_err(file(&attached))?;
        for path in [self.directories.data().to_owned(), self.root()] {
            let mode = fs::metadata(&path)
                .map_err(file(&path))?
                .permissions()
                .mode();
            if mode & TRAVERSE != TRAVERSE {
                let rights = fs::Permissions::from_mode(mode | TRAVERSE);
                fs::set_permissions(&path, rights).map_err(file(&path))?;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(PATIENCE);
        loop {
            match InstanceLock::take(&attached) {
                Ok(lock) => return Ok(lock),
                Err(LockError::Held) if Instant::now() < deadline => thread::sleep(LOOK),
                Err(LockError::Held) => return Err(NetworkError::Busy(PATIENCE)),
                Err(LockError::Io(source)) => return Err(file(attached)(source)),
                Err(LockError::Gone) => {
                    return Err(file(attached)(io::ErrorKind::NotFound.into()));
                }
            }
        }
    }

    /// The names of all networks, in order.
    pub fn names(&self) -> Result<Vec<NetworkName>, NetworkError> {
        let root = self.root();
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file(root)(error)),
        };
        let mut names: Vec<NetworkName> = entries
            .flatten()
            .filter(|entry| entry.path().join(CONFIG).exists())
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// What a network is.
    pub fn config(&self, name: &NetworkName) -> Result<NetworkConfig, NetworkError> {
        let path = self.network(name).join(CONFIG);
        let config: NetworkConfig = match read_json(&path) {
            Ok(config) => config,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NetworkError::None(name.clone()));
            }
            Err(error) => return Err(file(path)(error)),
        };
        if config.version > VERSION {
            return Err(NetworkError::Version {
                network: name.clone(),
                version: config.version,
            });
        }
        config.check()?;
        Ok(config)
    }

    /// Says what a network is; makes it.
    pub fn set_config(
        &self,
        name: &NetworkName,
        config: &NetworkConfig,
    ) -> Result<(), NetworkError> {
        let directory = self.network(name);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o711);
        builder.create(&directory).map_err(file(&directory))?;
        write_json(&directory, CONFIG, config).map_err(file(directory.join(CONFIG)))
    }

    /// Forgets a network: its configuration first, without which it is none.
    pub fn remove(&self, name: &NetworkName) -> Result<(), NetworkError> {
        let directory = self.network(name);
        let config = directory.join(CONFIG);
        fs::remove_file(&config).map_err(file(config))?;
        fs::remove_dir_all(&directory).map_err(file(directory))
    }

    /// Removes what crashes have left of networks half made or half deleted.
    pub fn clean(&self) {
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let network = name
                .to_str()
                .is_some_and(|name| name.parse::<NetworkName>().is_ok());
            if network && !entry.path().join(CONFIG).exists() {
                // If it cannot be removed now, then later.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// The addresses of a network's instances.
    pub fn leases(&self, name: &NetworkName) -> Result<Vec<Lease>, NetworkError> {
        let path = self.network(name).join(LEASES);
        let leases: Vec<Lease> = read_or_default(&path)?;
        Ok(leases)
    }

    /// Writes them.
    pub fn set_leases(&self, name: &NetworkName, leases: &[Lease]) -> Result<(), NetworkError> {
        let directory = self.network(name);
        write_json(&directory, LEASES, &leases).map_err(file(directory.join(LEASES)))
    }

    /// All that is attached, or was when somebody last looked.
    pub fn attachments(&self) -> Result<Vec<Attachment>, NetworkError> {
        let directory = self.attached();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file(directory)(error)),
        };
        let mut attachments: Vec<Attachment> = entries
            .flatten()
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .filter_map(|entry| read_json::<Attachment>(&entry.path()).ok())
            .filter(|attachment| {
                // They go into rules and names of files.
                attachment.instance.parse::<InstanceName>().is_ok()
                    && is_nic(&attachment.nic)
                    && super::config::check_interface(&attachment.interface).is_ok()
            })
            .collect();
        attachments.sort_by(|a, b| (&a.instance, &a.nic).cmp(&(&b.instance, &b.nic)));
        Ok(attachments)
    }

    /// Remembers an attachment.
    pub fn add_attachment(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let directory = self.attached();
        let name = Attachment::file(&attachment.instance, &attachment.nic);
        write_json(&directory, &name, attachment).map_err(file(directory.join(name)))
    }

    /// Forgets one.
    pub fn remove_attachment(&self, instance: &str, nic: &str) -> Result<(), NetworkError> {
        let path = self.attached().join(Attachment::file(instance, nic));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(path)(error)),
            _ => Ok(()),
        }
    }

    /// Whether there is an instance of this name.
    pub fn has_instance(&self, name: &str) -> bool {
        name.parse::<InstanceName>()
            .is_ok_and(|name| self.directories.instance(&name).exists())
    }
}

/// Whether a NIC's name can be part of a file's.
pub fn is_nic(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !name.is_empty() && name.len() <= croft_api::net::NAME_MAX && name.chars().all(plain)
}

fn read_or_default<T: DeserializeOwned + Default>(path: &PathBuf) -> Result<T, NetworkError> {
    match read_json(path) {
        Ok(value) => Ok(value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(file(path)(error)),
    }
}
