//! The kernel's interfaces, addresses and routes, over rtnetlink (rtnetlink(7)).
//!
//! Requests are answered at once by the kernel, so nothing here waits.

use std::cmp::Ordering;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecBridge, BridgeStpState, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort,
    InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Longest name of an interface in bytes: IFNAMSIZ (if.h) without the zero at
/// its end.
pub const NAME_MAX: usize = 15;
/// The highest VLAN (IEEE 802.1Q, 9.6).
const VLAN_MAX: u16 = 4094;
/// How far a length in a message is rounded up (NLMSG_ALIGNTO, netlink.h).
const ALIGN: usize = 4;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is: `bridge`, `vlan`, `tun`, `veth`; nothing for a real one.
    pub kind: Option<String>,
    /// The number of the bridge whose port it is.
    pub master: Option<u32>,
    /// The number of the interface that it is on, and its VLAN, of a VLAN
    /// device.
    pub vlan: Option<(u32, u16)>,
    /// Whether it filters VLANs, of a bridge; nothing where the kernel has no
    /// bridges that do.
    pub filters: Option<bool>,
    /// Its hardware address.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether there is somebody at the other end.
    pub carrier: bool,
}

/// The far end of a pair of interfaces.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// The network namespace that it is in.
    pub namespace: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// A connection to the kernel.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one, for the network namespace that this thread is in.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// All interfaces.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.request(request, NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(link(message)),
                _ => None,
            })
            .collect())
    }

    /// The interface of this name.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// Makes a bridge, without spanning tree and without guesses about who
    /// wants which multicast: with no router that asks, they are wrong.
    pub fn add_bridge(&mut self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        self.add(
            name,
            mac,
            InfoKind::Bridge,
            InfoData::Bridge(vec![
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::MulticastSnooping(false),
            ]),
            None,
        )
    }

    /// Makes the interface of a VLAN on the one with number `lower`.
    pub fn add_vlan(&mut self, name: &str, mac: [u8; 6], lower: u32, id: u16) -> io::Result<()> {
        let data = InfoData::Vlan(vec![InfoVlan::Id(id)]);
        self.add(name, mac, InfoKind::Vlan, data, Some(lower))
    }

    /// Makes two interfaces that are one cable, the far end of which is in
    /// another namespace from its first moment. They end together, with that
    /// namespace at the latest.
    pub fn add_veth(&mut self, name: &str, mac: [u8; 6], peer: &Peer<'_>) -> io::Result<()> {
        let mut far = LinkMessage::default();
        far.attributes = vec![
            LinkAttribute::IfName(peer.name.to_owned()),
            LinkAttribute::Address(peer.mac.to_vec()),
            LinkAttribute::Mtu(peer.mtu),
            LinkAttribute::NetNsFd(peer.namespace.as_raw_fd()),
        ];
        let data = InfoData::Veth(InfoVeth::Peer(far));
        self.add(name, mac, InfoKind::Veth, data, None)
    }

    fn add(
        &mut self,
        name: &str,
        mac: [u8; 6],
        kind: InfoKind,
        data: InfoData,
        lower: Option<u32>,
    ) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
        ];
        message.attributes.extend(lower.map(LinkAttribute::Link));
        let request = RouteNetlinkMessage::NewLink(message);
        self.order(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Lets frames that a bridge forwards pass the host's IP rules, or not.
    pub fn filter_bridged(&mut self, index: u32, on: bool) -> io::Result<()> {
        let data = InfoData::Bridge(vec![
            InfoBridge::NfCallIpTables(on),
            InfoBridge::NfCallIp6Tables(on),
        ]);
        let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)];
        self.change(index, LinkAttribute::LinkInfo(info))
    }

    /// Deletes an interface.
    pub fn delete(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.order(RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Brings an interface up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        if up {
            message.header.flags = LinkFlags::Up;
        }
        self.order(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets an interface's MTU.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.change(index, LinkAttribute::Mtu(mtu))
    }

    /// Gives an interface another hardware address.
    pub fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.change(index, LinkAttribute::Address(mac.to_vec()))
    }

    /// Makes an interface a port of a bridge, or of none with 0.
    pub fn join(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        self.change(index, LinkAttribute::Controller(bridge))
    }

    /// Says whether a port of a bridge reaches other isolated ports.
    pub fn isolate(&mut self, index: u32, isolated: bool) -> io::Result<()> {
        let port = InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(isolated)]);
        let info = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(port),
        ];
        self.change(index, LinkAttribute::LinkInfo(info))
    }

    /// Puts a port of a bridge into a VLAN of the bridge's, whose tag its
    /// frames have on other ports alone, and takes it out of all others: a
    /// bridge puts each new port into one of its own choice.
    pub fn port_vlan(&mut self, index: u32, vlan: u16) -> io::Result<()> {
        let message = |vlans: &[(BridgeVlanInfoFlags, u16)]| {
            let mut message = LinkMessage::default();
            message.header.interface_family = AddressFamily::Bridge;
            message.header.index = index;
            let vlans = vlans.iter().map(|(flags, vid)| {
                AfSpecBridge::VlanInfo(BridgeVlanInfo {
                    flags: *flags,
                    vid: *vid,
                })
            });
            message.attributes = vec![LinkAttribute::AfSpecBridge(vlans.collect())];
            message
        };
        let own = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        self.order(RouteNetlinkMessage::SetLink(message(&[(own, vlan)])), 0)?;
        for (first, last) in [(1, vlan.saturating_sub(1)), (vlan + 1, VLAN_MAX)] {
            let others = match first.cmp(&last) {
                Ordering::Less => message(&[
                    (BridgeVlanInfoFlags::RangeBegin, first),
                    (BridgeVlanInfoFlags::RangeEnd, last),
                ]),
                // The kernel takes no range of one.
                Ordering::Equal => message(&[(BridgeVlanInfoFlags::empty(), first)]),
                Ordering::Greater => continue,
            };
            self.order(RouteNetlinkMessage::DelLink(others), 0)?;
        }
        Ok(())
    }

    fn change(&mut self, index: u32, attribute: LinkAttribute) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![attribute];
        // Unlike RTM_SETLINK this one knows IFLA_LINKINFO everywhere.
        self.order(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// All addresses, with the numbers of their interfaces.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.request(request, NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => address(&message),
                _ => None,
            })
            .collect())
    }

    /// Gives an interface an address, which nobody else is asked for first.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let mut message = address_message(index, address);
        let flags = AddressFlags::Nodad | AddressFlags::Permanent;
        message.attributes.push(AddressAttribute::Flags(flags));
        let request = RouteNetlinkMessage::NewAddress(message);
        self.order(request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address away.
    pub fn delete_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let request = RouteNetlinkMessage::DelAddress(address_message(index, address));
        self.order(request, 0)
    }

    /// Has an interface lead to everywhere, by a gateway on its link. Of
    /// several ways the one with the least metric is taken.
    pub fn add_default_route(
        &mut self,
        index: u32,
        gateway: IpAddr,
        metric: u32,
    ) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        let (family, gateway) = match gateway {
            IpAddr::V4(address) => (AddressFamily::Inet, RouteAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, RouteAddress::Inet6(address)),
        };
        message.header.address_family = family;
        message.attributes = vec![
            RouteAttribute::Gateway(gateway),
            RouteAttribute::Oif(index),
            RouteAttribute::Priority(metric),
        ];
        let request = RouteNetlinkMessage::NewRoute(message);
        self.order(request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Where this host's routes lead to, the default routes aside, with the
    /// number of the interface if there is one.
    pub fn routes(&mut self) -> io::Result<Vec<(Option<u32>, IpNet)>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
            routes.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => route(&message),
                _ => None,
            }));
        }
        Ok(routes)
    }

    pub(crate) fn order(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(request, NLM_F_ACK | flags).map(drop)
    }

    /// Sends a request and takes all that is answered.
    fn request(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if self.take(&datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Takes the messages of a datagram; whether the last one was among them.
    fn take(&self, datagram: &[u8], answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
        let mut rest = datagram;
        while let Some(length) = message_length(rest) {
            let (bytes, behind) = rest.split_at(length);
            rest = behind.get(padding(length)..).unwrap_or_default();
            // What cannot be understood, such as an attribute of a later
            // kernel's, is not what was asked for.
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
                continue;
            };
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// The length of the message that `bytes` begin with, if all of it is there.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let field: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    let length = usize::try_from(u32::from_ne_bytes(field)).ok()?;
    // The header's own length (struct nlmsghdr).
    (length >= 16 && length <= bytes.len()).then_some(length)
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(ALIGN).saturating_sub(length)
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        master: None,
        vlan: None,
        filters: None,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
    };
    let mut lower = None;
    let mut id = None;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::Link(index) => lower = Some(index),
            LinkAttribute::LinkInfo(info) => {
                for info in info {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Bridge(data)) => link.filters = filters(&data),
                        LinkInfo::Data(InfoData::Vlan(data)) => {
                            id = data.into_iter().find_map(|data| match data {
                                InfoVlan::Id(id) => Some(id),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.vlan = lower.zip(id);
    link
}

/// Without VLANs the kernel says that it filters none, and nothing of that
/// which ports are in at first.
fn filters(bridge: &[InfoBridge]) -> Option<bool> {
    let has = |data: &InfoBridge| matches!(data, InfoBridge::VlanDefaultPvid(_));
    let filtering = |data: &InfoBridge| match data {
        InfoBridge::VlanFiltering(filtering) => Some(*filtering),
        _ => None,
    };
    let found = bridge.iter().find_map(filtering);
    found.filter(|_| bridge.iter().any(has))
}

fn address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On a link between two ends the other one is the host's own.
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => {
                found.get_or_insert(*address);
            }
            _ => {}
        }
    }
    let net = IpNet::new(found?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    let host = address.addr();
    match address {
        IpNet::V4(net) => {
            message.header.family = AddressFamily::Inet;
            message
                .attributes
                .push(AddressAttribute::Broadcast(net.broadcast()));
            message.attributes.push(AddressAttribute::Local(host));
        }
        IpNet::V6(_) => message.header.family = AddressFamily::Inet6,
    }
    message.attributes.push(AddressAttribute::Address(host));
    message
}

fn route(message: &RouteMessage) -> Option<(Option<u32>, IpNet)> {
    let RouteHeader {
        destination_prefix_length: prefix,
        kind,
        ..
    } = message.header;
    let leads = matches!(
        kind,
        RouteType::Unicast | RouteType::Local | RouteType::BlackHole | RouteType::Unreachable
    );
    if prefix == 0 || !leads {
        return None;
    }
    let mut interface = None;
    let mut destination = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(IpAddr::V4(*address));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some(IpAddr::V6(*address));
            }
            _ => {}
        }
    }
    let destination = destination?;
    let counts = match destination {
        IpAddr::V4(address) => address != Ipv4Addr::UNSPECIFIED && !address.is_multicast(),
        // Every interface has the same link-local network.
        IpAddr::V6(address) => {
            address != Ipv6Addr::UNSPECIFIED
                && !address.is_unicast_link_local()
                && !address.is_multicast()
        }
    };
    let net = IpNet::new(destination, prefix).ok()?;
    counts.then_some((interface, net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_messages() {
        let mut bytes = vec![0; 32];
        bytes[..4].copy_from_slice(&18u32.to_ne_bytes());
        assert_eq!(message_length(&bytes), Some(18));
        assert_eq!(padding(18), 2);
        for bad in [0u32, 15, 33, u32::MAX] {
            bytes[..4].copy_from_slice(&bad.to_ne_bytes());
            assert_eq!(message_length(&bytes), None);
        }
        assert_eq!(message_length(&[1, 2]), None);
    }

    #[test]
    fn this_host_has_a_loopback_interface() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.mac), (1, Some([0; 6])));
        assert!(netlink.link("no-such-thing").unwrap().is_none());
        netlink.addresses().unwrap();
        netlink.routes().unwrap();
        let error = netlink.delete(u32::MAX >> 1).unwrap_err();
        assert!(error.raw_os_error().is_some());
    }
}
