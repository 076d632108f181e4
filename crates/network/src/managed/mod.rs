//! Managed networks: bridges of Croft's own, with addresses, names, a way to
//! the world and a firewall.
//!
//! ```text
//!   web1          web2                      the world
//!    │ tap         │ tap                       │
//!  ┌─┴─────────────┴──┐ address of the   ┌─────┴────┐
//!  │ bridge cr-NAME   ├─ host, dnsmasq ──┤   host   │
//!  └──────────────────┘                  └──────────┘
//!   frames.rs: who may    packets.rs: what passes,
//!   send as whom          what is translated
//! ```
//!
//! There is no daemon. [`Networks::reconcile`] makes what is there (bridges,
//! addresses, settings, rules, dnsmasq) into what should be, whatever it was
//! before, and is part of every change and of every [`Networks::attach`]. A
//! crash at any point leaves what the next one mends:
//!
//! ```text
//!                 create            stop
//!   (nothing) ───────────► started ──────► stopped ───► (nothing)
//!                             ▲   start or    │   delete
//!                             └── attach ─────┘
//! ```
//!
//! * a network is what its `config.json` says, and is gone with it; bridges
//!   with a MAC address of ours and processes with a configuration of ours that
//!   belong to no network are removed;
//! * a NIC's tap goes with the machine's process and its pair with the
//!   container's network namespace, and what was remembered of the NIC is
//!   forgotten when that is found gone; its address is kept as long as the
//!   instance exists;
//! * rules are replaced as a whole.
//!
//! Everything is done for the network namespace of the calling process.

mod address;
mod attach;
mod config;
mod container;
mod dnsmasq;
mod error;
mod firewall;
mod name;
mod nft;
mod program;
mod reconcile;
mod rules;
mod setup;
mod store;
mod sysctl;

use std::net::IpAddr;
use std::path::Path;

use croft_api::net::{NicKind, NicSpec};
use croft_host::Directories;
use croft_host::InstanceName;
use croft_host::files::now;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::process::geteuid;
use serde::Serialize;

pub use address::AddressError;
pub use attach::Attached;
pub use config::{ConfigError, MTU, Mode, NetworkConfig};
pub use container::{Addressing, Inner, Joined};
pub use error::NetworkError;
pub use firewall::{Action, Carried, Direction, Ports, Rule, RuleError};
pub use name::{NetworkName, NetworkNameError};
pub use reconcile::{Fault, Subject};
pub use store::{Attachment, Lease, Place};

pub(crate) use self::attach::delete;
pub(crate) use self::setup::Setup;

use self::store::Store;
use crate::link::Netlink;

/// Where root has everything by default; those of other directories on the
/// same host have tables and taps with other names.
const STANDARD: &str = "/var/lib/croft";

/// What a subnet of a new network should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subnet<T> {
    /// A free one.
    #[default]
    Auto,
    /// This one.
    Is(T),
    /// None.
    None,
}

/// What a new network should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewNetwork {
    /// How it leads to the world.
    pub mode: Mode,
    /// Its subnet.
    pub ipv4: Subnet<Ipv4Net>,
    /// Its subnet of version 6.
    pub ipv6: Subnet<Ipv6Net>,
    /// Its MTU; [`MTU`] when not given.
    pub mtu: Option<u16>,
    /// The interface of the host's that is part of it.
    pub uplink: Option<String>,
    /// The VLAN of the uplink's that it is.
    pub vlan: Option<u16>,
    /// Its domain; `croft` when not given.
    pub domain: Option<String>,
    /// Its instances do not reach each other.
    pub isolated: bool,
    /// Its instances reach what the host serves.
    pub host_access: bool,
    /// What becomes of packets from outside; [`Action::Drop`] when not given.
    pub ingress: Option<Action>,
    /// What becomes of packets to the outside; [`Action::Allow`] when not
    /// given.
    pub egress: Option<Action>,
    /// Its firewall.
    pub rules: Vec<Rule>,
}

/// A network as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// Its bridge.
    pub bridge: String,
    /// Whether that is there and up.
    pub up: bool,
    /// The process of its dnsmasq.
    pub dnsmasq: Option<u32>,
    /// What it should be.
    #[serde(flatten)]
    pub config: NetworkConfig,
    /// The addresses of its instances.
    pub leases: Vec<Lease>,
    /// The NICs on it.
    pub attached: Vec<Attachment>,
}

/// All managed networks of a host.
#[derive(Clone, Debug)]
pub struct Networks {
    store: Store,
    /// What tells them apart from those of other directories: empty for the
    /// standard ones.
    suffix: String,
}

impl Networks {
    /// Those in `directories`. Nothing is made or looked at yet.
    pub fn open(directories: &Directories) -> Self {
        let data = directories.data();
        let suffix = if data == Path::new(STANDARD) {
            String::new()
        } else {
            format!("-{:08x}", hash(&[data.as_os_str().as_encoded_bytes()]))
        };
        Networks {
            store: Store::new(directories.clone()),
            suffix,
        }
    }

    /// The name of the tables of rules: `croft`, and more where the
    /// directories are not the standard ones.
    pub fn table(&self) -> String {
        format!("croft{}", self.suffix)
    }

