//! Which frames may come from a NIC, and how many to and from one.
//!
//! ```text
//!  from the NIC ─► prerouting: out-NIC, then from-NIC ─► bridge ─► postrouting: in-NIC ─► to it
//!                              (limit)  (who it may be)                        (limit)
//! ```
//!
//! A NIC sends with its own MAC address alone, and with its own IP addresses:
//! in packets, in ARP and in neighbour advertisements. It does not answer as a
//! DHCP server or router. What is neither IP nor ARP, VLAN tags among it, does
//! not pass: there could be anything behind a tag. On an uplink, and on
//! bridges of the host's, somebody else gives the addresses, and they are not
//! looked at.
//!
//! A machine's device counts what passes and has what is too much wait. A
//! container has no device. Its bytes wait at both ends of its cable
//! ([`crate::shape`]); here those that come from it are dropped where they are
//! so many more that nobody can have waited, as its end is in its own hands.
//! What is too much by the number of frames is dropped. Large segments that the
//! host's own interfaces pass on whole count as one.

use std::net::{Ipv4Addr, Ipv6Addr};

use croft_api::net::NicRate;

use super::{Ruleset, chain, set};
use crate::managed::address::link_local;
use crate::managed::config::Mode;
use crate::managed::store::{Attachment, Place};

/// Before the bridge's own hook (-300 is NF_BR_PRI_NAT_DST_BRIDGED,
/// netfilter_bridge.h) and before frames are shown to the rules for IP.
const PRIORITY: &str = "-300";

/// Which addresses a NIC may have.
enum Addresses {
    /// These.
    Ours(Option<Ipv4Addr>, Option<Ipv6Addr>),
    /// Those that somebody else gives.
    Others,
}

/// What more bytes than the limit are let pass, as a part of it: frames are
/// counted with other headers here.
const SLACK: u64 = 4;
/// What may pass at once after a pause, as a part of what passes in a second.
const BURST: u64 = 10;
/// The least of that in bytes: several of the largest segments.
const BURST_BYTES: u64 = 512 << 10;
/// The least of it in frames.
const BURST_FRAMES: u64 = 16;
/// The largest rate that is held, in bytes or frames per second: no NIC comes
/// to it, and the kernel's counters take no more than twice that.
const RATE_MAX: u64 = 10_000_000_000;

pub fn chains(ruleset: &Ruleset<'_>, text: &mut String) {
    let mut jumps = Vec::new();
    let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
    for attachment in ruleset.attachments {
        let port = &attachment.interface;
        let limits = &attachment.limits;
        for (direction, rate, jumps) in [
            ("in", &limits.inbound, &mut inbound),
            ("out", &limits.outbound, &mut outbound),
        ] {
            let lines = limit(rate, direction == "out");
            if !lines.is_empty() {
                chain(text, &format!("{direction}-{port}"), &lines);
                jumps.push(format!("\"{port}\" : jump {direction}-{port}"));
            }
        }
        let Some(addresses) = addresses(ruleset, attachment) else {
            continue;
        };
        nic(text, attachment, &addresses);
        let tap = &attachment.interface;
        jumps.push(format!("\"{tap}\" : goto from-{tap}"));
    }
    let mut lines = vec![format!(
        "type filter hook prerouting priority {PRIORITY}; policy accept;"
    )];
    for jumps in [outbound, jumps] {
        if !jumps.is_empty() {
            lines.push(format!("iifname vmap {}", set(jumps)));
        }
    }
    chain(text, "prerouting", &lines);
    if !inbound.is_empty() {
        let lines = [
            format!("type filter hook postrouting priority {PRIORITY}; policy accept;"),
            format!("oifname vmap {}", set(inbound)),
        ];
        chain(text, "postrouting", &lines);
    }
}

/// Drops what is more than that. Bytes have waited already, but for those `from`
/// a container that does as it likes.
fn limit(rate: &NicRate, from: bool) -> Vec<String> {
    let held = |rate: Option<u64>| {
        rate.filter(|rate| *rate <= RATE_MAX)
            .map(|rate| rate.max(1))
    };
    let mut lines = Vec::new();
    if let Some(frames) = held(rate.frames_per_second) {
        let burst = (frames / BURST).max(BURST_FRAMES);
        lines.push(format!(
            "limit rate over {frames}/second burst {burst} packets drop"
        ));
    }
    if let Some(bytes) = held(rate.bytes_per_second.filter(|_| from)) {
        let bytes = bytes.saturating_add(bytes / SLACK).max(SLACK);
        let burst = (bytes / BURST).max(BURST_BYTES);
        lines.push(format!(
            "limit rate over {bytes} bytes/second burst {burst} bytes drop"
        ));
    }
    lines
}

