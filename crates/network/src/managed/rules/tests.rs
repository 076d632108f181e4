//! The text, beside what it should be.

use croft_api::net::Mac;

use super::*;
use crate::managed::config::Mode;
use crate::managed::config::tests::config;
use crate::managed::firewall::Action;
use crate::managed::store::Place;

/// The first instance of network `web`, or of none.
fn attachment(number: u8, network: &str, publish: &[&str]) -> Attachment {
    let mac = Mac::new([0x02, 0xC7, 0x0F, 0, 0, number]).unwrap();
    Attachment {
        instance: format!("web{number}"),
        nic: "net0".to_owned(),
        interface: format!("ct0000000{number}"),
        mac,
        limits: Default::default(),
        link: true,
        place: Place::Network {
            network: network.parse().unwrap(),
            ipv4: Some([10, 1, 2, number].into()),
            ipv6: Some(format!("fd01:2:3::{number}").parse().unwrap()),
            isolated: false,
            publish: publish.iter().map(|text| text.parse().unwrap()).collect(),
        },
    }
}

fn text(networks: &[(NetworkName, NetworkConfig)], attachments: &[Attachment]) -> String {
    let ruleset = Ruleset {
        table: "croft",
        networks,
        attachments,
        guard4: true,
        guard6: false,
    };
    ruleset.text()
}

fn web(change: impl FnOnce(&mut NetworkConfig)) -> Vec<(NetworkName, NetworkConfig)> {
    let mut config = config();
    change(&mut config);
    vec![("web".parse().unwrap(), config)]
}

/// The lines of a chain.
fn lines<'a>(text: &'a str, chain: &str) -> Vec<&'a str> {
    let head = format!("chain {chain} {{");
    text.lines()
        .skip_while(|line| line.trim() != head)
        .skip(1)
        .take_while(|line| line.trim() != "}")
        .map(str::trim)
        .collect()
}

#[test]
fn nothing_is_no_table() {
    let expected = "add table inet croft\ndelete table inet croft\n\
                    add table bridge croft\ndelete table bridge croft\n";
    assert_eq!(text(&[], &[]), expected);
}

#[test]
fn a_network_with_an_instance() {
    let text = text(
        &web(|_| ()),
        &[attachment(
            5,
            "web",
            &["8080:80", "[2001:db8::1]:53:53/udp"],
        )],
    );
    let golden = include_str!("golden.nft");
    assert_eq!(text, golden, "\n{text}");
}

#[test]
fn ports_of_loopback_addresses_are_for_this_host_alone() {
    let ports = ["127.0.0.1:8080:80", "0.0.0.0:8081:80", "[::]:8082:80"];
    let text = text(&web(|_| ()), &[attachment(5, "web", &ports)]);
    let local = "ip daddr 127.0.0.1 tcp dport 8080 dnat ip to 10.1.2.5:80";
    assert!(lines(&text, "output").contains(&local));
    assert!(!lines(&text, "prerouting").contains(&local));
    // Whoever names no address in particular means all of them.
    for line in [
        "meta nfproto ipv4 fib daddr type local tcp dport 8081 dnat ip to 10.1.2.5:80",
        "meta nfproto ipv6 fib daddr type local tcp dport 8082 dnat ip6 to [fd01:2:3::5]:80",
    ] {
        assert!(lines(&text, "prerouting").contains(&line), "{text}");
    }
}

#[test]
fn rules_of_people() {
    let networks = web(|config| {
        config.rules = [
            "ingress allow tcp 22,8000-8080 from 192.168.1.0/24 instance web5 log",
            "ingress drop udp from fd00::/8",
            "egress reject icmp",
            "egress allow to 10.0.0.0/8 instance web5",
            "egress drop instance nobody",
        ]
        .map(|text| text.parse().unwrap())
        .to_vec();
        config.egress = Action::Reject;
    });
    let text = text(&networks, &[attachment(5, "web", &[])]);
    let fits = "ip saddr 192.168.1.0/24 ip daddr { 10.1.2.5 } tcp dport { 22, 8000-8080 }";
    let limit = "limit rate 10/second burst 20 packets";
    assert_eq!(
        lines(&text, "web-ingress"),
        [
            &format!("{fits} {limit} log prefix \"croft web ingress allow: \""),
            &format!("{fits} accept"),
            "ip6 saddr fd00::/8 meta l4proto udp drop",
            "ct status dnat accept",
            "iifname \"cr-web\" accept",
            "drop",
        ]
    );
    assert_eq!(
        lines(&text, "web-egress"),
        [
            "oifname != \"cr-web\" ip saddr != 10.1.2.0/24 drop",
            "oifname != \"cr-web\" ip6 saddr != fd01:2:3::/64 drop",
            "meta l4proto { icmp, ipv6-icmp } reject with icmpx admin-prohibited",
            "ip daddr 10.0.0.0/8 ip saddr { 10.1.2.5 } return",
            "oifname \"cr-web\" return",
            "reject with icmpx admin-prohibited",
        ]
    );
}