    /// Their names, in order.
    pub fn names(&self) -> Result<Vec<NetworkName>, NetworkError> {
        self.store.names()
    }

    /// What a network should be.
    pub fn config(&self, name: &NetworkName) -> Result<NetworkConfig, NetworkError> {
        self.store.config(name)
    }

    /// A network as it is.
    pub fn show(&self, name: &NetworkName) -> Result<Network, NetworkError> {
        let config = self.store.config(name)?;
        let links = Netlink::open()
            .and_then(|mut netlink| netlink.links())
            .map_err(NetworkError::Interfaces)?;
        let bridge = links.iter().find(|link| link.name == name.bridge());
        let mut attached = self.store.attachments()?;
        attached.retain(|attachment| {
            attachment.network() == Some(name)
                && links.iter().any(|link| link.name == attachment.interface)
        });
        Ok(Network {
            name: name.clone(),
            bridge: name.bridge(),
            up: bridge.is_some_and(|link| link.up && link.mac == Some(self.mac(name))),
            dnsmasq: dnsmasq::pid(&self.store, name),
            config,
            leases: self.store.leases(name)?,
            attached,
        })
    }

    /// The addresses of an instance's NICs on networks, in the NICs' order.
    pub fn addresses(&self, instance: &InstanceName, nics: &[NicSpec]) -> Vec<IpAddr> {
        let of = |nic: &NicSpec| {
            let NicKind::Network(wanted) = &nic.kind else {
                return None;
            };
            let leases = self.store.leases(&wanted.network.parse().ok()?).ok()?;
            let mut leases = leases.into_iter();
            leases.find(|lease| lease.instance == instance.as_str() && lease.nic == nic.name)
        };
        let both = |lease: Lease| [lease.ipv4.map(IpAddr::V4), lease.ipv6.map(IpAddr::V6)];
        let leases = nics.iter().filter_map(of);
        leases.flat_map(both).flatten().collect()
    }

    /// Makes a network, and starts it.
    pub fn create(
        &self,
        name: &NetworkName,
        new: &NewNetwork,
    ) -> Result<NetworkConfig, NetworkError> {
        self.may()?;
        let _lock = self.store.lock()?;
        if self.store.names()?.contains(name) {
            return Err(NetworkError::Exists(name.clone()));
        }
        let (ipv4, ipv6) = self.subnets(name, new)?;
        let config = NetworkConfig {
            version: config::VERSION,
            created: now(),
            started: true,
            mode: new.mode,
            ipv4,
            ipv6,
            mtu: new.mtu.unwrap_or(MTU),
            uplink: new.uplink.clone(),
            vlan: new.vlan,
            domain: new.domain.clone().unwrap_or_else(|| "croft".to_owned()),
            isolated: new.isolated,
            host_access: new.host_access,
            ingress: new.ingress.unwrap_or(Action::Drop),
            egress: new.egress.unwrap_or(Action::Allow),
            rules: new.rules.clone(),
        };
        config.check()?;
        self.store.clean();
        self.store.set_config(name, &config)?;
        if let Err(error) = self.reconcile_locked(&[Subject::Network(name.clone())]) {
            // It never was: nothing of it stays.
            self.store.remove(name)?;
            self.reconcile_locked(&[])?;
            return Err(error);
        }
        Ok(config)
    }

    /// Changes what a network is, and makes it so at once.
    pub fn set(
        &self,
        name: &NetworkName,
        change: impl FnOnce(&mut NetworkConfig),
    ) -> Result<NetworkConfig, NetworkError> {
        self.may()?;
        let _lock = self.store.lock()?;
        let before = self.store.config(name)?;
        let mut config = before.clone();
        change(&mut config);
        config.check()?;
        self.store.set_config(name, &config)?;
        if let Err(error) = self.reconcile_locked(&[Subject::Network(name.clone())]) {
            self.store.set_config(name, &before)?;
            self.reconcile_locked(&[])?;
            return Err(error);
        }
        Ok(config)
    }

    /// Starts a network: its bridge, rules and dnsmasq come back.
    pub fn start(&self, name: &NetworkName) -> Result<(), NetworkError> {
        self.set(name, |config| config.started = true).map(drop)
    }

    /// Stops a network that no instance is on: of it, only its configuration
    /// and addresses stay.
    pub fn stop(&self, name: &NetworkName) -> Result<(), NetworkError> {
        self.may()?;
        let _lock = self.store.lock()?;
        let mut config = self.store.config(name)?;
        self.unused(name)?;
        config.started = false;
        self.store.set_config(name, &config)?;
        self.reconcile_locked(&[]).map(drop)
    }

    /// Deletes a network that no instance is on.
    pub fn delete(&self, name: &NetworkName) -> Result<(), NetworkError> {
        self.may()?;
        let _lock = self.store.lock()?;
        if !self.store.names()?.contains(name) {
            return Err(NetworkError::None(name.clone()));
        }
        self.unused(name)?;
        self.store.remove(name)?;
        self.reconcile_locked(&[]).map(drop)
    }