fn addresses(ruleset: &Ruleset<'_>, attachment: &Attachment) -> Option<Addresses> {
    match &attachment.place {
        Place::Bridge { spoofing: true, .. } => None,
        Place::Bridge { .. } => Some(Addresses::Others),
        Place::Network {
            network,
            ipv4,
            ipv6,
            ..
        } => {
            let config = ruleset.networks.iter().find(|(name, _)| name == network);
            let uplink = config.is_some_and(|(_, config)| config.mode == Mode::Uplink);
            Some(if uplink {
                Addresses::Others
            } else {
                Addresses::Ours(*ipv4, *ipv6)
            })
        }
    }
}

fn nic(text: &mut String, attachment: &Attachment, addresses: &Addresses) {
    let (tap, mac) = (&attachment.interface, attachment.mac);
    let mut arp = vec![
        // Ethernet and IPv4 (RFC 826), or the fields are elsewhere.
        "arp htype != 1 drop".to_owned(),
        "arp ptype != ip drop".to_owned(),
        "arp hlen != 6 drop".to_owned(),
        "arp plen != 4 drop".to_owned(),
        format!("arp saddr ether != {mac} drop"),
    ];
    let mut ipv4 = vec!["udp sport 67 drop".to_owned()];
    let mut ipv6 = vec![
        "icmpv6 type { nd-router-advert, nd-redirect } drop".to_owned(),
        "udp sport 547 drop".to_owned(),
    ];
    match addresses {
        Addresses::Others => {
            for lines in [&mut arp, &mut ipv4, &mut ipv6] {
                lines.push("accept".to_owned());
            }
        }
        Addresses::Ours(four, six) => {
            if let Some(four) = four {
                // Whoever asks whether an address is free has none yet (RFC
                // 5227, 2.1.1).
                arp.push(format!("arp saddr ip {{ 0.0.0.0, {four} }} accept"));
                ipv4.push(format!("ip saddr {four} accept"));
                ipv4.push("ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept".to_owned());
            }
            if let Some(six) = six {
                let local = link_local(mac.bytes());
                let numbers = [local, *six].map(|address| format!("{:#034x}", address.to_bits()));
                // The target is behind type, code, checksum and flags (RFC
                // 4861, 4.4). nft 1.0.6 has no name for it.
                let numbers = set(numbers);
                ipv6.push(format!(
                    "icmpv6 type nd-neighbor-advert @th,64,128 != {numbers} drop"
                ));
                ipv6.push(format!("ip6 saddr {} accept", set([local, *six])));
                // Whoever asks from nowhere says that it wants the address
                // (RFC 4862, 5.4.3): others would give up theirs.
                ipv6.push(format!(
                    "ip6 saddr :: icmpv6 type nd-neighbor-solicit @th,64,128 {numbers} accept"
                ));
                ipv6.push(
                    "ip6 saddr :: icmpv6 type { nd-router-solicit, mld-listener-report, \
                     mld2-listener-report } accept"
                        .to_owned(),
                );
            }
            for lines in [&mut arp, &mut ipv4, &mut ipv6] {
                lines.push("drop".to_owned());
            }
        }
    }
    chain(text, &format!("arp-{tap}"), &arp);
    chain(text, &format!("ip4-{tap}"), &ipv4);
    chain(text, &format!("ip6-{tap}"), &ipv6);
    let kinds = ["arp", "ip4", "ip6"].map(|kind| {
        let protocol = if kind == "ip4" { "ip" } else { kind };
        format!("{protocol} : goto {kind}-{tap}")
    });
    let lines = [
        format!("ether saddr != {mac} drop"),
        format!("ether type vmap {}", set(kinds)),
        "drop".to_owned(),
    ];
    chain(text, &format!("from-{tap}"), &lines);
}
