//! VLANs, where the kernel has any: a network on one of an uplink's, and ports
//! of bridges that the host has.
//!
//! ```text
//!  one ── cr-web ── cv-web (20) ── up0 ═══ trunk ─┬─ 20 ── far20
//!  two ─┘                          │              ├─ 30 ── far30
//!                           this host             └─ without a tag: far
//! ```

use croft_api::net::{BridgeNic, NicKind, NicSpec};
use croft_network::{Mode, NetworkError, NewNetwork};

use super::guest::{Guest, ask, ask_once, connect, kept_from, nic, serve};
use super::namespace::{add, host, inside, run};
use super::whole::{at, ip};
use super::{assert_comes_to, everything, networks};

/// Whom there is at the other end of the trunk: the same network thrice.
const FAR: [(&str, &str); 3] = [
    ("far", "10.20.0.1"),
    ("far20", "10.20.0.2"),
    ("far30", "10.20.0.3"),
];

/// Makes a trunk, `up0`, and who is at its other end. False where the kernel
/// has no VLANs.
fn trunk() -> bool {
    add("far");
    host("ip link add up0 type veth peer name trunk netns far && ip link set up0 up");
    run("far", "ip link set trunk up");
    for vlan in [20, 30] {
        let name = format!("far{vlan}");
        add(&name);
        let made = host(&format!(
            "ip -n far link add link trunk name tagged netns {name} type vlan id {vlan} 2>&1 \
             && echo made || true"
        ));
        if !made.contains("made") {
            println!("skipped: this kernel has no VLANs: {made}");
            return false;
        }
        run(&name, "ip link set tagged up");
    }
    for (name, address) in FAR {
        let interface = if name == "far" { "trunk" } else { "tagged" };
        run(name, &format!("ip addr add {address}/24 dev {interface}"));
        serve(name, 80);
    }
    true
}

/// Somebody with this address reaches this one alone of [`FAR`], who sees it.
#[track_caller]
fn assert_reaches(from: &str, address: &str, only: &str) {
    for (name, to) in FAR {
        let to = at(ip(to), 80);
        if name == only {
            assert_eq!(connect(from, to).as_deref(), Some(address), "{name}");
        } else {
            assert!(kept_from(from, to), "{from} reaches {name}");
        }
    }
}

fn address(name: &str, address: &str) {
    run(name, &format!("ip addr add {address}/24 dev eth0"));
    serve(name, 80);
}

#[test]
fn a_network_is_one_of_an_uplinks() {
    if !inside("vlans::a_network_is_one_of_an_uplinks") || !trunk() {
        return;
    }
    // The uplink is the host's own all the same.
    host("ip addr add 10.20.0.9/24 dev up0");
    let before = everything();
    let networks = networks();
    let name = "web".parse().unwrap();
    let new = NewNetwork {
        mode: Mode::Uplink,
        uplink: Some("up0".to_owned()),
        vlan: Some(20),
        ..NewNetwork::default()
    };
    networks.create(&name, &new).unwrap();
    for (number, instance, own) in [(1, "one", "10.20.0.11"), (2, "two", "10.20.0.12")] {
        assert_eq!(
            Guest::plug(&networks, instance, &nic(number, |_| ())),
            (None, None)
        );
        address(instance, own);
    }
    assert_reaches("one", "10.20.0.11", "far20");
    assert_reaches("two", "10.20.0.12", "far20");
    assert!(connect("one", at(ip("10.20.0.12"), 80)).is_some());
    // In by the VLAN alone, and the host is not in it.
    assert!(connect("far20", at(ip("10.20.0.11"), 80)).is_some());
    for other in ["far", "far30"] {
        assert!(kept_from(other, at(ip("10.20.0.11"), 80)), "{other}");
    }
    assert_eq!(ask_once(at(ip("10.20.0.11"), 80)), None);
    assert_eq!(ask(at(ip("10.20.0.1"), 80)).as_deref(), Some("10.20.0.9"));

    // What somebody deletes is mended.
    host("ip link del cv-web");
    assert!(networks.reconcile().unwrap().is_empty());
    assert_reaches("one", "10.20.0.11", "far20");

    for instance in ["one", "two"] {
        networks.detach(&instance.parse().unwrap(), None).unwrap();
        host(&format!("ip netns del {instance}"));
    }
    networks.delete(&name).unwrap();
    assert_comes_to(&before, "all of it");
}

#[test]
fn ports_of_a_bridge_are_in_theirs() {
    if !inside("vlans::ports_of_a_bridge_are_in_theirs") || !trunk() {
        return;
    }
    host("ip link add br0 type bridge vlan_filtering 1 && ip link set br0 up");
    host("ip link set up0 master br0");
    host("bridge vlan add dev up0 vid 20 && bridge vlan add dev up0 vid 30");
    let networks = networks();
    let on = |number, vlan| NicSpec {
        kind: NicKind::Bridge(BridgeNic {
            bridge: "br0".to_owned(),
            vlan,
            spoofing: false,
        }),
        ..nic(number, |_| ())
    };
    let guests = [
        ("one", Some(20), "10.20.0.11", "far20"),
        ("two", Some(20), "10.20.0.12", "far20"),
        ("three", Some(30), "10.20.0.13", "far30"),
        ("four", None, "10.20.0.14", "far"),
    ];
    for (number, (name, vlan, own, _)) in (1..).zip(guests) {
        Guest::plug(&networks, name, &on(number, vlan));
        address(name, own);
    }
    for (name, _, own, far) in guests {
        assert_reaches(name, own, far);
    }
    assert!(connect("one", at(ip("10.20.0.12"), 80)).is_some());
    for other in ["10.20.0.13", "10.20.0.14"] {
        assert!(kept_from("one", at(ip(other), 80)), "{other}");
    }
    // A bridge that does not filter has no VLANs.
    host("ip link set br0 type bridge vlan_filtering 0");
    let error = networks
        .attach(&"five".parse().unwrap(), &on(5, Some(20)), 1)
        .unwrap_err();
    assert!(matches!(error, NetworkError::NoFiltering(_)), "{error}");
}
