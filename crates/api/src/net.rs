//! Network interfaces (NICs), in all protocols.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most NICs of a machine.
pub const NICS_MAX: usize = 7;
/// Most pairs of queues of a NIC: each has two threads, and a vCPU that it
/// could serve.
pub const QUEUES_MAX: u16 = 4;
/// Least MTU: what every IPv4 host must take (RFC 791, 3.1: 68 bytes).
pub const MTU_MIN: u16 = 68;
/// Largest MTU: with the Ethernet header a frame is then 65,534 bytes long,
/// which is the most that passt takes, and its own default.
pub const MTU_MAX: u16 = 65520;
/// Longest name of a NIC in bytes.
pub const NAME_MAX: usize = 32;

/// A NIC's address (MAC-48).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// How the addresses begin that Croft gives: locally administered (bit 1
    /// of the first byte), for one station (bit 0 is clear).
    pub const PREFIX: [u8; 3] = [0x02, 0xC7, 0x0F];

    /// The address of these bytes; not that of a group (bit 0 of the first
    /// byte), and not zero.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        if bytes[0] & 1 != 0 {
            return Err(MacError::Group(Mac(bytes)));
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        Ok(Mac(bytes))
    }

    /// One of 2^24 with [`Mac::PREFIX`], by chance.
    pub fn random() -> std::io::Result<Self> {
        let mut rest = [0u8; 3];
        let mut filled = 0;
        while filled < rest.len() {
            let space = rest.get_mut(filled..).unwrap_or_default();
            match rustix::rand::getrandom(space, rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let [a, b, c] = Mac::PREFIX;
        let [d, e, f] = rest;
        Ok(Mac([a, b, c, d, e, f]))
    }

    /// Its bytes in the order of transmission.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why something is no NIC's address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MacError {
    /// Not six bytes in hexadecimal.
    #[error("'{0}' is no MAC address; write six bytes, as in 02:c7:0f:00:00:01")]
    Form(String),
    /// A multicast or broadcast address.
    #[error("{0} is the address of a group; the first byte of a NIC's is even")]
    Group(Mac),
    /// All zeros.
    #[error("00:00:00:00:00:00 is nobody's address")]
    Zero,
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(form)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(form());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| form())?;
        }
        if parts.next().is_some() {
            return Err(form());
        }
        Mac::new(bytes)
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

/// How much may pass in one direction; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRate {
    /// Bytes per second, not 0.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// Frames per second, not 0.
    #[serde(default)]
    pub frames_per_second: Option<u64>,
}

/// How much a NIC may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicLimits {
    /// To the guest.
    #[serde(default)]
    pub inbound: NicRate,
    /// From the guest.
    #[serde(default)]
    pub outbound: NicRate,
}

/// A NIC as somebody wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Its name, for people and commands: `net0`. A machine's are all
    /// different.
    pub name: String,
    /// Its address.
    pub mac: Mac,
    /// Its MTU, [`MTU_MIN`] to [`MTU_MAX`]; that of its network when not
    /// given.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Pairs of queues, at most [`QUEUES_MAX`]; as many as there are vCPUs
    /// and its network can use when not given.
    #[serde(default)]
    pub queues: Option<u16>,
    /// How much it may do.
    #[serde(default)]
    pub limits: NicLimits,
    /// Its cable is plugged in.
    #[serde(default = "yes")]
    pub link: bool,
    /// Where the other end of the cable is.
    pub kind: NicKind,
}

impl NicSpec {
    /// Where it leads to, for people.
    pub fn describe(&self) -> String {
        let leads = match &self.kind {
            NicKind::User(_) => "user".to_owned(),
            NicKind::Network(net) => net.network.clone(),
            NicKind::Bridge(net) => format!("bridge {}", net.bridge),
        };
        let link = if self.link { "" } else { ", link down" };
        format!("{leads}, {}{link}", self.mac)
    }
}

/// What becomes of a NIC; the rest stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicChange {
    /// Its cable is plugged in, or pulled.
    #[serde(default)]
    pub link: Option<bool>,
    /// How many bytes per second may go to the guest; `Some(None)` is without
    /// limit.
    #[serde(default, with = "rate")]
    pub inbound: Option<Option<u64>>,
    /// The same from the guest.
    #[serde(default, with = "rate")]
    pub outbound: Option<Option<u64>>,
}

impl NicChange {
    /// Does it.
    pub fn apply(&self, nic: &mut NicSpec) {
        nic.link = self.link.unwrap_or(nic.link);
        let limits = &mut nic.limits;
        for (rate, change) in [
            (&mut limits.inbound, self.inbound),
            (&mut limits.outbound, self.outbound),
        ] {
            rate.bytes_per_second = change.unwrap_or(rate.bytes_per_second);
        }
    }
}