#[test]
fn isolation_holds_on_the_way_by_the_host() {
    let all = text(&web(|config| config.isolated = true), &[]);
    assert!(lines(&all, "web-ingress").contains(&"iifname \"cr-web\" drop"));
    let mut some = [attachment(5, "web", &[]), attachment(6, "web", &[])];
    for attachment in &mut some {
        if let Place::Network { isolated, .. } = &mut attachment.place {
            *isolated = true;
        }
    }
    let some = text(&web(|_| ()), &some);
    let both = "{ 10.1.2.5, 10.1.2.6 }";
    let drop = format!("ip saddr {both} ip daddr {both} drop");
    assert!(lines(&some, "web-ingress").contains(&drop.as_str()));
}

#[test]
fn a_closed_network_leads_nowhere() {
    let networks = web(|config| config.mode = Mode::Closed);
    let text = text(&networks, &[]);
    let reject = "oifname != \"cr-web\" reject with icmpx admin-prohibited";
    assert!(lines(&text, "web-egress").contains(&reject));
    assert!(!text.contains("masquerade"));
}

#[test]
fn on_bridges_of_others_addresses_are_not_looked_at() {
    let mut attachment = attachment(5, "web", &[]);
    let place = |spoofing| Place::Bridge {
        bridge: "br0".to_owned(),
        vlan: None,
        spoofing,
    };
    attachment.place = place(false);
    let filtered = text(&[], std::slice::from_ref(&attachment));
    assert_eq!(
        lines(&filtered, "ip4-ct00000005"),
        ["udp sport 67 drop", "accept"]
    );
    assert_eq!(
        lines(&filtered, "from-ct00000005")[0],
        "ether saddr != 02:c7:0f:00:00:05 drop"
    );
    attachment.place = place(true);
    let free = text(&[], &[attachment]);
    assert!(!free.contains("ct00000005"));
}

#[test]
fn what_is_too_much_of_a_container_is_dropped() {
    let mut attachment = attachment(5, "web", &[]);
    attachment.place = Place::Bridge {
        bridge: "br0".to_owned(),
        vlan: None,
        spoofing: true,
    };
    // Those to it wait, and nobody but the host could let them pass.
    attachment.limits.inbound.bytes_per_second = Some(100_000_000);
    attachment.limits.inbound.frames_per_second = Some(500);
    attachment.limits.outbound.bytes_per_second = Some(100_000_000);
    attachment.limits.outbound.frames_per_second = Some(50);
    let mut unlimited = attachment.clone();
    unlimited.limits = Default::default();
    unlimited.limits.outbound.bytes_per_second = Some(u64::MAX);
    assert!(!text(&[], &[unlimited]).contains("limit rate over"));
    let text = text(&[], &[attachment]);
    let (_, text) = text.split_once("table bridge croft {").unwrap();
    assert_eq!(
        lines(text, "in-ct00000005"),
        ["limit rate over 500/second burst 50 packets drop"]
    );
    assert_eq!(
        lines(text, "out-ct00000005"),
        [
            "limit rate over 50/second burst 16 packets drop",
            "limit rate over 125000000 bytes/second burst 12500000 bytes drop"
        ]
    );
    assert_eq!(
        lines(text, "postrouting"),
        [
            "type filter hook postrouting priority -300; policy accept;",
            "oifname vmap { \"ct00000005\" : jump in-ct00000005 }"
        ]
    );
    let jump = "iifname vmap { \"ct00000005\" : jump out-ct00000005 }";
    assert!(lines(text, "prerouting").contains(&jump));
}
