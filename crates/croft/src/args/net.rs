//! A NIC on the command line.
//!
//! ```text
//! user|none|bridge=BRIDGE|NETWORK[,OPTION]...
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use croft_api::net::{
    BridgeNic, MTU_MAX, MTU_MIN, Mac, NetworkNic, NicKind, NicLimits, Publish, QUEUES_MAX, UserNet,
};

use super::network;
use crate::size;

/// What stands for a NIC in the help.
pub const VALUE: &str = "user|none|bridge=BRIDGE|NETWORK[,OPTION]...";

/// What the options are.
pub const HELP: &str = "\
Options of a NIC:
  mac=ADDRESS           its address; made by chance, and kept, when not given
  mtu=BYTES             largest packet; that of its network when not given
  limit-in=SIZE         at most so many bytes in a second to the guest
  limit-out=SIZE        the same from the guest
  frames-in=N, frames-out=N  the same in frames
  queues=N              pairs of queues; not for user
  link=down             its cable is not plugged in
  ipv4=ADDRESS, ipv6=ADDRESS  what it always gets in NETWORK
  isolated              it reaches no other isolated instance in NETWORK
  vlan=ID               the VLAN on BRIDGE
  spoofing              it may send as whom it likes on BRIDGE
  user is the network of who has no rights (passt): out by the host's addresses, in by --publish.";

/// Longest name of an interface, and of what is named like one
/// (`IFNAMSIZ` of linux/if.h less its end).
const NAME_MAX: usize = 15;

/// `--net` and `--publish`.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Network")]
pub struct NetOptions {
    /// NIC: where it leads to, with options (below); can be given several times. An instance of
    /// an image has 'user' when nothing is said, other machines have none
    #[arg(long = "net", value_name = VALUE, value_parser = parse_net, add = ArgValueCandidates::new(places))]
    pub nets: Vec<Net>,

    /// Port of the host that leads to the guest, of the first NIC that is 'user' or in a network;
    /// can be given several times
    #[arg(short, long, value_name = "[ADDRESS:]HOST:GUEST[/udp]", value_parser = Publish::from_str)]
    pub publish: Vec<Publish>,
}

/// Where a NIC can lead to, for a shell's completion.
pub fn places() -> Vec<CompletionCandidate> {
    let known = ["user", "none", "bridge="].map(CompletionCandidate::new);
    known.into_iter().chain(network::names()).collect()
}

/// A `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    /// No NIC, not even one by default.
    None,
    /// This one.
    Nic(Box<NewNic>),
}

/// A NIC as it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNic {
    /// Where it leads to.
    pub kind: NicKind,
    /// Its address; one by chance when not given.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Option<u16>,
    /// Its pairs of queues.
    pub queues: Option<u16>,
    /// How much it may do.
    pub limits: NicLimits,
    /// Its cable is plugged in.
    pub link: bool,
}

impl NewNic {
    /// Without options.
    pub fn new(kind: NicKind) -> Self {
        NewNic {
            kind,
            mac: None,
            mtu: None,
            queues: None,
            limits: NicLimits::default(),
            link: true,
        }
    }
}

/// A NIC: see [`HELP`].
pub fn parse_net(text: &str) -> Result<Net, String> {
    let mut parts = text.split(',');
    let kind = match parts.next().unwrap_or_default() {
        "none" => {
            return match parts.next() {
                None => Ok(Net::None),
                Some(_) => Err("'none' has no options".to_owned()),
            };
        }
        "user" => NicKind::User(UserNet::default()),
        word => match word.split_once('=') {
            Some(("bridge", bridge)) => NicKind::Bridge(BridgeNic {
                bridge: name(bridge, "bridge")?,
                vlan: None,
                spoofing: false,
            }),
            Some(_) => {
                return Err(format!(
                    "'{}' is no network; give user, none, bridge=BRIDGE, or the name of a network, \
                     and options behind it",
                    word.escape_debug()
                ));
            }
            None => NicKind::Network(NetworkNic {
                network: name(word, "network")?,
                ipv4: None,
                ipv6: None,
                isolated: false,
                publish: Vec::new(),
            }),
        },
    };
    let mut nic = NewNic::new(kind);
    for part in parts {
        set(&mut nic, part)?;
    }
    Ok(Net::Nic(Box::new(nic)))
}

