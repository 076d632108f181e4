//! What does not pass, frame by frame.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::guest::{Bare, nic};
use super::namespace::{host, inside};
use super::{networks, web};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86DD;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const EVERYBODY: [u8; 6] = [0xFF; 6];
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// For what must come: only a hang is so long.
const PATIENCE: Duration = Duration::from_secs(120);

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An ARP reply: `ip` is at `mac`.
fn arp(frame_from: [u8; 6], mac: [u8; 6], ip: Ipv4Addr, to: [u8; 6]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    let body = [&head[..], &mac, &ip.octets(), &to, &[0; 4]].concat();
    ethernet(to, frame_from, ARP, &body)
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap();
    [
        &ports.0.to_be_bytes()[..],
        &ports.1.to_be_bytes(),
        &length.to_be_bytes(),
        &[0, 0],
        payload,
    ]
    .concat()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    // Long enough for Ethernet: where frames are shown to the rules for IP,
    // padding is cut off.
    let payload = [payload, &[0; 32]].concat();
    let udp = udp(ports, &payload);
    let length = u16::try_from(udp.len() + 20).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, UDP, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = sum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [header, udp].concat()
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, mut payload: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let pseudo = [
        &from.octets()[..],
        &to.octets(),
        &[0, 0],
        &length,
        &[0, 0, 0, protocol],
    ];
    let place = if protocol == UDP { 6 } else { 2 };
    let sum = sum(&[&pseudo.concat()[..], &payload].concat()).to_be_bytes();
    payload[place..place + 2].copy_from_slice(&sum);
    let header = [0x60, 0, 0, 0, length[0], length[1], protocol, 255];
    [&header[..], &from.octets(), &to.octets(), &payload].concat()
}

fn advertisement(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0x60, 0, 0, 0][..], &target.octets()].concat()
}

fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let id = [a ^ 2, b, c, 0xFF, 0xFE, d, e, f];
    let bytes = [&[0xFE, 0x80, 0, 0, 0, 0, 0, 0][..], &id].concat();
    <[u8; 16]>::try_from(bytes).unwrap().into()
}

/// Sends all of `frames` from one to the other, and says which arrive.
fn arriving(from: &Bare, to: &Bare, frames: &[Vec<u8>]) -> Vec<bool> {
    // What the bridge itself sends aside, frames keep their order: the last
    // one is one that passes.
    let last = marker(from, to);
    for frame in frames {
        from.send(frame);
    }
    from.send(&last);
    let there = to.receive(PATIENCE, &last);
    assert!(there.contains(&last), "nothing arrives at all");
    frames.iter().map(|frame| there.contains(frame)).collect()
}

fn marker(from: &Bare, to: &Bare) -> Vec<u8> {
    arp(
        from.mac,
        from.mac,
        from.attached.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED),
        to.mac,
    )
}

