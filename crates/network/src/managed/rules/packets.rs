//! Which packets pass, and how their addresses are translated.
//!
//! ```text
//!              ┌─ forward ──► NAME-egress ──► NAME-ingress
//!  prerouting ─┤   (from the bridge)    (to the bridge)      postrouting
//!   (publish)  └─ input ────► NAME-host                         (NAT)
//! ```
//!
//! A packet from one network to another passes the egress of one and the
//! ingress of the other. Egress only says no; ingress, or the end of the
//! chain, says yes. Instances are told apart by their addresses, which they
//! cannot forge (`frames.rs`).

use std::net::IpAddr;

use croft_api::net::Publish;
use ipnet::IpNet;

use super::{Ruleset, chain, set};
use crate::managed::address::{GATEWAY_LINK_LOCAL, gateway4, gateway6};
use crate::managed::config::{Mode, NetworkConfig};
use crate::managed::firewall::{Action, Carried, Direction, Rule};
use crate::managed::name::NetworkName;
use crate::managed::store::{Attachment, Place};

/// How often one rule is written to the kernel's log: a flood of packets must
/// not be one of lines.
const LOG_LIMIT: &str = "limit rate 10/second burst 20 packets";
/// Neighbours find each other, whatever the rules say.
const NEIGHBOURS: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }";

pub fn chains(ruleset: &Ruleset<'_>, text: &mut String) {
    let networks: Vec<&(NetworkName, NetworkConfig)> = ruleset
        .networks
        .iter()
        .filter(|(_, config)| config.mode != Mode::Uplink)
        .collect();
    for (name, config) in &networks {
        let attached: Vec<&Attachment> = ruleset
            .attachments
            .iter()
            .filter(|attachment| attachment.network() == Some(name))
            .collect();
        chain(
            text,
            &format!("{name}-egress"),
            &egress(name, config, &attached),
        );
        chain(
            text,
            &format!("{name}-ingress"),
            &ingress(name, config, &attached),
        );
        chain(text, &format!("{name}-host"), &host(config));
    }
    chain(text, "forward", &forward(ruleset, &networks));
    chain(text, "input", &input(&networks));
    chain(text, "guard", &guard(&networks));
    let published = published(ruleset);
    chain(text, "prerouting", &prerouting(&published));
    chain(text, "output", &output(&published));
    chain(text, "postrouting", &postrouting(&networks, &published));
}

fn egress(name: &NetworkName, config: &NetworkConfig, attached: &[&Attachment]) -> Vec<String> {
    let bridge = name.bridge();
    let mut lines = Vec::new();
    for net in subnets(config) {
        let family = family(net);
        lines.push(format!(
            "oifname != \"{bridge}\" {family} saddr != {net} drop"
        ));
    }
    if config.mode == Mode::Closed {
        let reject = verdict(Action::Reject, Direction::Egress);
        lines.push(format!("oifname != \"{bridge}\" {reject}"));
    }
    for rule in &config.rules {
        if rule.direction == Direction::Egress {
            lines.extend(rule_lines(name, rule, attached));
        }
    }
    lines.push(format!("oifname \"{bridge}\" return"));
    if config.egress != Action::Allow {
        lines.push(verdict(config.egress, Direction::Egress).to_owned());
    }
    lines
}

fn ingress(name: &NetworkName, config: &NetworkConfig, attached: &[&Attachment]) -> Vec<String> {
    let bridge = name.bridge();
    let mut lines = Vec::new();
    for rule in &config.rules {
        if rule.direction == Direction::Ingress {
            lines.extend(rule_lines(name, rule, attached));
        }
    }
    lines.push("ct status dnat accept".to_owned());
    if config.isolated {
        // Frames do not pass between ports; this is about the way by the host.
        lines.push(format!("iifname \"{bridge}\" drop"));
    } else {
        let isolated = |address: fn(&Attachment) -> Option<IpAddr>| {
            let isolated = attached.iter().filter(|attachment| {
                matches!(attachment.place, Place::Network { isolated: true, .. })
            });
            isolated
                .filter_map(|attachment| address(attachment))
                .collect::<Vec<_>>()
        };
        for (family, addresses) in [("ip", isolated(ipv4)), ("ip6", isolated(ipv6))] {
            if !addresses.is_empty() {
                let addresses = set(addresses);
                lines.push(format!(
                    "{family} saddr {addresses} {family} daddr {addresses} drop"
                ));
            }
        }
        lines.push(format!("iifname \"{bridge}\" accept"));
    }
    lines.push(verdict(config.ingress, Direction::Ingress).to_owned());
    lines
}

