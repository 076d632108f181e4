//! NICs of instances on networks and bridges.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use croft_api::net::{BridgeNic, NetworkNic, NicKind, NicLimits, NicSpec, Protocol, Publish};
use croft_host::{InstanceLock, InstanceName};
use croft_net::open_tap;
use ipnet::{Ipv4Net, Ipv6Net};
use rustix::io::Errno;

use super::Networks;
use super::address::{self, AddressError};
use super::config::{Mode, NetworkConfig, check_interface, check_vlan};
use super::error::{NetworkError, link as failed};
use super::name::NetworkName;
use super::reconcile::{Subject, find_bridge};
use super::store::{Attachment, Lease, Place, is_nic};
use crate::link::Netlink;

/// A NIC that is attached, for as long as one of its queues is open.
#[derive(Debug)]
pub struct Attached {
    /// Its tap.
    pub interface: String,
    /// The tap's queues.
    pub queues: Vec<OwnedFd>,
    /// What the guest is told as MTU: the network's, or less if asked for.
    pub mtu: u16,
    /// Its address on a managed network.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address on a managed network.
    pub ipv6: Option<Ipv6Addr>,
}

impl Networks {
    /// Attaches a NIC to its network or bridge: opens `queues` queues of a tap,
    /// gives it addresses and rules, and makes it a port. A network that is
    /// not there at the moment is started. The NIC stays attached until
    /// [`Networks::detach`], or until nobody has a queue of it open.
    pub fn attach(
        &self,
        instance: &InstanceName,
        nic: &NicSpec,
        queues: u16,
    ) -> Result<Attached, NetworkError> {
        let _lock = self.begin(nic)?;
        let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
        let live = self.vacate(&mut netlink, instance, nic)?;
        let seat = self.seat(&mut netlink, instance, nic, &live)?;
        let (interface, queues) = open_tap(&self.port(instance, nic), queues.into())?;
        let attachment = Attachment {
            instance: instance.to_string(),
            nic: nic.name.clone(),
            interface: interface.clone(),
            mac: nic.mac,
            // The device's.
            limits: NicLimits::default(),
            link: true,
            place: seat.place.clone(),
        };
        if let Err(error) = self.join(&attachment) {
            drop(queues);
            self.forget(&attachment)?;
            return Err(error);
        }
        Ok(Attached {
            interface,
            queues,
            mtu: seat.mtu,
            ipv4: seat.ipv4.map(|net| net.addr()),
            ipv6: seat.ipv6.map(|net| net.addr()),
        })
    }

    /// Detaches a NIC, or all of an instance's: their interfaces are deleted,
    /// if they are still there, and their rules go.
    pub fn detach(&self, instance: &InstanceName, nic: Option<&str>) -> Result<(), NetworkError> {
        self.may()?;
        let _lock = self.store.lock()?;
        let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
        for attachment in self.store.attachments()? {
            let asked = nic.is_none_or(|nic| nic == attachment.nic);
            if attachment.instance != instance.as_str() || !asked {
                continue;
            }
            // Before its rules: without them it could send as anybody.
            delete(&mut netlink, &attachment.interface)?;
            self.store
                .remove_attachment(&attachment.instance, &attachment.nic)?;
        }
        self.reconcile_locked(&[]).map(drop)
    }

    /// What comes before anything is attached.
    pub(super) fn begin(&self, nic: &NicSpec) -> Result<InstanceLock, NetworkError> {
        self.may()?;
        if !is_nic(&nic.name) {
            return Err(NetworkError::Nic(nic.name.clone()));
        }
        let lock = self.store.lock()?;
        self.store.clean();
        Ok(lock)
    }

