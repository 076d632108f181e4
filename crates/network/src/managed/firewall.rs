//! Rules of firewalls, as people write them.
//!
//! ```text
//! ingress|egress allow|drop|reject [PROTOCOL [PORTS]] [from|to SUBNET] [instance NAME] [log]
//! ```
//!
//! PROTOCOL is `tcp`, `udp` or `icmp`; PORTS are of the destination:
//! `80,443,8000-8080`. The first rule that fits decides.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use croft_host::InstanceName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most ports and ranges of ports in a rule.
const PORTS_MAX: usize = 32;
/// Most rules of a network.
pub const RULES_MAX: usize = 512;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To an instance.
    Ingress,
    /// From an instance.
    Egress,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It passes.
    Allow,
    /// It vanishes.
    Drop,
    /// It is refused, and its sender is told.
    Reject,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carried {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// Control messages, of either version.
    Icmp,
}

/// Ports, the first and the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Ports {
    first: u16,
    last: u16,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Rule {
    /// Which way.
    pub direction: Direction,
    /// What becomes of it.
    pub action: Action,
    /// What it carries; anything when not given.
    pub protocol: Option<Carried>,
    /// To which ports; all when empty.
    pub ports: Vec<Ports>,
    /// Where it comes from (ingress) or goes to (egress); anywhere when not
    /// given.
    pub peer: Option<IpNet>,
    /// Whose it is; every instance's when not given.
    pub instance: Option<InstanceName>,
    /// The kernel's log tells of it.
    pub log: bool,
}

/// Why something is no rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// A word is missing.
    #[error(
        "'{0}' is no rule: {1} is missing; write ingress|egress allow|drop|reject [tcp|udp|icmp [PORTS]] [from|to SUBNET] [instance NAME] [log]"
    )]
    Missing(String, &'static str),
    /// A word is out of place.
    #[error("'{0}' is no rule: '{1}' means nothing there")]
    Word(String, String),
    /// `from` goes with ingress, `to` with egress.
    #[error("'{0}' is no rule: ingress comes 'from', egress goes 'to'")]
    Way(String),
    /// Not ports.
    #[error("'{0}' are no ports; write as in 80,443,8000-8080, at most 32 of them")]
    Ports(String),
    /// Not a subnet.
    #[error("'{0}' is no subnet; write as in 192.168.1.0/24 or fd00::/8, or an address")]
    Subnet(String),
    /// Not an instance.
    #[error("'{0}' is no name of an instance")]
    Instance(String),
}

impl Direction {
    fn word(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    fn way(self) -> &'static str {
        match self {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        }
    }
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Drop => "drop",
            Action::Reject => "reject",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Action::Allow, Action::Drop, Action::Reject]
            .into_iter()
            .find(|action| action.word() == text)
            .ok_or_else(|| format!("'{text}' is not allow, drop or reject"))
    }
}

impl Carried {
    fn word(self) -> &'static str {
        match self {
            Carried::Tcp => "tcp",
            Carried::Udp => "udp",
            Carried::Icmp => "icmp",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Carried::Tcp, Carried::Udp, Carried::Icmp]
            .into_iter()
            .find(|carried| carried.word() == word)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for Ports {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let bad = || RuleError::Ports(text.to_owned());
        let port = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let port = text.parse::<u16>().ok().filter(|port| digits && *port > 0);
            port.ok_or_else(bad)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(bad());
        }
        Ok(Ports { first, last })
    }
}

impl From<Ports> for String {
    fn from(ports: Ports) -> String {
        ports.to_string()
    }
}

impl TryFrom<String> for Ports {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.direction.word(), self.action.word())?;
        if let Some(protocol) = self.protocol {
            write!(f, " {}", protocol.word())?;
        }
        for (number, ports) in self.ports.iter().enumerate() {
            let before = if number == 0 { ' ' } else { ',' };
            write!(f, "{before}{ports}")?;
        }
        if let Some(peer) = self.peer {
            write!(f, " {} {peer}", self.direction.way())?;
        }
        if let Some(instance) = &self.instance {
            write!(f, " instance {instance}")?;
        }
        if self.log {
            f.write_str(" log")?;
        }
        Ok(())
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let missing = |what| RuleError::Missing(text.to_owned(), what);
        let mut words = text.split_whitespace().peekable();
        let direction = match words.next() {
            Some("ingress") => Direction::Ingress,
            Some("egress") => Direction::Egress,
            Some(word) => return Err(RuleError::Word(text.to_owned(), word.to_owned())),
            None => return Err(missing("ingress or egress")),
        };
        let action = words
            .next()
            .ok_or_else(|| missing("allow, drop or reject"))?;
        let action = action
            .parse()
            .map_err(|_| RuleError::Word(text.to_owned(), action.to_owned()))?;
        let mut rule = Rule {
            direction,
            action,
            protocol: None,
            ports: Vec::new(),
            peer: None,
            instance: None,
            log: false,
        };
        rule.protocol = words.peek().and_then(|word| Carried::of(word));
        if let Some(protocol) = rule.protocol {
            words.next();
            let has_ports = protocol != Carried::Icmp;
            let digit = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
            if has_ports && let Some(ports) = words.next_if(digit) {
                rule.ports = parse_ports(ports)?;
            }
        }
        while let Some(word) = words.next() {
            match word {
                "from" | "to" if rule.peer.is_none() => {
                    if word != direction.way() {
                        return Err(RuleError::Way(text.to_owned()));
                    }
                    let subnet = words.next().ok_or_else(|| missing("a subnet"))?;
                    rule.peer = Some(parse_subnet(subnet)?);
                }
                "instance" if rule.instance.is_none() => {
                    let name = words
                        .next()
                        .ok_or_else(|| missing("the name of an instance"))?;
                    let name = name
                        .parse()
                        .map_err(|_| RuleError::Instance(name.to_owned()))?;
                    rule.instance = Some(name);
                }
                "log" if !rule.log => rule.log = true,
                word => return Err(RuleError::Word(text.to_owned(), word.to_owned())),
            }
        }
        Ok(rule)
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.to_string()
    }
}

