//! Makes what is there into what should be.
//!
//! In this order, so that no frame passes that should not: bridges and their
//! addresses; rules, those of new NICs among them; forwarding; NICs into their
//! bridges; dnsmasq; and last what nobody wants any more.

use std::io;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use rustix::io::Errno;

use super::address::{GATEWAY_LINK_LOCAL, gateway4, gateway6};
use super::config::{Mode, NetworkConfig};
use super::error::{NetworkError, link as failed};
use super::name::NetworkName;
use super::rules::Ruleset;
use super::store::{Attachment, Place};
use super::{Networks, dnsmasq, nft, program, sysctl};
use crate::link::{Link, Netlink};

/// What a fault is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A network.
    Network(NetworkName),
    /// A NIC, by its interface on this host.
    Port(String),
}

/// What could not be mended.
#[derive(Debug)]
pub struct Fault {
    /// What it is of.
    pub subject: Subject,
    /// Why.
    pub error: NetworkError,
}

/// A network that is there.
struct Up {
    /// Its bridge was made just now.
    fresh: bool,
}

impl Networks {
    /// The NICs whose interfaces are there.
    pub(super) fn live_attachments(&self) -> Result<Vec<Attachment>, NetworkError> {
        let links = Netlink::open()
            .and_then(|mut netlink| netlink.links())
            .map_err(NetworkError::Interfaces)?;
        let mut attachments = self.store.attachments()?;
        attachments.retain(|attachment| is_there(attachment, &links));
        Ok(attachments)
    }

    /// Reconciles everything. An error is one of all networks, or the first
    /// one of those `wanted`; the other faults are what is returned.
    pub(super) fn reconcile_locked(&self, wanted: &[Subject]) -> Result<Vec<Fault>, NetworkError> {
        let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
        let mut faults = Vec::new();
        let attachments = self.prune(&mut netlink)?;
        let (networks, up) = self.bridges(&mut netlink, &attachments, &mut faults)?;
        self.rules(&networks, &attachments)?;
        for attachment in &attachments {
            if let Err(error) = port(&mut netlink, attachment, &networks) {
                let subject = Subject::Port(attachment.interface.clone());
                faults.push(Fault { subject, error });
            }
        }
        for ((name, config), up) in networks.iter().zip(up) {
            if config.mode == Mode::Uplink {
                continue;
            }
            let served = self
                .store
                .leases(name)
                .and_then(|leases| dnsmasq::ensure(&self.store, name, config, &leases, up.fresh));
            if let Err(error) = served {
                let subject = Subject::Network(name.clone());
                faults.push(Fault { subject, error });
            }
        }
        let served = |name: &NetworkName| {
            networks
                .iter()
                .any(|(up, config)| up == name && config.mode != Mode::Uplink)
        };
        dnsmasq::stop_others(&self.store, served);
        self.sweep(&mut netlink)?;
        match faults
            .iter()
            .position(|fault| wanted.contains(&fault.subject))
        {
            Some(first) => Err(faults.swap_remove(first).error),
            None => Ok(faults),
        }
    }

    /// Forgets the NICs whose interfaces are gone, and the addresses of instances
    /// that are.
    fn prune(&self, netlink: &mut Netlink) -> Result<Vec<Attachment>, NetworkError> {
        let links = netlink.links().map_err(NetworkError::Interfaces)?;
        let (live, gone): (Vec<_>, Vec<_>) = self
            .store
            .attachments()?
            .into_iter()
            .partition(|attachment| is_there(attachment, &links));
        for attachment in gone {
            self.store
                .remove_attachment(&attachment.instance, &attachment.nic)?;
        }
        for name in self.store.names()? {
            let Ok(mut leases) = self.store.leases(&name) else {
                continue;
            };
            let before = leases.len();
            leases.retain(|lease| {
                self.store.has_instance(&lease.instance)
                    || live.iter().any(|attachment| {
                        (&attachment.instance, &attachment.nic) == (&lease.instance, &lease.nic)
                    })
            });
            if leases.len() != before {
                self.store.set_leases(&name, &leases)?;
            }
        }
        Ok(live)
    }

