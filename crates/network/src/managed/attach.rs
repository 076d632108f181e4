//! NICs of instances on networks and bridges.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use croft_api::net::{BridgeNic, NetworkNic, NicKind, NicSpec, Protocol, Publish};
use croft_host::InstanceName;
use croft_net::open_tap;

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
        self.may()?;
        if !is_nic(&nic.name) {
            return Err(NetworkError::Nic(nic.name.clone()));
        }
        let _lock = self.store.lock()?;
        self.store.clean();
        let live = self.live_attachments()?;
        let same =
            |other: &Attachment| other.instance == instance.as_str() && other.nic == nic.name;
        if live.iter().any(same) {
            return Err(NetworkError::Attached {
                instance: instance.to_string(),
                nic: nic.name.clone(),
            });
        }
        match &nic.kind {
            NicKind::User(_) => Err(NetworkError::Nic(nic.name.clone())),
            NicKind::Network(wanted) => {
                self.attach_to_network(instance, nic, wanted, queues, &live)
            }
            NicKind::Bridge(wanted) => self.attach_to_bridge(instance, nic, wanted, queues),
        }
    }

    /// Detaches a NIC, or all of an instance's: their taps are deleted, if
    /// they are still there, and their rules go.
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
            let tap = &attachment.interface;
            if let Some(link) = netlink.link(tap).map_err(NetworkError::Interfaces)? {
                netlink
                    .delete(link.index)
                    .map_err(failed("cannot delete", tap))?;
            }
            self.store
                .remove_attachment(&attachment.instance, &attachment.nic)?;
        }
        self.reconcile_locked(&[]).map(drop)
    }

    fn attach_to_network(
        &self,
        instance: &InstanceName,
        nic: &NicSpec,
        wanted: &NetworkNic,
        queues: u16,
        live: &[Attachment],
    ) -> Result<Attached, NetworkError> {
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
        let place = Place::Network {
            network: name.clone(),
            ipv4: lease.ipv4,
            ipv6: lease.ipv6,
            isolated: wanted.isolated,
            publish: wanted.publish.clone(),
        };
        let (interface, queues) =
            self.join(instance, nic, place, queues, Some(Subject::Network(name)))?;
        Ok(Attached {
            interface,
            queues,
            mtu: nic.mtu.unwrap_or(config.mtu).min(config.mtu),
            ipv4: lease.ipv4,
            ipv6: lease.ipv6,
        })
    }

    fn attach_to_bridge(
        &self,
        instance: &InstanceName,
        nic: &NicSpec,
        wanted: &BridgeNic,
        queues: u16,
    ) -> Result<Attached, NetworkError> {
        check_interface(&wanted.bridge)?;
        if let Some(vlan) = wanted.vlan {
            check_vlan(vlan)?;
        }
        let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
        let bridge = find_bridge(&mut netlink, &wanted.bridge)?;
        let place = Place::Bridge {
            bridge: wanted.bridge.clone(),
            vlan: wanted.vlan,
            spoofing: wanted.spoofing,
        };
        let (interface, queues) = self.join(instance, nic, place, queues, None)?;
        let mtu = u16::try_from(bridge.mtu).unwrap_or(croft_api::net::MTU_MAX);
        Ok(Attached {
            interface,
            queues,
            mtu: nic.mtu.unwrap_or(mtu).min(mtu),
            ipv4: None,
            ipv6: None,
        })
    }

    /// Opens the tap and makes it part of what should be.
    fn join(
        &self,
        instance: &InstanceName,
        nic: &NicSpec,
        place: Place,
        queues: u16,
        network: Option<Subject>,
    ) -> Result<(String, Vec<OwnedFd>), NetworkError> {
        let tap = self.tap(instance.as_str(), &nic.name);
        let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
        if let Some(link) = netlink.link(&tap).map_err(NetworkError::Interfaces)? {
            // Somebody has made a tap of this name that stays, or the
            // machine's process is about to be gone.
            return Err(failed("there is already an interface", &link.name)(
                io::ErrorKind::AlreadyExists.into(),
            ));
        }
        let (interface, queues) = open_tap(&tap, queues.into())?;
        self.store.add_attachment(&Attachment {
            instance: instance.to_string(),
            nic: nic.name.clone(),
            interface: interface.clone(),
            mac: nic.mac,
            place,
        })?;
        let mut wanted = vec![Subject::Tap(interface.clone())];
        wanted.extend(network);
        match self.reconcile_locked(&wanted) {
            Ok(_) => Ok((interface, queues)),
            Err(error) => {
                drop(queues);
                self.store.remove_attachment(instance.as_str(), &nic.name)?;
                // What failed is what is told.
                let _ = self.reconcile_locked(&[]);
                Err(error)
            }
        }
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
        if ports.iter().any(|port| collide(port, publish)) {
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

/// Whether two published ports would take the same packets.
fn collide(one: &Publish, other: &Publish) -> bool {
    let same_place = match (one.address, other.address) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    one.protocol == other.protocol && one.host == other.host && same_place
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
    fn ports_that_collide() {
        let collide = |one, other| collide(&publish(one), &publish(other));
        assert!(collide("80:80", "80:81"));
        assert!(collide("80:80", "127.0.0.1:80:80"));
        assert!(!collide("127.0.0.1:80:80", "127.0.0.2:80:80"));
        assert!(!collide("80:80", "81:80"));
        assert!(!collide("80:80", "80:80/udp"));
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
