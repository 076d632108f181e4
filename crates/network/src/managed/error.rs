//! Why something could not be done with a network.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use croft_api::net::Publish;
use thiserror::Error;

use super::address::AddressError;
use super::config::ConfigError;
use super::name::{NetworkName, NetworkNameError};

/// Why something could not be done with a network.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A container's network cannot be entered.
    #[error("the container's network cannot be entered: {0}")]
    Namespace(#[source] io::Error),
    /// Something in a container failed; it was done by another process.
    #[error("in the container: {0}")]
    Inside(String),
    /// Not root.
    #[error(
        "managed networks and bridges are for root; as another user take --net user, which needs no rights"
    )]
    Privilege,
    /// A bad name.
    #[error(transparent)]
    Name(#[from] NetworkNameError),
    /// There is none of this name.
    #[error(
        "there is no network '{0}'; 'croft network list' shows those there are, 'croft network create {0}' makes it"
    )]
    None(NetworkName),
    /// There is one of this name.
    #[error(
        "there is a network '{0}' already; choose another name, or 'croft network delete {0}' first"
    )]
    Exists(NetworkName),
    /// Instances are on it.
    #[error("network '{network}' is in use by {users}; stop them first")]
    InUse {
        /// Which one.
        network: NetworkName,
        /// The instances.
        users: String,
    },
    /// Its configuration is of a later Croft.
    #[error(
        "network '{network}' was made by a newer Croft (version {version} of its configuration); use that"
    )]
    Version {
        /// Which one.
        network: NetworkName,
        /// Its version.
        version: u32,
    },
    /// What it should be is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its addresses, or those of an instance.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Somebody has the lock for too long.
    #[error("another process has been changing networks for {0} seconds; try again")]
    Busy(u64),
    /// A file.
    #[error("'{}': {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// A program is missing.
    #[error(
        "{program} is missing, which managed networks need; as root: apt-get install {package}"
    )]
    Missing {
        /// Which one.
        program: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// A program failed.
    #[error("{program}: {message}")]
    Program {
        /// Which one.
        program: &'static str,
        /// What it said.
        message: String,
    },
    /// The kernel refused something about interfaces.
    #[error("{what} '{interface}': {source}")]
    Link {
        /// What was tried.
        what: &'static str,
        /// With which interface.
        interface: String,
        /// What the host answered.
        source: io::Error,
    },
    /// The kernel does not say which interfaces there are.
    #[error("cannot list the interfaces of this host: {0}")]
    Interfaces(#[source] io::Error),
    /// The kernel does not say which routes there are.
    #[error("cannot list the routes of this host: {0}")]
    Routes(#[source] io::Error),
    /// No tap.
    #[error(transparent)]
    Tap(#[from] croft_net::TapError),
    /// The kernel has no such thing.
    #[error("this host's kernel has no {what} ({module}); load or build that, or do without")]
    Kernel {
        /// What it lacks.
        what: &'static str,
        /// The module or option that would have it.
        module: &'static str,
    },
    /// Its bridge's name is taken.
    #[error(
        "the name '{interface}' of network '{network}' is that of an interface that Croft did not make; rename that, or the network"
    )]
    NameTaken {
        /// Of the bridge or VLAN.
        interface: String,
        /// The network.
        network: NetworkName,
    },
    /// It would be in all VLANs.
    #[error(
        "the bridge '{0}' does not filter VLANs, so that a NIC cannot be in one of them; as root: ip link set {0} type bridge vlan_filtering 1"
    )]
    NoFiltering(String),
    /// There is no such interface.
    #[error("there is no interface '{0}'; 'ip link' shows those there are")]
    NoInterface(String),
    /// It is something else.
    #[error("'{0}' is no bridge; 'ip link show type bridge' shows those there are")]
    NoBridge(String),
    /// The uplink is used by the host.
    #[error(
        "the uplink '{0}' has addresses of this host, which would be cut off; give an interface without, or --vlan"
    )]
    UplinkInUse(String),
    /// The uplink is a port of something else.
    #[error(
        "the uplink '{0}' is a port of another bridge or bond already; give another, or --vlan"
    )]
    UplinkJoined(String),
    /// Somebody else answers names there.
    #[error(
        "port 53 of {address}, which network '{network}' needs for names, is taken by another server of names; let that listen on its own addresses alone"
    )]
    PortTaken {
        /// The network.
        network: NetworkName,
        /// Its host's address.
        address: IpAddr,
    },
    /// Two ask for one port.
    #[error("port {publish} is published already by {by}; choose another")]
    Published {
        /// Which one.
        publish: Publish,
        /// By which instance.
        by: String,
    },
    /// A program of the host's has a port.
    #[error("port {publish} cannot be published: {source}; choose another port or address")]
    PortInUse {
        /// Which one.
        publish: Publish,
        /// What the host answered.
        source: io::Error,
    },
    /// Nowhere to publish.
    #[error("port {publish} cannot be published: network '{network}' {why}")]
    CannotPublish {
        /// Which one.
        publish: Publish,
        /// The network.
        network: NetworkName,
        /// Why not.
        why: &'static str,
    },
    /// An address without a subnet for it.
    #[error("network '{network}' gives no addresses of version {version}; leave {address} out")]
    NoVersion {
        /// The network.
        network: NetworkName,
        /// 4 or 6.
        version: u8,
        /// What was asked for.
        address: IpAddr,
    },
    /// An address of another instance's.
    #[error("{address} is the address of {by} in network '{network}'; choose another")]
    AddressTaken {
        /// The network.
        network: NetworkName,
        /// What was asked for.
        address: IpAddr,
        /// Whose it is.
        by: String,
    },
    /// Two NICs with one MAC in a network would both be unreachable.
    #[error("{mac} is the MAC address of {by} in network '{network}'; choose another")]
    MacTaken {
        /// The network.
        network: NetworkName,
        /// The address.
        mac: croft_api::net::Mac,
        /// Whose it is.
        by: String,
    },
    /// It is not there.
    #[error("{nic} of '{instance}' is not attached at the moment")]
    NotAttached {
        /// The instance.
        instance: String,
        /// Its NIC.
        nic: String,
    },
    /// It is joined already.
    #[error("NIC '{nic}' of '{instance}' is attached already")]
    Attached {
        /// The instance.
        instance: String,
        /// Its NIC.
        nic: String,
    },
    /// A NIC of another kind, or with a name that is no file name.
    #[error(
        "NIC '{0}' cannot be attached here: it is not on a network or bridge, or its name has characters other than letters, digits, '-' and '_'"
    )]
    Nic(String),
}

/// For errors about a file.
pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.into();
    move |source| NetworkError::File { path, source }
}

/// For errors about an interface.
pub fn link(what: &'static str, interface: &str) -> impl FnOnce(io::Error) -> NetworkError {
    let interface = interface.to_owned();
    move |source| NetworkError::Link {
        what,
        interface,
        source,
    }
}