/// What instances may ask of this host.
fn host(config: &NetworkConfig) -> Vec<String> {
    let mut lines = vec!["ct state established,related accept".to_owned()];
    if config.host_access {
        lines.push("accept".to_owned());
        return lines;
    }
    if let Some(net) = config.ipv4 {
        lines.push("udp sport 68 udp dport 67 accept".to_owned());
        let gateway = gateway4(net);
        lines.push(format!(
            "ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept"
        ));
        lines.push("icmp type echo-request accept".to_owned());
    }
    if let Some(net) = config.ipv6 {
        lines.push("udp sport 546 udp dport 547 accept".to_owned());
        let gateways = set([gateway6(net), GATEWAY_LINK_LOCAL]);
        lines.push(format!(
            "ip6 daddr {gateways} meta l4proto {{ tcp, udp }} th dport 53 accept"
        ));
        lines.push(
            "icmpv6 type { echo-request, nd-router-solicit, nd-neighbor-solicit, \
             nd-neighbor-advert, mld-listener-report, mld2-listener-report } accept"
                .to_owned(),
        );
    }
    lines.push(verdict(Action::Reject, Direction::Egress).to_owned());
    lines
}

fn forward(ruleset: &Ruleset<'_>, networks: &[&(NetworkName, NetworkConfig)]) -> Vec<String> {
    let mut lines = vec!["type filter hook forward priority filter; policy accept;".to_owned()];
    if networks.is_empty() {
        return lines;
    }
    let bridges = set(networks
        .iter()
        .map(|(name, _)| format!("\"{}\"", name.bridge())));
    // The host did not forward before, and does it for our networks alone.
    // Bridged frames that are shown to these rules are not forwarded packets.
    for (on, protocol) in [(ruleset.guard4, "ipv4"), (ruleset.guard6, "ipv6")] {
        if on {
            lines.push(format!(
                "meta nfproto {protocol} iifname != {bridges} oifname != {bridges} \
                 meta iifkind != \"bridge\" drop"
            ));
        }
    }
    lines.push(format!(
        "iifname {bridges} ct state established,related accept"
    ));
    lines.push(format!(
        "oifname {bridges} ct state established,related accept"
    ));
    for (name, _) in networks {
        let bridge = name.bridge();
        lines.push(format!(
            "iifname \"{bridge}\" oifname \"{bridge}\" {NEIGHBOURS} accept"
        ));
        lines.push(format!("iifname \"{bridge}\" jump {name}-egress"));
    }
    for (name, _) in networks {
        lines.push(format!("oifname \"{}\" jump {name}-ingress", name.bridge()));
    }
    lines
}

fn input(networks: &[&(NetworkName, NetworkConfig)]) -> Vec<String> {
    let mut lines = vec!["type filter hook input priority filter; policy accept;".to_owned()];
    for (name, _) in networks {
        lines.push(format!("iifname \"{}\" jump {name}-host", name.bridge()));
    }
    lines
}

/// `route_localnet` (see `sysctl.rs`) must not let instances
/// reach what listens on this host's loopback addresses.
fn guard(networks: &[&(NetworkName, NetworkConfig)]) -> Vec<String> {
    let mut lines = vec!["type filter hook prerouting priority raw; policy accept;".to_owned()];
    for (name, _) in networks {
        let bridge = name.bridge();
        lines.push(format!("iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop"));
        lines.push(format!("iifname \"{bridge}\" ip saddr 127.0.0.0/8 drop"));
    }
    lines
}

/// A port of this host's and where it leads to.
struct Forwarded {
    publish: Publish,
    to: IpAddr,
    bridge: String,
}

fn published(ruleset: &Ruleset<'_>) -> Vec<Forwarded> {
    let mut published = Vec::new();
    for attachment in ruleset.attachments {
        let Place::Network {
            network, publish, ..
        } = &attachment.place
        else {
            continue;
        };
        for port in publish {
            for to in [ipv4(attachment), ipv6(attachment)].into_iter().flatten() {
                if port.address.is_none_or(|at| at.is_ipv4() == to.is_ipv4()) {
                    published.push(Forwarded {
                        publish: *port,
                        to,
                        bridge: network.bridge(),
                    });
                }
            }
        }
    }
    published
}

impl Forwarded {
    /// Whether it is a port of all of the host's addresses.
    fn is_everywhere(&self) -> bool {
        self.publish.address.is_none_or(|at| at.is_unspecified())
    }

    /// The rule, for packets that `which` selects besides.
    fn line(&self, which: &str) -> String {
        let (family, protocol, to) = match self.to {
            IpAddr::V4(to) => ("ip", "ipv4", to.to_string()),
            IpAddr::V6(to) => ("ip6", "ipv6", format!("[{to}]")),
        };
        let at = match self.publish.address {
            Some(address) if !self.is_everywhere() => format!("{family} daddr {address}"),
            _ => format!("meta nfproto {protocol} fib daddr type local"),
        };
        let Publish {
            protocol,
            host,
            guest,
            ..
        } = self.publish;
        format!("{at}{which} {protocol} dport {host} dnat {family} to {to}:{guest}")
    }
}

/// For packets from elsewhere, none of which comes for a loopback address by
/// right: translated before it is routed, one that a neighbour of the host's
/// sends all the same would get to where only this host should.
fn prerouting(published: &[Forwarded]) -> Vec<String> {
    let mut lines = vec!["type nat hook prerouting priority dstnat; policy accept;".to_owned()];
    let to_others = published
        .iter()
        .filter(|port| port.publish.address.is_none_or(|at| !at.is_loopback()));
    lines.extend(to_others.map(|port| port.line("")));
    lines
}

