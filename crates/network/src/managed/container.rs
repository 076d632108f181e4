//! NICs of containers on networks and bridges.
//!
//! ```text
//!   host                            the container's network namespace
//!  bridge ── ct1234abcd ═══ veth ═══ eth0
//!            (port, filters, limits)  (addresses and routes, or DHCP)
//! ```
//!
//! The pair takes a tap's place and is treated as one: the same rules by the
//! name of its end here, the same lease. It ends with the namespace, whatever
//! kills the container; the next reconcile forgets the rest.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use croft_api::net::{Mac, NicSpec};
use croft_host::InstanceName;
use ipnet::{Ipv4Net, Ipv6Net};

use super::Networks;
use super::address::{GATEWAY_LINK_LOCAL, gateway4, gateway6};
use super::attach::{Seat, delete};
use super::config::{Mode, NetworkConfig, check_interface};
use super::error::{NetworkError, link as failed};
use super::reconcile::shape;
use super::setup::Setup;
use super::store::Attachment;
use crate::link::{Netlink, Peer};
use crate::names::Names;
use crate::namespace::Home;

/// How a container gets its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// From us, before its first program runs: a container of one program has
    /// nobody who would ask.
    Given,
    /// By DHCP and router advertisements, which its own system asks for: the
    /// same ones. Its NIC is there, and down.
    Asked,
}

/// A container's NIC as it is seen from inside.
#[derive(Clone, Copy, Debug)]
pub struct Inner<'a> {
    /// The container's network namespace.
    pub namespace: BorrowedFd<'a>,
    /// The NIC's name there: `eth0`.
    pub name: &'a str,
    /// How it gets its addresses.
    pub addressing: Addressing,
    /// Metric of its default routes: of several NICs the one with the least
    /// leads to the world.
    pub metric: u32,
}

/// A container's NIC that is attached, for as long as its namespace is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Its end on this host.
    pub interface: String,
    /// The MTU of the container's end: the network's, or less if asked for.
    pub mtu: u16,
    /// Its address in the subnet of its network; none on a bridge of
    /// somebody else's.
    pub ipv4: Option<Ipv4Net>,
    /// The same.
    pub ipv6: Option<Ipv6Net>,
    /// Who answers for names, and the container's own.
    pub names: Names,
}

impl Networks {
    /// Attaches a container's NIC to its network or bridge: makes a pair of
    /// interfaces, gives the container's end addresses and routes and this end
    /// rules, and makes it a port. A network that is not there at the moment
    /// is started. The caller has the instance's lock; a NIC of the same name
    /// that an earlier run has left is replaced. It stays attached until
    /// [`Networks::detach`], or until the namespace is gone.
    pub fn attach_container(
        &self,
        instance: &InstanceName,
        nic: &NicSpec,
        inner: &Inner<'_>,
    ) -> Result<Joined, NetworkError> {
        let _lock = self.begin(nic)?;
        check_interface(inner.name)?;
        let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
        let live = self.vacate(&mut netlink, instance, nic)?;
        let seat = self.seat(&mut netlink, instance, nic, &live)?;
        let interface = self.port(instance, nic);
        let peer = Peer {
            namespace: inner.namespace,
            name: inner.name,
            mac: nic.mac.bytes(),
            mtu: seat.mtu.into(),
        };
        netlink
            .add_veth(&interface, host_end(nic.mac), &peer)
            .map_err(failed("cannot make the pair of interfaces", &interface))?;
        let attachment = Attachment {
            instance: instance.to_string(),
            nic: nic.name.clone(),
            interface: interface.clone(),
            mac: nic.mac,
            limits: nic.limits,
            link: nic.link,
            place: seat.place.clone(),
        };
        let attached = self
            .join(&attachment)
            .and_then(|()| limit(inner.namespace, inner.name, nic))
            .and_then(|()| match inner.addressing {
                Addressing::Given => configure(inner, &seat),
                Addressing::Asked => Ok(()),
            });
        if let Err(error) = attached {
            delete(&mut netlink, &interface)?;
            self.forget(&attachment)?;
            return Err(error);
        }
        Ok(Joined {
            interface,
            mtu: seat.mtu,
            ipv4: seat.ipv4,
            ipv6: seat.ipv6,
            names: names(&seat),
        })
    }

