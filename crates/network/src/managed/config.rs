//! What a network is: `config.json` in its directory.

use std::fmt;
use std::str::FromStr;

use croft_api::net::{MTU_MAX, MTU_MIN};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::firewall::{Action, RULES_MAX, Rule};
use crate::link;

/// Version that this build writes.
pub const VERSION: u32 = 1;
/// What an Ethernet has by default.
pub const MTU: u16 = 1500;
/// Least MTU of a network with addresses of version 6 (RFC 8200, 5).
const MTU_MIN_6: u16 = 1280;
/// The VLANs there are (IEEE 802.1Q, 9.6).
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;

/// How a network leads to the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// By the host's addresses.
    #[default]
    Nat,
    /// By its own, for which others have routes to this host.
    Routed,
    /// Not at all.
    Closed,
    /// As part of the network that an interface of the host's is on, which
    /// has addresses and names of its own.
    Uplink,
}

/// What a network is, as somebody wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// That of the configuration file.
    pub version: u32,
    /// When it was created, in milliseconds after 1970.
    pub created: u64,
    /// It is there; not after `croft network stop`.
    pub started: bool,
    /// How it leads to the world.
    pub mode: Mode,
    /// Its subnet.
    pub ipv4: Option<Ipv4Net>,
    /// Its subnet of version 6.
    pub ipv6: Option<Ipv6Net>,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// The interface of the host's that is part of it ([`Mode::Uplink`]).
    pub uplink: Option<String>,
    /// The VLAN of the uplink's that it is.
    pub vlan: Option<u16>,
    /// The domain that names of its instances end in.
    pub domain: String,
    /// Its instances do not reach each other.
    pub isolated: bool,
    /// Its instances reach what this host serves, not only names, addresses
    /// and pings.
    pub host_access: bool,
    /// What becomes of packets from outside for which there is no rule.
    pub ingress: Action,
    /// What becomes of packets to the outside for which there is no rule.
    pub egress: Action,
    /// The firewall; the first that fits decides.
    pub rules: Vec<Rule>,
}

/// What is wrong with a network's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Out of range.
    #[error("an MTU is {least} to {MTU_MAX} here, not {mtu}")]
    Mtu {
        /// What was asked for.
        mtu: u16,
        /// The least one.
        least: u16,
    },
    /// Out of range.
    #[error("a VLAN is 1 to 4094, not {0}")]
    Vlan(u16),
    /// Without what it is on.
    #[error("a VLAN is one of an interface's; give that with --uplink")]
    VlanAlone,
    /// With an uplink, without its mode or the other way round.
    #[error("--mode uplink and --uplink INTERFACE go together")]
    Uplink,
    /// What the uplink's network has.
    #[error("a network with an uplink has the addresses of that; leave {0} out")]
    UplinkHas(&'static str),
    /// Not the name of an interface.
    #[error("'{0}' is no name of an interface")]
    Interface(String),
    /// Neither version.
    #[error("a network has addresses of one version at least")]
    NoAddresses,
    /// Not a domain.
    #[error(
        "'{0}' is no domain; use small letters, digits, '-' and '.', as in croft or lab.example"
    )]
    Domain(String),
    /// Too many.
    #[error("a network has at most {RULES_MAX} rules")]
    Rules,
}

impl NetworkConfig {
    /// Looks for what is wrong, the subnets aside.
    pub fn check(&self) -> Result<(), ConfigError> {
        let least = if self.ipv6.is_some() {
            MTU_MIN_6
        } else {
            MTU_MIN
        };
        if !(least..=MTU_MAX).contains(&self.mtu) {
            return Err(ConfigError::Mtu {
                mtu: self.mtu,
                least,
            });
        }
        if let Some(vlan) = self.vlan {
            check_vlan(vlan)?;
            if self.uplink.is_none() {
                return Err(ConfigError::VlanAlone);
            }
        }
        if (self.mode == Mode::Uplink) != self.uplink.is_some() {
            return Err(ConfigError::Uplink);
        }
        if let Some(uplink) = &self.uplink {
            check_interface(uplink)?;
            if self.ipv4.is_some() || self.ipv6.is_some() {
                return Err(ConfigError::UplinkHas("--ipv4 and --ipv6"));
            }
            if !self.rules.is_empty() {
                return Err(ConfigError::UplinkHas("rules"));
            }
        } else if self.ipv4.is_none() && self.ipv6.is_none() {
            return Err(ConfigError::NoAddresses);
        }
        check_domain(&self.domain)?;
        if self.rules.len() > RULES_MAX {
            return Err(ConfigError::Rules);
        }
        Ok(())
    }