    /// The NICs that are there, after the place of this one has been made
    /// free. An interface of a container's that has been killed can be there
    /// for a moment longer than the container; whoever attaches has the
    /// instance's lock, so that nobody needs it any more.
    pub(super) fn vacate(
        &self,
        netlink: &mut Netlink,
        instance: &InstanceName,
        nic: &NicSpec,
    ) -> Result<Vec<Attachment>, NetworkError> {
        let port = self.port(instance, nic);
        let mut live = self.live_attachments()?;
        let same =
            |other: &Attachment| other.instance == instance.as_str() && other.nic == nic.name;
        let Some(link) = netlink.link(&port).map_err(NetworkError::Interfaces)? else {
            return Ok(live);
        };
        let pair = link.kind.as_deref() == Some("veth");
        let mine = live.iter().any(same);
        if mine && !pair {
            return Err(NetworkError::Attached {
                instance: instance.to_string(),
                nic: nic.name.clone(),
            });
        }
        let others = live
            .iter()
            .any(|other| other.interface == port && !same(other));
        if !pair || others {
            // Somebody has made one of this name that stays, or the machine's
            // process is about to be gone.
            return Err(failed("there is already an interface", &link.name)(
                io::ErrorKind::AlreadyExists.into(),
            ));
        }
        delete(netlink, &port)?;
        live.retain(|other| !same(other));
        Ok(live)
    }

    /// Finds a NIC's place on its network or bridge, with its addresses there.
    pub(super) fn seat(
        &self,
        netlink: &mut Netlink,
        instance: &InstanceName,
        nic: &NicSpec,
        live: &[Attachment],
    ) -> Result<Seat, NetworkError> {
        match &nic.kind {
            NicKind::User(_) => Err(NetworkError::Nic(nic.name.clone())),
            NicKind::Network(wanted) => self.seat_on_network(instance, nic, wanted, live),
            NicKind::Bridge(wanted) => seat_on_bridge(netlink, nic, wanted),
        }
    }

    fn seat_on_network(
        &self,
        instance: &InstanceName,
        nic: &NicSpec,
        wanted: &NetworkNic,
        live: &[Attachment],
    ) -> Result<Seat, NetworkError> {
        let name: NetworkName = wanted.network.parse()?;
        let mut config = self.store.config(&name)?;
        for publish in &wanted.publish {
            check_publish(&name, &config, publish, live)?;
        }
        let lease = self.lease(&name, &config, instance, nic, wanted, live)?;
        if !config.started {
            config.started = true;
            self.store.set_config(&name, &config)?;
        }
        let with4 = |net: Ipv4Net| Ipv4Net::new(lease.ipv4?, net.prefix_len()).ok();
        let with6 = |net: Ipv6Net| Ipv6Net::new(lease.ipv6?, net.prefix_len()).ok();
        Ok(Seat {
            mtu: nic.mtu.unwrap_or(config.mtu).min(config.mtu),
            ipv4: config.ipv4.and_then(with4),
            ipv6: config.ipv6.and_then(with6),
            place: Place::Network {
                network: name,
                ipv4: lease.ipv4,
                ipv6: lease.ipv6,
                isolated: wanted.isolated,
                publish: wanted.publish.clone(),
            },
            network: Some(config),
        })
    }

    /// Makes a NIC whose interface is there part of what should be.
    pub(super) fn join(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        self.store.add_attachment(attachment)?;
        let mut wanted = vec![Subject::Port(attachment.interface.clone())];
        wanted.extend(attachment.network().cloned().map(Subject::Network));
        self.reconcile_locked(&wanted).map(drop)
    }

    /// After something failed: leaves nothing of a NIC whose interface is
    /// gone.
    pub(super) fn forget(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        self.store
            .remove_attachment(&attachment.instance, &attachment.nic)?;
        // What failed is what is told.
        let _ = self.reconcile_locked(&[]);
        Ok(())
    }

