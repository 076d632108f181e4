//! What goes wrong is named, and leaves nothing.

use std::net::UdpSocket;

use croft_network::{Mode, NetworkError, NewNetwork, Subnet};

use super::guest::nic;
use super::namespace::{host, inside};
use super::{assert_comes_to, everything, networks, web};

#[test]
fn faults_are_named() {
    if !inside("faults::faults_are_named") {
        return;
    }
    let before = everything();
    let networks = networks();
    let name = "web".parse().unwrap();
    let create = |change: &dyn Fn(&mut NewNetwork)| {
        let mut new = NewNetwork {
            ipv4: Subnet::Is("10.77.0.0/24".parse().unwrap()),
            ..NewNetwork::default()
        };
        change(&mut new);
        networks.create(&name, &new).unwrap_err()
    };

    // Port 53 is taken where names would be served.
    host("sysctl -qw net.ipv4.ip_nonlocal_bind=1");
    let taken = UdpSocket::bind("10.77.0.1:53").unwrap();
    let error = create(&|_| ());
    assert!(matches!(error, NetworkError::PortTaken { .. }), "{error}");
    drop(taken);

    // The name of the bridge is somebody else's.
    host("ip link add cr-web type bridge");
    let error = create(&|_| ());
    assert!(matches!(error, NetworkError::NameTaken { .. }), "{error}");
    host("ip link show cr-web && ip link del cr-web");

    // A route leads there already.
    host("ip addr add 10.77.0.200/30 dev lo");
    let error = create(&|_| ());
    assert!(error.to_string().contains("interface 'lo'"), "{error}");
    host("ip addr del 10.77.0.200/30 dev lo");

    // Uplinks.
    let uplink = |interface: &'static str, vlan| {
        move |new: &mut NewNetwork| {
            *new = NewNetwork {
                mode: Mode::Uplink,
                uplink: Some(interface.to_owned()),
                vlan,
                ..NewNetwork::default()
            };
        }
    };
    let error = create(&uplink("nope", None));
    assert!(matches!(error, NetworkError::NoInterface(_)), "{error}");
    let error = create(&uplink("lo", None));
    assert!(matches!(error, NetworkError::UplinkInUse(_)), "{error}");
    assert_comes_to(&before, "all of it");

    // With one that nobody uses it works.
    host("ip link add up0 type veth peer name up1");
    let mut new = NewNetwork::default();
    uplink("up0", None)(&mut new);
    networks.create(&name, &new).unwrap();
    assert!(host("ip -o link show up0").contains("master cr-web"));
    // It vanishes: the network is named, and others are not affected.
    host("ip link del up0");
    let faults = networks.reconcile().unwrap();
    assert_eq!(faults.len(), 1);
    assert!(matches!(faults[0].error, NetworkError::NoInterface(_)));
    networks
        .create(&"other".parse().unwrap(), &NewNetwork::default())
        .unwrap();
    networks.delete(&"other".parse().unwrap()).unwrap();
    networks.delete(&name).unwrap();

    // A VLAN of one, where the kernel has them (`vlans.rs`).
    host("ip link add up0 type veth peer name up1");
    uplink("up0", Some(20))(&mut new);
    match networks.create(&name, &new) {
        Ok(_) => {
            networks.delete(&name).unwrap();
        }
        Err(error) => assert!(matches!(
            error,
            NetworkError::Kernel {
                module: "8021q",
                ..
            }
        )),
    }
    host("ip link del up0");
    assert_comes_to(&before, "all of it");
}

#[test]
fn what_instances_ask_for_is_checked() {
    if !inside("faults::what_instances_ask_for_is_checked") {
        return;
    }
    let networks = web(|new| new.ipv4 = Subnet::Is("10.77.0.0/24".parse().unwrap()));
    let held = networks
        .attach(
            &"one".parse().unwrap(),
            &nic(1, |nic| nic.publish = vec!["8080:80".parse().unwrap()]),
            1,
        )
        .unwrap();
    let with = everything();
    let fails = |name: &str, spec: &croft_api::net::NicSpec, words: &str| {
        let error = networks
            .attach(&name.parse().unwrap(), spec, 1)
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    let four = |address: &str| {
        let address = address.parse().unwrap();
        nic(2, |nic| nic.ipv4 = Some(address))
    };
    fails("one", &nic(1, |_| ()), "is attached already");
    fails("two", &nic(1, |_| ()), "is the MAC address of 'one'");
    fails("two", &four("10.77.0.2"), "is the address of 'one'");
    fails("two", &four("10.77.0.1"), "is no address for an instance");
    fails("two", &four("10.78.0.2"), "is no address for an instance");
    fails(
        "two",
        &nic(2, |nic| nic.network = "nope".to_owned()),
        "there is no network 'nope'",
    );
    let publish = |text: &str| {
        let text = text.parse().unwrap();
        nic(2, |nic| nic.publish = vec![text])
    };
    fails(
        "two",
        &publish("127.0.0.1:8080:22"),
        "is published already by net0 of 'one'",
    );
    let _listener = std::net::TcpListener::bind("127.0.0.1:2222").unwrap();
    fails("two", &publish("2222:22"), "in use");
    fails("two", &publish("192.0.2.9:2223:22"), "cannot be published");
    fails("two", &publish("[::1]:2223:22"), "take 127.0.0.1");
    let mut odd = nic(2, |_| ());
    odd.name = "../x".to_owned();
    fails("two", &odd, "cannot be attached");
    assert_comes_to(&with, "all of it");
    drop(held);
}