fn output(published: &[Forwarded]) -> Vec<String> {
    let mut lines = vec!["type nat hook output priority -100; policy accept;".to_owned()];
    lines.extend(published.iter().map(|port| {
        // No packet leaves the loopback interface with ::1 as its source.
        let everywhere = port.is_everywhere() && port.to.is_ipv6();
        port.line(if everywhere { " ip6 daddr != ::1" } else { "" })
    }));
    lines
}

fn postrouting(networks: &[&(NetworkName, NetworkConfig)], published: &[Forwarded]) -> Vec<String> {
    let mut lines = vec!["type nat hook postrouting priority srcnat; policy accept;".to_owned()];
    for (name, config) in networks {
        let bridge = name.bridge();
        if published.iter().any(|port| port.bridge == bridge) {
            // Answers to this host's loopback address would not come back,
            // nor would those of one instance to another by way of the host.
            lines.push(format!(
                "ip saddr 127.0.0.0/8 oifname \"{bridge}\" masquerade"
            ));
            for net in subnets(config) {
                let family = family(net);
                lines.push(format!(
                    "{family} saddr {net} {family} daddr {net} ct status dnat masquerade"
                ));
            }
        }
        if config.mode == Mode::Nat {
            for net in subnets(config) {
                let family = family(net);
                lines.push(format!(
                    "{family} saddr {net} oifname != \"{bridge}\" masquerade"
                ));
            }
        }
    }
    lines
}

/// A rule of somebody's, for each version of IP that it is about.
fn rule_lines(name: &NetworkName, rule: &Rule, attached: &[&Attachment]) -> Vec<String> {
    let mut lines = Vec::new();
    for conditions in conditions(rule, attached) {
        let conditions = if conditions.is_empty() {
            String::new()
        } else {
            format!("{conditions} ")
        };
        if rule.log {
            let way = match rule.direction {
                Direction::Ingress => "ingress",
                Direction::Egress => "egress",
            };
            let action = rule.action;
            lines.push(format!(
                "{conditions}{LOG_LIMIT} log prefix \"croft {name} {way} {action}: \""
            ));
        }
        lines.push(format!(
            "{conditions}{}",
            verdict(rule.action, rule.direction)
        ));
    }
    lines
}

/// Which packets a rule is about.
fn conditions(rule: &Rule, attached: &[&Attachment]) -> Vec<String> {
    if rule.instance.is_none() && rule.peer.is_none() {
        return vec![carried(rule, "{ icmp, ipv6-icmp }")];
    }
    let (own, other) = match rule.direction {
        Direction::Ingress => ("daddr", "saddr"),
        Direction::Egress => ("saddr", "daddr"),
    };
    let mut all = Vec::new();
    for (family, icmp, of) in [
        ("ip", "icmp", ipv4 as fn(&Attachment) -> Option<IpAddr>),
        ("ip6", "ipv6-icmp", ipv6),
    ] {
        let mut parts = Vec::new();
        match rule.peer {
            Some(net) if self::family(net) != family => continue,
            Some(net) => parts.push(format!("{family} {other} {net}")),
            None => {}
        }
        if let Some(instance) = &rule.instance {
            let addresses: Vec<IpAddr> = attached
                .iter()
                .filter(|attachment| attachment.instance == instance.as_str())
                .filter_map(|attachment| of(attachment))
                .collect();
            if addresses.is_empty() {
                continue;
            }
            parts.push(format!("{family} {own} {}", set(addresses)));
        }
        let carried = carried(rule, icmp);
        if !carried.is_empty() {
            parts.push(carried);
        }
        all.push(parts.join(" "));
    }
    all
}

fn carried(rule: &Rule, icmp: &str) -> String {
    let protocol = match rule.protocol {
        None => return String::new(),
        Some(Carried::Icmp) => return format!("meta l4proto {icmp}"),
        Some(Carried::Tcp) => "tcp",
        Some(Carried::Udp) => "udp",
    };
    if rule.ports.is_empty() {
        format!("meta l4proto {protocol}")
    } else {
        format!("{protocol} dport {}", set(&rule.ports))
    }
}

fn verdict(action: Action, direction: Direction) -> &'static str {
    match (action, direction) {
        (Action::Allow, Direction::Ingress) => "accept",
        // The ingress of the network that it goes to is asked as well.
        (Action::Allow, Direction::Egress) => "return",
        (Action::Drop, _) => "drop",
        (Action::Reject, _) => "reject with icmpx admin-prohibited",
    }
}

fn subnets(config: &NetworkConfig) -> impl Iterator<Item = IpNet> {
    let four = config.ipv4.map(IpNet::V4);
    four.into_iter().chain(config.ipv6.map(IpNet::V6))
}

fn family(net: IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

fn ipv4(attachment: &Attachment) -> Option<IpAddr> {
    match attachment.place {
        Place::Network { ipv4, .. } => ipv4.map(IpAddr::V4),
        Place::Bridge { .. } => None,
    }
}

fn ipv6(attachment: &Attachment) -> Option<IpAddr> {
    match attachment.place {
        Place::Network { ipv6, .. } => ipv6.map(IpAddr::V6),
        Place::Bridge { .. } => None,
    }
}