/// A name of an interface or a network.
fn name(text: &str, what: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let fits = (1..=NAME_MAX).contains(&text.len()) && text.chars().all(plain);
    if fits && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "'{}' is no name of a {what}: 1 to {NAME_MAX} letters, digits, '.', '-' and '_'",
        text.escape_debug()
    ))
}

fn set(nic: &mut NewNic, option: &str) -> Result<(), String> {
    let (key, value) = match option.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (option, None),
    };
    match (key, value, &mut nic.kind) {
        ("mac", Some(value), _) => nic.mac = Some(value.parse().map_err(text)?),
        ("mtu", Some(value), _) => nic.mtu = Some(number(value, key, MTU_MIN, MTU_MAX)?),
        ("queues", Some(value), NicKind::Network(_) | NicKind::Bridge(_)) => {
            nic.queues = Some(number(value, key, 1, QUEUES_MAX)?);
        }
        ("limit-in", Some(value), _) => {
            nic.limits.inbound.bytes_per_second = Some(rate(value, key)?);
        }
        ("limit-out", Some(value), _) => {
            nic.limits.outbound.bytes_per_second = Some(rate(value, key)?);
        }
        ("frames-in", Some(value), _) => {
            nic.limits.inbound.frames_per_second = Some(number(value, key, 1, u64::MAX)?);
        }
        ("frames-out", Some(value), _) => {
            nic.limits.outbound.frames_per_second = Some(number(value, key, 1, u64::MAX)?);
        }
        ("link", Some("up"), _) => nic.link = true,
        ("link", Some("down"), _) => nic.link = false,
        ("link", Some(value), _) => return Err(wrong(value, key, "'up' or 'down'")),
        ("ipv4", Some(value), NicKind::Network(net)) => {
            let address: Option<Ipv4Addr> = value.parse().ok();
            net.ipv4 = Some(address.ok_or_else(|| wrong(value, key, "an IPv4 address"))?);
        }
        ("ipv6", Some(value), NicKind::Network(net)) => {
            let address: Option<Ipv6Addr> = value.parse().ok();
            net.ipv6 = Some(address.ok_or_else(|| wrong(value, key, "an IPv6 address"))?);
        }
        ("isolated", None, NicKind::Network(net)) => net.isolated = true,
        ("vlan", Some(value), NicKind::Bridge(net)) => {
            // IEEE 802.1Q, 9.6: 0 and 4095 are no VLANs.
            net.vlan = Some(number(value, key, 1, 4094)?);
        }
        ("spoofing", None, NicKind::Bridge(net)) => net.spoofing = true,
        ("isolated" | "spoofing", Some(_), _) => return Err(format!("'{key}' has no value")),
        ("ipv4" | "ipv6" | "isolated", _, _) => {
            return Err(format!(
                "'{key}' is for NICs in networks of 'croft network'"
            ));
        }
        ("vlan" | "spoofing", _, _) => {
            return Err(format!(
                "'{key}' is for NICs on a bridge: bridge=BRIDGE,{key}"
            ));
        }
        ("queues", Some(_), _) => return Err("a user network has one queue".to_owned()),
        (
            "mac" | "mtu" | "queues" | "limit-in" | "limit-out" | "frames-in" | "frames-out"
            | "link",
            None,
            _,
        ) => return Err(format!("'{key}' needs a value: '{key}=...'")),
        _ => {
            return Err(format!(
                "'{}' is no option of a NIC; there are mac=, mtu=, limit-in=, limit-out=, \
                 frames-in=, frames-out=, queues=, link=, ipv4=, ipv6=, isolated, vlan= and spoofing",
                key.escape_debug()
            ));
        }
    }
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn number<T>(value: &str, key: &str, least: T, most: T) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display + Copy,
{
    let number = value.parse().ok().filter(|n| *n >= least && *n <= most);
    number.ok_or_else(|| wrong(value, key, &format!("a number from {least} to {most}")))
}