    /// Sees to the bridges of the networks that are started; those that are
    /// there now.
    #[expect(clippy::type_complexity, reason = "two lists side by side")]
    fn bridges(
        &self,
        netlink: &mut Netlink,
        attachments: &[Attachment],
        faults: &mut Vec<Fault>,
    ) -> Result<(Vec<(NetworkName, NetworkConfig)>, Vec<Up>), NetworkError> {
        let mut networks = Vec::new();
        let mut up = Vec::new();
        for name in self.store.names()? {
            let made = self.store.config(&name).and_then(|config| {
                if !config.started {
                    return Ok(None);
                }
                let published = attachments.iter().any(|attachment| {
                    matches!(&attachment.place, Place::Network { network, publish, .. }
                        if *network == name && !publish.is_empty())
                });
                let fresh = self.bridge(netlink, &name, &config, published)?;
                Ok(Some((config, Up { fresh })))
            });
            match made {
                Ok(Some((config, there))) => {
                    networks.push((name, config));
                    up.push(there);
                }
                Ok(None) => {}
                Err(error) => faults.push(Fault {
                    subject: Subject::Network(name),
                    error,
                }),
            }
        }
        Ok((networks, up))
    }

    /// Sees to a network's bridge; whether it had to be made.
    fn bridge(
        &self,
        netlink: &mut Netlink,
        name: &NetworkName,
        config: &NetworkConfig,
        published: bool,
    ) -> Result<bool, NetworkError> {
        let bridge = name.bridge();
        let mac = self.mac(name);
        let found = netlink.link(&bridge).map_err(NetworkError::Interfaces)?;
        let (link, fresh) = match found {
            Some(link) if link.kind.as_deref() == Some("bridge") && link.mac == Some(mac) => {
                (link, false)
            }
            Some(_) => {
                return Err(NetworkError::NameTaken {
                    interface: bridge,
                    network: name.clone(),
                });
            }
            None => {
                netlink.add_bridge(&bridge, mac).map_err(unsupported(
                    "bridges",
                    "bridge",
                    "cannot make bridge",
                    &bridge,
                ))?;
                (find(netlink, &bridge)?, true)
            }
        };
        let index = link.index;
        if link.mtu != u32::from(config.mtu) {
            netlink
                .set_mtu(index, config.mtu.into())
                .map_err(failed("cannot set the MTU of", &bridge))?;
        }
        filter_bridged(netlink, index, &bridge, config.filters_bridged())?;
        sysctl::bridge(&bridge, published, config.ipv6.is_some())?;
        addresses(netlink, index, &bridge, config)?;
        if let Some(uplink) = &config.uplink {
            self.uplink(netlink, name, index, uplink, config.vlan)?;
        }
        netlink
            .set_up(index, true)
            .map_err(failed("cannot bring up", &bridge))?;
        Ok(fresh)
    }

    /// Joins a network's bridge to an interface of the host's, or to a VLAN
    /// of its.
    fn uplink(
        &self,
        netlink: &mut Netlink,
        name: &NetworkName,
        bridge: u32,
        uplink: &str,
        vlan: Option<u16>,
    ) -> Result<(), NetworkError> {
        let lower = netlink
            .link(uplink)
            .map_err(NetworkError::Interfaces)?
            .ok_or_else(|| NetworkError::NoInterface(uplink.to_owned()))?;
        let port = match vlan {
            Some(vlan) => self.vlan(netlink, name, &lower, vlan)?,
            None => {
                let addresses = netlink.addresses().map_err(NetworkError::Interfaces)?;
                let used = addresses.iter().any(|(index, net)| {
                    let local = matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
                    *index == lower.index && !local
                });
                if used {
                    return Err(NetworkError::UplinkInUse(uplink.to_owned()));
                }
                lower.clone()
            }
        };
        match port.master {
            Some(master) if master == bridge => {}
            Some(_) => return Err(NetworkError::UplinkJoined(uplink.to_owned())),
            None => netlink
                .join(port.index, bridge)
                .map_err(failed("cannot join to the bridge", &port.name))?,
        }
        for link in [&lower, &port] {
            netlink
                .set_up(link.index, true)
                .map_err(failed("cannot bring up", &link.name))?;
        }
        Ok(())
    }