    /// Whether packets between its instances have to pass the host's rules.
    pub fn filters_bridged(&self) -> bool {
        !self.rules.is_empty()
    }
}

/// Checks the number of a VLAN.
pub fn check_vlan(vlan: u16) -> Result<(), ConfigError> {
    let is = VLANS.contains(&vlan);
    is.then_some(()).ok_or(ConfigError::Vlan(vlan))
}

/// Checks the name of an interface: what the kernel takes, and what means
/// nothing to nft or in a path.
pub fn check_interface(name: &str) -> Result<(), ConfigError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    let is =
        !matches!(name, "" | "." | "..") && name.len() <= link::NAME_MAX && name.chars().all(plain);
    is.then_some(())
        .ok_or_else(|| ConfigError::Interface(name.to_owned()))
}

fn check_domain(domain: &str) -> Result<(), ConfigError> {
    let label = |label: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        // RFC 1035, 2.3.4.
        (1..=63).contains(&label.len())
            && label.chars().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is = domain.len() <= 200 && domain.split('.').all(label);
    is.then_some(())
        .ok_or_else(|| ConfigError::Domain(domain.to_owned()))
}

impl Mode {
    const ALL: [(Mode, &'static str); 4] = [
        (Mode::Nat, "nat"),
        (Mode::Routed, "routed"),
        (Mode::Closed, "closed"),
        (Mode::Uplink, "uplink"),
    ];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Mode::ALL.iter().find(|(mode, _)| mode == self);
        f.pad(word.map_or("", |(_, word)| word))
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Mode::ALL.iter().find(|(_, word)| *word == text);
        found
            .map(|(mode, _)| *mode)
            .ok_or_else(|| format!("'{text}' is not nat, routed, closed or uplink"))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A network with everything as it is by default.
    pub fn config() -> NetworkConfig {
        NetworkConfig {
            version: VERSION,
            created: 0,
            started: true,
            mode: Mode::Nat,
            ipv4: Some("10.1.2.0/24".parse().unwrap()),
            ipv6: Some("fd01:2:3::/64".parse().unwrap()),
            mtu: MTU,
            uplink: None,
            vlan: None,
            domain: "croft".to_owned(),
            isolated: false,
            host_access: false,
            ingress: Action::Drop,
            egress: Action::Allow,
            rules: Vec::new(),
        }
    }

    fn wrong(change: impl FnOnce(&mut NetworkConfig)) -> ConfigError {
        let mut config = config();
        change(&mut config);
        config.check().unwrap_err()
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(config().check(), Ok(()));
        let mtu = |mtu, least| ConfigError::Mtu { mtu, least };
        assert_eq!(wrong(|c| c.mtu = 1279), mtu(1279, 1280));
        assert_eq!(wrong(|c| c.mtu = MTU_MAX + 1), mtu(MTU_MAX + 1, 1280));
        assert_eq!(wrong(|c| (c.ipv6, c.mtu) = (None, 67)), mtu(67, 68));
        assert_eq!(wrong(|c| c.vlan = Some(0)), ConfigError::Vlan(0));
        assert_eq!(wrong(|c| c.vlan = Some(4095)), ConfigError::Vlan(4095));
        assert_eq!(wrong(|c| c.vlan = Some(1)), ConfigError::VlanAlone);
        assert_eq!(wrong(|c| c.mode = Mode::Uplink), ConfigError::Uplink);
        let uplink = |c: &mut NetworkConfig| {
            (c.mode, c.uplink) = (Mode::Uplink, Some("eth0".to_owned()));
        };
        assert!(matches!(wrong(uplink), ConfigError::UplinkHas(_)));
        assert_eq!(
            wrong(|c| (c.ipv4, c.ipv6) = (None, None)),
            ConfigError::NoAddresses
        );
        for domain in ["", ".", "a..b", "-a", "A", "a b", "a\nserver=1.2.3.4"] {
            let error = wrong(|c| c.domain = domain.to_owned());
            assert_eq!(error, ConfigError::Domain(domain.to_owned()));
        }
        for name in ["", "..", "a/b", "sixteen-letters-", "a\"b", "a b"] {
            assert!(check_interface(name).is_err(), "{name}");
        }
        assert_eq!(check_interface("enp0s3.100"), Ok(()));
    }

    #[test]
    fn modes() {
        for (mode, word) in Mode::ALL {
            assert_eq!(word.parse(), Ok(mode));
            assert_eq!(mode.to_string(), word);
        }
        assert!("bridge".parse::<Mode>().is_err());
    }
}