#[test]
fn nobody_sends_as_somebody_else() {
    if !inside("filters::nobody_sends_as_somebody_else") {
        return;
    }
    let networks = web(|_| ());
    let evil = Bare::attach(&networks, "evil", &nic(1, |_| ()));
    let good = Bare::attach(&networks, "good", &nic(2, |_| ()));
    let third = Bare::attach(&networks, "third", &nic(3, |_| ()));
    let (mine, theirs) = (evil.mac, third.mac);
    let four = (evil.attached.ipv4.unwrap(), third.attached.ipv4.unwrap());
    let six = (evil.attached.ipv6.unwrap(), third.attached.ipv6.unwrap());
    let to4 = good.attached.ipv4.unwrap();
    let to6 = good.attached.ipv6.unwrap();
    let (local, other) = (link_local(mine), link_local(theirs));
    let nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let gateway6: Ipv6Addr = "fe80::1".parse().unwrap();
    let v4 = |from, ports| ethernet(good.mac, mine, IPV4, &ipv4(from, to4, ports, b"x"));
    let v6 = |from, protocol, payload| {
        let to = if protocol == UDP { to6 } else { nodes };
        let mac = if protocol == UDP { good.mac } else { ALL_NODES };
        ethernet(mac, mine, IPV6, &ipv6(from, to, protocol, payload))
    };
    let datagram = || udp((1000, 1000), b"x");
    // What may pass, and what may not.
    let cases: Vec<(&str, bool, Vec<u8>)> = vec![
        ("IPv4", true, v4(four.0, (1000, 1000))),
        ("IPv4 of another", false, v4(four.1, (1000, 1001))),
        ("IPv4 of nobody", false, v4([203, 0, 113, 1].into(), (1, 2))),
        ("IPv4 without an address", false, v4([0; 4].into(), (1, 3))),
        ("a DHCP server", false, v4(four.0, (67, 68))),
        ("a DHCP request", true, {
            let packet = ipv4([0; 4].into(), [255; 4].into(), (68, 67), b"x");
            ethernet(EVERYBODY, mine, IPV4, &packet)
        }),
        ("another's MAC", false, {
            let packet = ipv4(four.0, to4, (5, 5), b"x");
            ethernet(good.mac, theirs, IPV4, &packet)
        }),
        ("a VLAN tag", false, {
            let inner = [
                &[0, 5][..],
                &IPV4.to_be_bytes(),
                &ipv4(four.1, to4, (6, 6), b"x"),
            ];
            ethernet(good.mac, mine, 0x8100, &inner.concat())
        }),
        (
            "another protocol",
            false,
            ethernet(good.mac, mine, 0x88B5, b"x"),
        ),
        ("a spanning tree", false, {
            ethernet([1, 0x80, 0xC2, 0, 0, 0], mine, 38, &[0x42, 0x42, 3])
        }),
        (
            "ARP of another address",
            false,
            arp(mine, mine, four.1, good.mac),
        ),
        (
            "ARP of the host's",
            false,
            arp(mine, mine, gateway4(four.0), good.mac),
        ),
        (
            "ARP of another MAC",
            false,
            arp(mine, theirs, four.0, good.mac),
        ),
        (
            "an ARP probe",
            true,
            arp(mine, mine, [0; 4].into(), good.mac),
        ),
        ("IPv6", true, v6(six.0, UDP, datagram())),
        (
            "IPv6 by link-local address",
            true,
            v6(local, UDP, datagram()),
        ),
        ("IPv6 of another", false, v6(six.1, UDP, datagram())),
        (
            "IPv6 of another, link-local",
            false,
            v6(other, UDP, datagram()),
        ),
        ("IPv6 of the host", false, v6(gateway6, UDP, datagram())),
        (
            "a DHCPv6 server",
            false,
            v6(local, UDP, udp((547, 546), b"x")),
        ),
        (
            "a router",
            false,
            v6(local, ICMPV6, {
                vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]
            }),
        ),
        (
            "a redirect",
            false,
            v6(local, ICMPV6, {
                [advertisement(137, six.1), six.0.octets().to_vec()].concat()
            }),
        ),
        (
            "a neighbour",
            true,
            v6(six.0, ICMPV6, advertisement(136, six.0)),
        ),
        (
            "a neighbour, link-local",
            true,
            v6(local, ICMPV6, advertisement(136, local)),
        ),
        (
            "another neighbour",
            false,
            v6(six.0, ICMPV6, advertisement(136, six.1)),
        ),
        (
            "the host as a neighbour",
            false,
            v6(local, ICMPV6, advertisement(136, gateway6)),
        ),
        (
            "an address asked for",
            true,
            v6(Ipv6Addr::UNSPECIFIED, ICMPV6, advertisement(135, six.0)),
        ),
        (
            "an address of another asked for",
            false,
            v6(Ipv6Addr::UNSPECIFIED, ICMPV6, advertisement(135, six.1)),
        ),
        (
            "IPv6 without an address",
            false,
            v6(Ipv6Addr::UNSPECIFIED, UDP, datagram()),
        ),
    ];
    let frames: Vec<Vec<u8>> = cases.iter().map(|(.., frame)| frame.clone()).collect();
    let arrived = arriving(&evil, &good, &frames);
    for ((what, expected, _), arrived) in cases.iter().zip(&arrived) {
        assert_eq!(arrived, expected, "{what}");
    }
    // Without its rules the same frames do arrive: the test can fail.
    host("nft flush ruleset");
    let arrived = arriving(&evil, &good, &frames);
    let passed = arrived.iter().filter(|arrived| **arrived).count();
    assert_eq!(passed, frames.len());
    // And the next who looks mends them.
    networks.reconcile().unwrap();
    let arrived = arriving(&evil, &good, &frames);
    assert!(
        cases
            .iter()
            .zip(arrived)
            .all(|((_, expected, _), arrived)| arrived == *expected)
    );
}

fn gateway4(of: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = of.octets();
    [a, b, c, 1].into()
}