/// A rate that may be taken away: 0 stands for none, as no rate is 0.
mod rate {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(
        rate: &Option<Option<u64>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        rate.map(Option::unwrap_or_default).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<u64>>, D::Error> {
        let rate = Option::<u64>::deserialize(deserializer)?;
        Ok(rate.map(|rate| Some(rate).filter(|rate| *rate != 0)))
    }
}

fn yes() -> bool {
    true
}

/// Where a NIC leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicKind {
    /// To the world, by a process of the user's (passt), without any right.
    User(UserNet),
    /// To a network that Croft manages.
    Network(NetworkNic),
    /// To a bridge of the host's.
    Bridge(BridgeNic),
}

/// A user network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNet {
    /// Ports of the host that lead to the guest.
    #[serde(default)]
    pub publish: Vec<Publish>,
}

/// A NIC in a managed network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkNic {
    /// The network's name.
    pub network: String,
    /// The address that it always gets; any free one when not given.
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    /// The same.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// It reaches the network's host and the world, but no other instance
    /// that is isolated.
    #[serde(default)]
    pub isolated: bool,
    /// Ports of the host that lead to the guest.
    #[serde(default)]
    pub publish: Vec<Publish>,
}

/// A NIC on a bridge of the host's, which Croft does not manage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeNic {
    /// The bridge's name.
    pub bridge: String,
    /// The VLAN that it is in, 1 to 4094.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// It may send as whom it likes, as a router or a bridge in the guest
    /// must.
    #[serde(default)]
    pub spoofing: bool,
}

/// What is forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Streams.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the host that leads to one of the guest: `[ADDR:]HOST:GUEST[/udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Publish {
    /// What is forwarded.
    #[serde(default)]
    pub protocol: Protocol,
    /// The host's address; all of them when not given.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: NonZeroU16,
    /// The guest's port.
    pub guest: NonZeroU16,
}

/// Why something is no published port.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// Not as it is written.
    #[error(
        "'{0}' is no published port; write [ADDRESS:]HOST:GUEST[/udp], as in 8080:80, 127.0.0.1:2222:22, [::1]:5353:53/udp"
    )]
    Form(String),
    /// A part of it.
    #[error("'{0}' is no port; it is a number from 1 to 65535")]
    Port(String),
    /// A part of it.
    #[error("'{0}' is no IP address; one of version 6 stands in brackets")]
    Address(String),
    /// A part of it.
    #[error("'{0}' is not tcp or udp")]
    Protocol(String),
}