    /// The addresses of a NIC: those it has had, those asked for, or free
    /// ones.
    fn lease(
        &self,
        network: &NetworkName,
        config: &NetworkConfig,
        instance: &InstanceName,
        nic: &NicSpec,
        wanted: &NetworkNic,
        live: &[Attachment],
    ) -> Result<Lease, NetworkError> {
        let (mut leases, before) = {
            let mut leases = self.store.leases(network)?;
            let before = leases.clone();
            // Those of instances that are gone are free.
            leases.retain(|lease| {
                self.store.has_instance(&lease.instance)
                    || live
                        .iter()
                        .any(|nic| (&nic.instance, &nic.nic) == (&lease.instance, &lease.nic))
            });
            (leases, before)
        };
        let mine = leases
            .iter()
            .position(|lease| lease.instance == instance.as_str() && lease.nic == nic.name);
        let old = mine.map(|mine| leases.swap_remove(mine));
        let of = |lease: &Lease| format!("'{}'", lease.instance);
        if let Some(other) = leases.iter().find(|lease| lease.mac == nic.mac) {
            return Err(NetworkError::MacTaken {
                network: network.clone(),
                mac: nic.mac,
                by: of(other),
            });
        }
        let taken = |address: IpAddr| {
            leases.iter().find(|lease| {
                let four = lease.ipv4.map(IpAddr::V4);
                [four, lease.ipv6.map(IpAddr::V6)].contains(&Some(address))
            })
        };
        let asked = |address: IpAddr, fits: Result<(), AddressError>| {
            fits?;
            match taken(address) {
                None => Ok(()),
                Some(other) => Err(NetworkError::AddressTaken {
                    network: network.clone(),
                    address,
                    by: of(other),
                }),
            }
        };
        let none = |version, address| {
            Err(NetworkError::NoVersion {
                network: network.clone(),
                version,
                address,
            })
        };
        let old4 = old.as_ref().and_then(|old| old.ipv4);
        let ipv4 = match (config.ipv4, wanted.ipv4) {
            (None, None) => None,
            (None, Some(address)) => return none(4, address.into()),
            (Some(net), Some(address)) => {
                asked(address.into(), address::fits4(net, address))?;
                Some(address)
            }
            (Some(net), None) => {
                let free = |address: &Ipv4Addr| {
                    address::fits4(net, *address).is_ok() && taken((*address).into()).is_none()
                };
                Some(match old4.filter(free) {
                    Some(address) => address,
                    None => address::free4(net, |address| taken(address.into()).is_some())?,
                })
            }
        };
        let old6 = old.as_ref().and_then(|old| old.ipv6);
        let ipv6 = match (config.ipv6, wanted.ipv6) {
            (None, None) => None,
            (None, Some(address)) => return none(6, address.into()),
            (Some(net), Some(address)) => {
                asked(address.into(), address::fits6(net, address))?;
                Some(address)
            }
            (Some(net), None) => {
                let free = |address: &Ipv6Addr| {
                    address::fits6(net, *address).is_ok() && taken((*address).into()).is_none()
                };
                let like = config.ipv4.zip(ipv4);
                Some(match old6.filter(free) {
                    Some(address) => address,
                    None => address::free6(net, like, |address| taken(address.into()).is_some())?,
                })
            }
        };
        let lease = Lease {
            instance: instance.to_string(),
            nic: nic.name.clone(),
            mac: nic.mac,
            ipv4,
            ipv6,
        };
        leases.push(lease.clone());
        leases.sort_by(|a, b| (&a.instance, &a.nic).cmp(&(&b.instance, &b.nic)));
        if leases != before {
            self.store.set_leases(network, &leases)?;
        }
        Ok(lease)
    }
}

/// Where a NIC is going to be.
pub(super) struct Seat {
    /// As it is remembered.
    pub place: Place,
    /// What the guest is told as MTU.
    pub mtu: u16,
    /// Its address in its subnet.
    pub ipv4: Option<Ipv4Net>,
    /// The same.
    pub ipv6: Option<Ipv6Net>,
    /// What its network is, on a managed one.
    pub network: Option<NetworkConfig>,
}