impl TryFrom<String> for Rule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

fn parse_ports(text: &str) -> Result<Vec<Ports>, RuleError> {
    let mut ports: Vec<Ports> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
    if ports.len() > PORTS_MAX {
        return Err(RuleError::Ports(text.to_owned()));
    }
    // nft takes no ranges that overlap.
    ports.sort_by_key(|ports| (ports.first, ports.last));
    let mut merged: Vec<Ports> = Vec::new();
    for next in ports {
        match merged.last_mut() {
            Some(last) if next.first <= last.last => last.last = last.last.max(next.last),
            _ => merged.push(next),
        }
    }
    Ok(merged)
}

fn parse_subnet(text: &str) -> Result<IpNet, RuleError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    text.parse::<IpNet>()
        .map(|net| net.trunc())
        .map_err(|_| RuleError::Subnet(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_as_they_are_written() {
        for (text, meant) in [
            ("ingress allow", None),
            ("egress  drop\tlog", Some("egress drop log")),
            (
                "ingress allow tcp 443,80,8000-8080 from 10.0.0.1/8 instance web-1 log",
                Some("ingress allow tcp 80,443,8000-8080 from 10.0.0.0/8 instance web-1 log"),
            ),
            ("ingress drop udp 5-9,1-6", Some("ingress drop udp 1-9")),
            (
                "egress reject to fd00::1",
                Some("egress reject to fd00::1/128"),
            ),
            ("egress reject icmp", None),
            ("ingress drop tcp from 192.168.1.0/24", None),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), meant.unwrap_or(text));
        }
    }

    #[test]
    fn what_is_no_rule_is_named() {
        for (text, part) in [
            ("", "ingress or egress"),
            ("allow tcp", "allow"),
            ("ingress", "allow, drop or reject"),
            ("ingress permit", "permit"),
            ("ingress allow sctp", "sctp"),
            ("ingress allow tcp 0", "0"),
            ("ingress allow tcp 9-8", "9-8"),
            ("ingress allow tcp 65536", "65536"),
            ("ingress allow icmp 8", "8"),
            ("ingress allow to 10.0.0.0/8", "from"),
            ("egress allow from 10.0.0.0/8", "to"),
            ("egress allow to", "a subnet"),
            ("egress allow to 10.0.0.0/33", "10.0.0.0/33"),
            ("egress allow instance", "name of an instance"),
            ("egress allow instance a;b", "a;b"),
            ("egress allow log log", "log"),
            ("egress allow; flush ruleset", "allow;"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_rule_or_not(text in ".*") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }

        #[test]
        fn a_rule_is_written_as_it_is_read(
            ingress in any::<bool>(),
            action in 0usize..3,
            protocol in 0usize..4,
            ports in prop::collection::vec((1u16.., 0u16..50), 0..PORTS_MAX),
            peer in prop::option::of((any::<u32>(), 0u8..=32)),
            log in any::<bool>(),
        ) {
            let ports: Vec<String> = ports
                .iter()
                .map(|(first, more)| format!("{first}-{}", first.saturating_add(*more)))
                .collect();
            let mut text = format!(
                "{} {}",
                if ingress { "ingress" } else { "egress" },
                ["allow", "drop", "reject"][action]
            );
            if let Some(word) = [None, Some("tcp"), Some("udp"), Some("icmp")][protocol] {
                text.push_str(&format!(" {word}"));
                if word != "icmp" && !ports.is_empty() {
                    text.push_str(&format!(" {}", ports.join(",")));
                }
            }
            if let Some((bits, prefix)) = peer {
                let address = std::net::Ipv4Addr::from_bits(bits);
                let way = if ingress { "from" } else { "to" };
                text.push_str(&format!(" {way} {address}/{prefix}"));
            }
            if log {
                text.push_str(" log");
            }
            let rule: Rule = text.parse().unwrap();
            prop_assert_eq!(rule.to_string().parse(), Ok(rule.clone()));
            for pair in rule.ports.windows(2) {
                prop_assert!(pair[0].last < pair[1].first);
            }
        }
    }
}