impl Publish {
    /// Whether both want the same port of the same address of the host's.
    pub fn collides(&self, other: &Publish) -> bool {
        let same = match (self.address, other.address) {
            (Some(one), Some(other)) => {
                let all = |one: IpAddr, other: IpAddr| {
                    one.is_unspecified() && (one.is_ipv6() || other.is_ipv4())
                };
                one == other || all(one, other) || all(other, one)
            }
            _ => true,
        };
        same && (self.protocol, self.host) == (other.protocol, other.host)
    }
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        let (places, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((places, "tcp")) => (places, Protocol::Tcp),
            Some((places, "udp")) => (places, Protocol::Udp),
            Some((_, other)) => return Err(PublishError::Protocol(other.to_owned())),
        };
        let form = || PublishError::Form(text.to_owned());
        let port = |text: &str| {
            // No sign or space.
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let port = text.parse().ok().filter(|_| digits);
            port.ok_or_else(|| PublishError::Port(text.to_owned()))
        };
        let (rest, guest) = places.rsplit_once(':').ok_or_else(form)?;
        let guest = port(guest)?;
        let bad_address = |address: &str| PublishError::Address(address.to_owned());
        let (address, host) = if let Some(rest) = rest.strip_prefix('[') {
            let (address, host) = rest.rsplit_once("]:").ok_or_else(form)?;
            let parsed: Ipv6Addr = address.parse().map_err(|_| bad_address(address))?;
            (Some(IpAddr::V6(parsed)), host)
        } else {
            match rest.rsplit_once(':') {
                None => (None, rest),
                Some((address, host)) => {
                    let parsed: Ipv4Addr = address.parse().map_err(|_| bad_address(address))?;
                    (Some(IpAddr::V4(parsed)), host)
                }
            }
        };
        Ok(Publish {
            protocol,
            address,
            host: port(host)?,
            guest,
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

/// A NIC that a machine is started with, or gets while it runs. Comes with
/// its backend's descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartNic {
    /// Its name.
    pub name: String,
    /// Its address.
    pub mac: Mac,
    /// The MTU that the guest is told, [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: u16,
    /// Pairs of queues, 1 to [`QUEUES_MAX`].
    pub queues: u16,
    /// How much it may do.
    #[serde(default)]
    pub limits: NicLimits,
    /// Its cable is plugged in.
    pub link: bool,
    /// Where its frames go.
    pub backend: NicBackend,
}

/// What carries a NIC's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicBackend {
    /// Queues of a tap interface: one descriptor for each, from
    /// `croft_net::open_tap`.
    Tap {
        /// How many, at most [`QUEUES_MAX`].
        queues: u16,
    },
    /// A connected stream socket that takes frames behind their length, as
    /// passt and QEMU's `-netdev stream` do.
    Stream,
    /// Nothing: the link is down until something comes.
    None,
}

impl NicBackend {
    /// How many descriptors come with it.
    pub fn descriptors(self) -> usize {
        match self {
            NicBackend::Tap { queues } => usize::from(queues),
            NicBackend::Stream => 1,
            NicBackend::None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_collide() {
        let collide = |one: &str, other: &str| {
            let (one, other): (Publish, Publish) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(one.collides(&other), other.collides(&one));
            one.collides(&other)
        };
        assert!(collide("80:80", "80:81"));
        assert!(collide("80:80", "127.0.0.1:80:80"));
        assert!(collide("0.0.0.0:80:80", "127.0.0.1:80:80"));
        assert!(collide("[::]:80:80", "127.0.0.1:80:80"));
        assert!(!collide("0.0.0.0:80:80", "[2001:db8::1]:80:80"));
        assert!(!collide("127.0.0.1:80:80", "127.0.0.2:80:80"));
        assert!(!collide("80:80", "81:80"));
        assert!(!collide("80:80", "80:80/udp"));
    }

    #[test]
    fn addresses() {
        let mac: Mac = "02:C7:0f:00:00:0a".parse().unwrap();
        assert_eq!(mac.to_string(), "02:c7:0f:00:00:0a");
        assert_eq!("02-c7-0f-00-00-0a".parse(), Ok(mac));
        for text in [
            "",
            "02:c7:0f:00:00",
            "02:c7:0f:00:00:0a:1",
            "02:c7:0f:00:00:+a",
            "02:c7:0f:00:00:é",
        ] {
            let error = text.parse::<Mac>().unwrap_err();
            assert_eq!(error, MacError::Form(text.to_owned()));
        }
        assert!(matches!(
            "ff:ff:ff:ff:ff:ff".parse::<Mac>(),
            Err(MacError::Group(_))
        ));
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
        let json = serde_json::to_string(&mac).unwrap();
        assert_eq!(json, "\"02:c7:0f:00:00:0a\"");
        assert_eq!(serde_json::from_str::<Mac>(&json).unwrap(), mac);
        assert!(serde_json::from_str::<Mac>("\"01:00:5e:00:00:01\"").is_err());
        let (one, other) = (Mac::random().unwrap(), Mac::random().unwrap());
        assert_ne!(one, other);
        assert_eq!(Mac::new(one.bytes()), Ok(one));
        assert!(one.bytes().starts_with(&Mac::PREFIX));
    }

    #[test]
    fn published_ports() {
        for text in [
            "8080:80",
            "127.0.0.1:2222:22",
            "[::1]:5353:53/udp",
            "[2001:db8::1]:1:65535",
            "53:53/udp",
        ] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(publish.to_string(), text);
        }
        let publish: Publish = "80:80/tcp".parse().unwrap();
        assert_eq!(publish.to_string(), "80:80");
        type Error = fn(String) -> PublishError;
        let wrong: [(&str, &str, Error); 9] = [
            ("80", "80", PublishError::Form),
            ("", "", PublishError::Form),
            ("[::1]", "1]", PublishError::Port),
            ("80:0", "0", PublishError::Port),
            ("+80:80", "+80", PublishError::Port),
            ("65536:80", "65536", PublishError::Port),
            ("host:80:80", "host", PublishError::Address),
            ("::1:80:80", "::1", PublishError::Address),
            ("80:80/sctp", "sctp", PublishError::Protocol),
        ];
        for (text, part, error) in wrong {
            assert_eq!(
                text.parse::<Publish>(),
                Err(error(part.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn descriptors() {
        assert_eq!(NicBackend::Tap { queues: 3 }.descriptors(), 3);
        assert_eq!(NicBackend::Stream.descriptors(), 1);
        assert_eq!(NicBackend::None.descriptors(), 0);
    }

    #[test]
    fn changes_of_rates_say_what_stays() {
        let mut nic = NicSpec {
            name: "net0".to_owned(),
            mac: "02:c7:0f:00:00:0a".parse().unwrap(),
            mtu: None,
            queues: None,
            limits: NicLimits::default(),
            link: true,
            kind: NicKind::User(UserNet::default()),
        };
        nic.limits.inbound.frames_per_second = Some(9);
        nic.limits.outbound.bytes_per_second = Some(7);
        let change = NicChange {
            link: Some(false),
            inbound: Some(Some(5)),
            outbound: Some(None),
        };
        for change in [change, NicChange::default()] {
            let json = serde_json::to_string(&change).unwrap();
            assert_eq!(serde_json::from_str::<NicChange>(&json).unwrap(), change);
            change.apply(&mut nic);
            assert!(!nic.link);
            let rate = |bytes, frames| NicRate {
                bytes_per_second: bytes,
                frames_per_second: frames,
            };
            assert_eq!(nic.limits.inbound, rate(Some(5), Some(9)));
            assert_eq!(nic.limits.outbound, rate(None, None));
        }
    }
}