    /// Makes what is there into what should be. What cannot be mended of one
    /// network does not keep the others from being.
    pub fn reconcile(&self) -> Result<Vec<Fault>, NetworkError> {
        self.may()?;
        let _lock = self.store.lock()?;
        self.store.clean();
        self.reconcile_locked(&[])
    }

    fn may(&self) -> Result<(), NetworkError> {
        let root = geteuid().is_root();
        root.then_some(()).ok_or(NetworkError::Privilege)
    }

    fn unused(&self, name: &NetworkName) -> Result<(), NetworkError> {
        let users: Vec<String> = self
            .live_attachments()?
            .iter()
            .filter(|attachment| attachment.network() == Some(name))
            .map(|attachment| format!("'{}'", attachment.instance))
            .collect();
        if users.is_empty() {
            return Ok(());
        }
        Err(NetworkError::InUse {
            network: name.clone(),
            users: users.join(", "),
        })
    }

    /// The subnets of a new network.
    fn subnets(
        &self,
        name: &NetworkName,
        new: &NewNetwork,
    ) -> Result<(Option<Ipv4Net>, Option<Ipv6Net>), NetworkError> {
        let mut taken = self.taken()?;
        let free = |net: IpNet, taken: &[(String, IpNet)]| match taken
            .iter()
            .find(|(_, other)| address::overlap(net, *other))
        {
            None => Ok(()),
            Some((holder, other)) => Err(AddressError::Overlap {
                subnet: net,
                other: *other,
                holder: holder.clone(),
            }),
        };
        let nets: Vec<IpNet> = taken.iter().map(|(_, net)| *net).collect();
        let uplink = new.mode == Mode::Uplink;
        let ipv4 = match new.ipv4 {
            Subnet::None => None,
            Subnet::Auto if uplink => None,
            Subnet::Auto => Some(address::choose4(&nets, hash(&[name.as_str().as_bytes()]))?),
            Subnet::Is(net) => {
                let net = address::check4(net)?;
                free(net.into(), &taken)?;
                Some(net)
            }
        };
        taken.extend(ipv4.map(|net| (format!("network '{name}'"), net.into())));
        let ipv6 = match new.ipv6 {
            Subnet::None => None,
            Subnet::Auto if uplink || !sysctl::ipv6_is_there() => None,
            Subnet::Auto => Some(address::choose6(&nets, random()?)?),
            Subnet::Is(net) => {
                if !sysctl::ipv6_is_there() {
                    return Err(NetworkError::Kernel {
                        what: "IPv6",
                        module: "ipv6",
                    });
                }
                let net = address::check6(net)?;
                free(net.into(), &taken)?;
                Some(net)
            }
        };
        Ok((ipv4, ipv6))
    }

    /// The subnets that are in use on this host, and by whom.
    fn taken(&self) -> Result<Vec<(String, IpNet)>, NetworkError> {
        let mut taken = Vec::new();
        for name in self.store.names()? {
            // One that cannot be read has, if it is there, routes.
            let Ok(config) = self.store.config(&name) else {
                continue;
            };
            let four = config.ipv4.map(IpNet::V4);
            let nets = four.into_iter().chain(config.ipv6.map(IpNet::V6));
            taken.extend(nets.map(|net| (format!("network '{name}'"), net)));
        }
        let known = || -> std::io::Result<Vec<(String, IpNet)>> {
            let mut netlink = Netlink::open()?;
            let links = netlink.links()?;
            let routes = netlink.routes()?;
            let holder = |index: Option<u32>| {
                let link = links.iter().find(|link| Some(link.index) == index);
                match link {
                    Some(link) => format!("interface '{}'", link.name),
                    None => "a route of this host".to_owned(),
                }
            };
            Ok(routes
                .into_iter()
                .map(|(index, net)| (holder(index), net))
                .collect())
        };
        taken.extend(known().map_err(NetworkError::Routes)?);
        Ok(taken)
    }

    /// The MAC address of a network's bridge or VLAN interface: what tells it
    /// from one that somebody else made.
    fn mac(&self, name: &NetworkName) -> [u8; 6] {
        let hash = hash(&[self.suffix.as_bytes(), b"bridge", name.as_str().as_bytes()]);
        let [a, b, c, d] = hash.to_be_bytes();
        // Locally administered, and not of those that NICs get.
        [0x02, 0xC8, a, b, c, d]
    }

    /// The name of a NIC's interface on this host.
    fn port(&self, instance: &InstanceName, nic: &NicSpec) -> String {
        let (instance, nic) = (instance.as_str().as_bytes(), nic.name.as_bytes());
        let hash = hash(&[self.suffix.as_bytes(), instance, nic]);
        format!("ct{hash:08x}")
    }
}

/// A number that depends on all of these.
fn hash(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
        hasher.update(&[0]);
    }
    hasher.finalize()
}

fn random() -> Result<[u8; 5], NetworkError> {
    let mut bytes = [0; 5];
    let mut filled = 0;
    while filled < bytes.len() {
        let space = bytes.get_mut(filled..).unwrap_or_default();
        match rustix::rand::getrandom(space, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(source) => return Err(error::file("/dev/random")(source.into())),
        }
    }
    Ok(bytes)
}