#[test]
fn isolated_instances_do_not_reach_each_other() {
    if !inside("filters::isolated_instances_do_not_reach_each_other") {
        return;
    }
    let networks = web(|_| ());
    let name = "web".parse().unwrap();
    let one = Bare::attach(&networks, "one", &nic(1, |nic| nic.isolated = true));
    let two = Bare::attach(&networks, "two", &nic(2, |nic| nic.isolated = true));
    let open = Bare::attach(&networks, "open", &nic(3, |_| ()));
    let within = |patience, from: &Bare, to: &Bare| {
        let frame = marker(from, to);
        from.send(&frame);
        to.receive(patience, &frame).contains(&frame)
    };
    let reaches = |from, to| within(PATIENCE, from, to);
    let kept_from = |from, to| !within(Duration::from_millis(300), from, to);
    assert!(kept_from(&one, &two));
    assert!(reaches(&one, &open));
    assert!(reaches(&open, &two));
    networks
        .set(&name, |config| config.isolated = true)
        .unwrap();
    assert!(kept_from(&open, &two));
    assert!(kept_from(&one, &open));
    networks
        .set(&name, |config| config.isolated = false)
        .unwrap();
    assert!(reaches(&open, &two));
    // Nor by way of the host, whose MAC address both know.
    let packet = ipv4(
        one.attached.ipv4.unwrap(),
        two.attached.ipv4.unwrap(),
        (7, 7),
        b"by the host",
    );
    let bridge = host(
        "cat /proc/net/dev >/dev/null; ip -o link show cr-web | sed 's/.*ether \\([^ ]*\\) .*/\\1/'",
    );
    let bridge: croft_api::net::Mac = bridge.trim().parse().unwrap();
    one.send(&ethernet(bridge.bytes(), one.mac, IPV4, &packet));
    let there = two.receive(Duration::from_millis(500), &[]);
    assert!(
        !there
            .iter()
            .any(|frame| frame.windows(11).any(|part| part == b"by the host")),
        "{there:?}"
    );
}

#[test]
fn a_firewall_decides_between_instances_too() {
    if !inside("filters::a_firewall_decides_between_instances_too") {
        return;
    }
    let networks = web(|_| ());
    let name = "web".parse().unwrap();
    let one = Bare::attach(&networks, "one", &nic(1, |_| ()));
    let two = Bare::attach(&networks, "two", &nic(2, |_| ()));
    let (from, to) = (one.attached.ipv4.unwrap(), two.attached.ipv4.unwrap());
    let frame = |port| ethernet(two.mac, one.mac, IPV4, &ipv4(from, to, (9, port), b"x"));
    let frames = [frame(53), frame(54), frame(55)];
    let set = |rules: &[&str]| {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let changed = networks.set(&name, |config| config.rules = rules);
        match changed {
            Ok(_) => true,
            Err(error) => {
                println!("skipped: {error}");
                false
            }
        }
    };
    assert_eq!(arriving(&one, &two, &frames), [true, true, true]);
    if !set(&["ingress drop udp 53-54 instance two log"]) {
        return;
    }
    assert_eq!(arriving(&one, &two, &frames), [false, false, true]);
    // The first that fits decides.
    assert!(set(&[
        "ingress allow udp 53 instance two",
        "ingress drop udp instance two",
    ]));
    assert_eq!(arriving(&one, &two, &frames), [true, false, false]);
    assert!(set(&["egress drop udp 55 instance one"]));
    assert_eq!(arriving(&one, &two, &frames), [true, true, false]);
    // A rule of another instance, and one without effect.
    assert!(set(&[
        "egress drop udp 55 instance two",
        "ingress drop tcp"
    ]));
    assert_eq!(arriving(&one, &two, &frames), [true, true, true]);
}

#[test]
fn a_bridge_of_the_hosts() {
    if !inside("filters::a_bridge_of_the_hosts") {
        return;
    }
    host("ip link add br0 type bridge && ip link set br0 up mtu 1400");
    let networks = networks();
    let on = |number, spoofing, vlan| {
        let mut spec = nic(number, |_| ());
        spec.kind = croft_api::net::NicKind::Bridge(croft_api::net::BridgeNic {
            bridge: "br0".to_owned(),
            vlan,
            spoofing,
        });
        spec
    };
    let one = Bare::attach(&networks, "one", &on(1, false, None));
    let two = Bare::attach(&networks, "two", &on(2, true, None));
    assert_eq!(one.attached.mtu, 1400);
    let frames = |from: &Bare, to: &Bare| {
        let any = ipv4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), (5, 5), b"x");
        [
            ethernet(to.mac, from.mac, IPV4, &any),
            ethernet(to.mac, [2, 0, 0, 0, 0, 9], IPV4, &any),
        ]
    };
    assert_eq!(arriving(&one, &two, &frames(&one, &two)), [true, false]);
    assert_eq!(arriving(&two, &one, &frames(&two, &one)), [true, true]);
    // Ports of a VLAN need a bridge that knows any (`vlans.rs`).
    let error = networks
        .attach(&"three".parse().unwrap(), &on(3, false, Some(7)), 1)
        .unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("kernel has no VLANs") || error.contains("does not filter VLANs"),
        "{error}"
    );
    assert!(!host("ip link").contains("cr-three"));
    let none = on(4, false, None);
    host("ip link set br0 down && ip link del br0");
    let error = networks
        .attach(&"four".parse().unwrap(), &none, 1)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no interface 'br0'; 'ip link' shows those there are"
    );
}