fn seat_on_bridge(
    netlink: &mut Netlink,
    nic: &NicSpec,
    wanted: &BridgeNic,
) -> Result<Seat, NetworkError> {
    check_interface(&wanted.bridge)?;
    if let Some(vlan) = wanted.vlan {
        check_vlan(vlan)?;
    }
    let bridge = find_bridge(netlink, &wanted.bridge)?;
    if wanted.vlan.is_some() && bridge.filters == Some(false) {
        return Err(NetworkError::NoFiltering(wanted.bridge.clone()));
    }
    let mtu = u16::try_from(bridge.mtu).unwrap_or(croft_api::net::MTU_MAX);
    Ok(Seat {
        place: Place::Bridge {
            bridge: wanted.bridge.clone(),
            vlan: wanted.vlan,
            spoofing: wanted.spoofing,
        },
        mtu: nic.mtu.unwrap_or(mtu).min(mtu),
        ipv4: None,
        ipv6: None,
        network: None,
    })
}

/// Deletes an interface, if it is there.
pub(crate) fn delete(netlink: &mut Netlink, interface: &str) -> Result<(), NetworkError> {
    let Some(link) = netlink.link(interface).map_err(NetworkError::Interfaces)? else {
        return Ok(());
    };
    match netlink.delete(link.index) {
        // It was about to be gone.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(()),
        deleted => deleted.map_err(failed("cannot delete", interface)),
    }
}

/// Whether a port can be published.
fn check_publish(
    network: &NetworkName,
    config: &NetworkConfig,
    publish: &Publish,
    live: &[Attachment],
) -> Result<(), NetworkError> {
    let cannot = |why| {
        Err(NetworkError::CannotPublish {
            publish: *publish,
            network: network.clone(),
            why,
        })
    };
    if config.mode == Mode::Uplink {
        return cannot("is its uplink's; instances are reached at their own addresses");
    }
    if config.mode == Mode::Closed {
        return cannot("is closed");
    }
    match publish.address {
        Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) => {
            return cannot("cannot be reached from ::1; take 127.0.0.1");
        }
        Some(IpAddr::V4(_)) if config.ipv4.is_none() => return cannot("has no IPv4"),
        Some(IpAddr::V6(_)) if config.ipv6.is_none() => return cannot("has no IPv6"),
        _ => {}
    }
    for other in live {
        let Place::Network { publish: ports, .. } = &other.place else {
            continue;
        };
        if ports.iter().any(|port| port.collides(publish)) {
            return Err(NetworkError::Published {
                publish: *publish,
                by: other.title(),
            });
        }
    }
    can_bind(publish).map_err(|source| NetworkError::PortInUse {
        publish: *publish,
        source,
    })
}

/// Whether nobody on this host listens there: that would be cut off.
fn can_bind(publish: &Publish) -> io::Result<()> {
    let places: &[IpAddr] = match publish.address {
        Some(address) => &[address],
        None => &[
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ],
    };
    for address in places {
        let at = SocketAddr::new(*address, publish.host.get());
        let bound = match publish.protocol {
            Protocol::Tcp => TcpListener::bind(at).map(drop),
            Protocol::Udp => UdpSocket::bind(at).map(drop),
        };
        match bound {
            // A host without IPv6 has nobody who listens there.
            Err(error) if publish.address.is_none() && error.kind() != io::ErrorKind::AddrInUse => {
            }
            bound => bound?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(text: &str) -> Publish {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_in_use_is_not_taken_from_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let is = |text: String| can_bind(&publish(&text));
        let taken = is(format!("127.0.0.1:{port}:80")).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(is(format!("{port}:80")).is_err());
        is(format!("127.0.0.1:{port}:80/udp")).unwrap();
        let elsewhere = is(format!("192.0.2.1:{port}:80")).unwrap_err();
        assert_eq!(elsewhere.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