    /// Changes what a container's NIC may do and whether its cable is plugged
    /// in, as `nic` says; it is called `name` in the container. Nothing else of
    /// it changes while it is attached.
    pub fn change_container(
        &self,
        instance: &InstanceName,
        nic: &NicSpec,
        namespace: BorrowedFd<'_>,
        name: &str,
    ) -> Result<(), NetworkError> {
        let _lock = self.begin(nic)?;
        let live = self.live_attachments()?;
        let found = live
            .into_iter()
            .find(|other| other.instance == instance.as_str() && other.nic == nic.name);
        let Some(mut attachment) = found else {
            return Err(NetworkError::NotAttached {
                instance: instance.to_string(),
                nic: nic.name.clone(),
            });
        };
        attachment.limits = nic.limits;
        attachment.link = nic.link;
        limit(namespace, name, nic)?;
        self.join(&attachment)
    }
}

/// The address of this end, which nobody sends to. A bridge without an address
/// of its own takes the least of its ports' (br_stp_if.c): not this one.
fn host_end(mac: Mac) -> [u8; 6] {
    let [_, b, c, d, e, f] = mac.bytes();
    [0xFE, b, c, d, e, f]
}

/// The gateways of a NIC's network, if it leads anywhere.
fn gateways(config: &NetworkConfig) -> Vec<IpAddr> {
    if config.mode == Mode::Closed {
        return Vec::new();
    }
    let four = config.ipv4.map(|net| gateway4(net).into());
    let six = config.ipv6.map(|_| GATEWAY_LINK_LOCAL.into());
    four.into_iter().chain(six).collect()
}

/// Limits what the container's end sends. Who has rights over the container's
/// network can undo that; rules of the host's then see to it.
fn limit(namespace: BorrowedFd<'_>, name: &str, nic: &NicSpec) -> Result<(), NetworkError> {
    let limit = || {
        let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
        let link = netlink.link(name).map_err(NetworkError::Interfaces)?;
        let bytes = nic.limits.outbound.bytes_per_second;
        match link {
            Some(link) => shape(&mut netlink, &link, bytes).map(|()| true),
            // The container has given it another name, or none: as above.
            None => Ok(false),
        }
    };
    home(namespace).inside(limit).map(drop)
}

/// Only root gets here, who needs no user namespace.
fn home(network: BorrowedFd<'_>) -> Home<'_> {
    Home {
        network,
        user: None,
    }
}

/// Gives the container's end its addresses and brings it up.
fn configure(inner: &Inner<'_>, seat: &Seat) -> Result<(), NetworkError> {
    let setup = Setup {
        name: inner.name,
        ipv4: seat.ipv4,
        ipv6: seat.ipv6,
        gateways: seat.network.as_ref().map(gateways).unwrap_or_default(),
        metric: inner.metric,
        alone: seat.network.is_some(),
    };
    home(inner.namespace)
        .inside(|| setup.apply().map(|()| true))
        .map(drop)
}

fn names(seat: &Seat) -> Names {
    let addresses = [
        seat.ipv4.map(|net| net.addr().into()),
        seat.ipv6.map(|net| net.addr().into()),
    ];
    let own = seat.network.as_ref();
    let own = own.filter(|config| config.mode != Mode::Uplink);
    let resolvers = own.map(|config| {
        let four = config.ipv4.map(|net| gateway4(net).into());
        let six = config.ipv6.map(|net| gateway6(net).into());
        four.into_iter().chain(six).collect()
    });
    Names {
        resolvers: resolvers.unwrap_or_default(),
        domain: own.map(|config| config.domain.clone()),
        addresses: addresses.into_iter().flatten().collect(),
    }
}