fn rate(value: &str, key: &str) -> Result<u64, String> {
    let rate = size::parse(value).ok().filter(|rate| *rate > 0);
    rate.ok_or_else(|| wrong(value, key, "a size like '10M'"))
}

fn wrong(value: &str, key: &str, right: &str) -> String {
    format!(
        "'{}' is not for '{key}='; give {right}",
        value.escape_debug()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(text: &str) -> NewNic {
        match parse_net(text).unwrap() {
            Net::Nic(nic) => *nic,
            Net::None => panic!("{text} is none"),
        }
    }

    #[test]
    fn kinds() {
        assert_eq!(parse_net("none"), Ok(Net::None));
        assert_eq!(nic("user"), NewNic::new(NicKind::User(UserNet::default())));
        assert!(matches!(nic("bridge=br0").kind, NicKind::Bridge(net) if net.bridge == "br0"));
        assert!(matches!(nic("lan").kind, NicKind::Network(net) if net.network == "lan"));
    }

    #[test]
    fn options() {
        let all = nic(
            "user,mac=02:00:00:00:00:01,mtu=1400,limit-in=1M,limit-out=2M,frames-in=3,frames-out=4,link=down",
        );
        assert_eq!(all.mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert_eq!(all.mtu, Some(1400));
        assert_eq!(all.limits.inbound.bytes_per_second, Some(1 << 20));
        assert_eq!(all.limits.outbound.bytes_per_second, Some(2 << 20));
        assert_eq!(all.limits.inbound.frames_per_second, Some(3));
        assert_eq!(all.limits.outbound.frames_per_second, Some(4));
        assert!(!all.link);
        let NicKind::Network(net) = nic("lan,ipv4=10.0.0.7,ipv6=fd00::7,isolated").kind else {
            panic!("no network");
        };
        assert_eq!(net.ipv4, Some(Ipv4Addr::new(10, 0, 0, 7)));
        assert!(net.isolated && net.ipv6.is_some());
        let bridge = nic("bridge=br0,vlan=7,spoofing,queues=2");
        assert_eq!(bridge.queues, Some(2));
        assert!(matches!(bridge.kind, NicKind::Bridge(net) if net.vlan == Some(7) && net.spoofing));
    }

    #[test]
    fn mistakes_are_explained() {
        for (bad, word) in [
            ("", "no name of a network"),
            ("none,mtu=1500", "no options"),
            ("bridge=", "no name of a bridge"),
            ("bridge=a b", "no name of a bridge"),
            ("bride=br0", "give user, none"),
            ("sixteen-letters-", "no name"),
            ("user,mac=x", "no MAC address"),
            ("user,mac=01:00:00:00:00:00", "group"),
            ("user,mtu=67", "68 to 65520"),
            ("user,mtu", "needs a value"),
            ("user,queues=2", "one queue"),
            ("user,limit-in=0", "10M"),
            ("user,link=off", "'up' or 'down'"),
            ("user,ipv4=10.0.0.1", "croft network"),
            ("lan,ipv4=10.0.0", "IPv4 address"),
            ("lan,vlan=1", "on a bridge"),
            ("bridge=br0,vlan=4095", "1 to 4094"),
            ("user,", "'' is no option"),
            ("user,x\u{1b}", "x\\u{1b}"),
        ] {
            let said = parse_net(bad).unwrap_err();
            assert!(said.contains(word), "{bad}: {said}");
        }
    }
}