    fn vlan(
        &self,
        netlink: &mut Netlink,
        name: &NetworkName,
        lower: &Link,
        vlan: u16,
    ) -> Result<Link, NetworkError> {
        let interface = name.vlan();
        let mac = self.mac(name);
        match netlink.link(&interface).map_err(NetworkError::Interfaces)? {
            Some(link) if link.vlan == Some((lower.index, vlan)) && link.mac == Some(mac) => {
                return Ok(link);
            }
            Some(_) => {
                return Err(NetworkError::NameTaken {
                    interface,
                    network: name.clone(),
                });
            }
            None => {}
        }
        netlink
            .add_vlan(&interface, mac, lower.index, vlan)
            .map_err(unsupported(
                "VLAN interfaces",
                "8021q",
                "cannot make VLAN interface",
                &interface,
            ))?;
        sysctl::port(&interface)?;
        find(netlink, &interface)
    }

    /// Gives the kernel the rules, and lets it forward if that is wanted.
    fn rules(
        &self,
        networks: &[(NetworkName, NetworkConfig)],
        attachments: &[Attachment],
    ) -> Result<(), NetworkError> {
        let leads = |config: &NetworkConfig| matches!(config.mode, Mode::Nat | Mode::Routed);
        let any = |has: fn(&NetworkConfig) -> bool| {
            networks
                .iter()
                .any(|(_, config)| leads(config) && has(config))
        };
        let ipv4 = any(|config| config.ipv4.is_some());
        let ipv6 = any(|config| config.ipv6.is_some());
        let runtime = self.store.runtime();
        if !ipv4 && !ipv6 {
            sysctl::stop_forwarding(&runtime)?;
        }
        let changed = sysctl::prepare(&runtime, ipv4, ipv6)?;
        let table = self.table();
        let ruleset = Ruleset {
            table: &table,
            networks,
            attachments,
            guard4: changed.ipv4,
            guard6: changed.ipv6,
        };
        match nft::apply(&ruleset.text()) {
            // Without nft there are no rules to be removed either.
            Err(NetworkError::Missing { .. }) if !ruleset.is_needed() => {}
            applied => applied?,
        }
        sysctl::forward(&changed, ipv4, ipv6)
    }

    /// Removes interfaces of ours that belong to no network that is started.
    fn sweep(&self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        let links = netlink.links().map_err(NetworkError::Interfaces)?;
        for (kind, prefix) in [("vlan", "cv-"), ("bridge", "cr-")] {
            for link in &links {
                let name = link.name.strip_prefix(prefix).map(str::parse);
                let Some(Ok(name)) = name else { continue };
                let ours = link.kind.as_deref() == Some(kind) && link.mac == Some(self.mac(&name));
                let wanted = match self.store.config(&name) {
                    Ok(config) => config.started,
                    Err(NetworkError::None(_)) => false,
                    // It cannot be read: it may well be wanted.
                    Err(_) => true,
                };
                if ours && !wanted {
                    netlink
                        .delete(link.index)
                        .map_err(failed("cannot delete", &link.name))?;
                }
            }
        }
        Ok(())
    }
}

fn is_there(attachment: &Attachment, links: &[Link]) -> bool {
    links.iter().any(|link| {
        let kind = link.kind.as_deref();
        link.name == attachment.interface && matches!(kind, Some("tun" | "veth"))
    })
}

fn find(netlink: &mut Netlink, name: &str) -> Result<Link, NetworkError> {
    netlink
        .link(name)
        .map_err(NetworkError::Interfaces)?
        .ok_or_else(|| NetworkError::NoInterface(name.to_owned()))
}

/// For what a kernel can be without.
fn unsupported(
    thing: &'static str,
    module: &'static str,
    what: &'static str,
    interface: &str,
) -> impl FnOnce(io::Error) -> NetworkError {
    let failed = failed(what, interface);
    move |error| match Errno::from_io_error(&error) {
        Some(Errno::OPNOTSUPP) => NetworkError::Kernel {
            what: thing,
            module,
        },
        _ => failed(error),
    }
}

/// Has frames between a bridge's ports pass the rules for IP, or not.
fn filter_bridged(
    netlink: &mut Netlink,
    index: u32,
    bridge: &str,
    on: bool,
) -> Result<(), NetworkError> {
    const MODULE: &str = "br_netfilter";
    if !sysctl::can_filter_bridged() {
        if !on {
            return Ok(());
        }
        // Whether it could be loaded is seen right after.
        let _ = Command::new(program::path("modprobe"))
            .arg(MODULE)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !sysctl::can_filter_bridged() {
            return Err(NetworkError::Kernel {
                what: "rules for frames on bridges, which firewall rules need",
                module: MODULE,
            });
        }
        sysctl::filter_no_other_bridges()?;
    }
    netlink
        .filter_bridged(index, on)
        .map_err(failed("cannot set the filter of", bridge))
}

/// Gives the bridge its addresses, and takes others away.
fn addresses(
    netlink: &mut Netlink,
    index: u32,
    bridge: &str,
    config: &NetworkConfig,
) -> Result<(), NetworkError> {
    let mut wanted = Vec::new();
    let with = |address: IpAddr, prefix: u8| IpNet::new_assert(address, prefix);
    if let Some(net) = config.ipv4 {
        wanted.push(with(gateway4(net).into(), net.prefix_len()));
    }
    if let Some(net) = config.ipv6 {
        wanted.push(with(gateway6(net).into(), net.prefix_len()));
        wanted.push(with(GATEWAY_LINK_LOCAL.into(), 64));
    }
    let there: Vec<IpNet> = netlink
        .addresses()
        .map_err(NetworkError::Interfaces)?
        .into_iter()
        .filter(|(of, _)| *of == index)
        .map(|(_, net)| net)
        .collect();
    for address in &there {
        if !wanted.contains(address) {
            netlink
                .delete_address(index, *address)
                .map_err(failed("cannot take an address from", bridge))?;
        }
    }
    for address in wanted {
        if !there.contains(&address) {
            netlink
                .add_address(index, address)
                .map_err(failed("cannot give an address to", bridge))?;
        }
    }
    Ok(())
}

/// Sees to it that a NIC is a port of its bridge.
fn port(
    netlink: &mut Netlink,
    attachment: &Attachment,
    networks: &[(NetworkName, NetworkConfig)],
) -> Result<(), NetworkError> {
    let port = &attachment.interface;
    let link = find(netlink, port)?;
    let (bridge, isolated, vlan) = match &attachment.place {
        Place::Network {
            network, isolated, ..
        } => {
            let Some((_, config)) = networks.iter().find(|(name, _)| name == network) else {
                // The network's own fault says why.
                return Ok(());
            };
            (network.bridge(), config.isolated || *isolated, None)
        }
        Place::Bridge { bridge, vlan, .. } => (bridge.clone(), false, *vlan),
    };
    let bridge = find_bridge(netlink, &bridge)?;
    if link.mtu != bridge.mtu {
        netlink
            .set_mtu(link.index, bridge.mtu)
            .map_err(failed("cannot set the MTU of", port))?;
    }
    sysctl::port(port)?;
    if link.master != Some(bridge.index) {
        netlink
            .join(link.index, bridge.index)
            .map_err(failed("cannot join to its bridge", port))?;
    }
    if attachment.network().is_some() {
        netlink
            .isolate(link.index, isolated)
            .map_err(failed("cannot set the isolation of", port))?;
    }
    if let Some(vlan) = vlan {
        netlink.port_vlan(link.index, vlan).map_err(unsupported(
            "VLANs of bridges",
            "CONFIG_BRIDGE_VLAN_FILTERING",
            "cannot put into its VLAN",
            port,
        ))?;
    }
    if link.kind.as_deref() == Some("veth") {
        // What it sends is what the container gets.
        shape(netlink, &link, attachment.limits.inbound.bytes_per_second)?;
    }
    if link.up != attachment.link {
        let what = if attachment.link {
            "cannot bring up"
        } else {
            "cannot bring down"
        };
        netlink
            .set_up(link.index, attachment.link)
            .map_err(failed(what, port))?;
    }
    Ok(())
}

/// Has an interface send no more than so many bytes in a second, if any.
pub fn shape(netlink: &mut Netlink, link: &Link, bytes: Option<u64>) -> Result<(), NetworkError> {
    let rate = bytes.map(|bytes| bytes.max(1));
    match netlink.shape(link.index, rate) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
            Err(NetworkError::Kernel {
                what: "limits of containers' NICs",
                module: "sch_tbf",
            })
        }
        done => done.map_err(failed("cannot limit", &link.name)),
    }
}

/// The bridge of this name.
pub fn find_bridge(netlink: &mut Netlink, name: &str) -> Result<Link, NetworkError> {
    let link = find(netlink, name)?;
    if link.kind.as_deref() == Some("bridge") {
        Ok(link)
    } else {
        Err(NetworkError::NoBridge(name.to_owned()))
    }
}
