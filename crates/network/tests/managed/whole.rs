//! What a network is for.

use std::net::{IpAddr, SocketAddr};

use super::guest::{Guest, ask, connect, kept_from, look_up, nic, serve};
use super::namespace::{add, host, inside, run};
use super::{assert_comes_to, everything, web};

pub const OUTSIDE_4: &str = "192.0.2.2";
pub const OUTSIDE_6: &str = "2001:db8::2";

/// A host outside, which knows this one's addresses and no route to networks
/// behind it.
pub fn outside() {
    add("out");
    host("ip link add up0 type veth peer name eth0 netns out");
    host("ip addr add 192.0.2.1/24 dev up0 && ip addr add 2001:db8::1/64 dev up0 nodad");
    host("ip link set up0 up");
    run("out", &format!("ip addr add {OUTSIDE_4}/24 dev eth0"));
    run("out", &format!("ip addr add {OUTSIDE_6}/64 dev eth0 nodad"));
    run("out", "ip link set eth0 up");
}

pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn instances_reach_each_other_and_the_world() {
    if !inside("whole::instances_reach_each_other_and_the_world") {
        return;
    }
    outside();
    serve("out", 80);
    let networks = web(|_| ());
    let one = Guest::attach(&networks, "web1", &nic(1, |_| ()));
    let published = nic(2, |nic| nic.publish = vec!["8080:80".parse().unwrap()]);
    let two = Guest::attach(&networks, "web2", &published);
    for guest in [&one, &two] {
        guest.configure();
        guest.serve(80);
    }

    // By name.
    let gateway = host("ip -4 -o addr show cr-web | sed 's/.*inet \\([0-9.]*\\).*/\\1/'");
    for (name, guest) in [("web1.croft", &one), ("web2.croft", &two)] {
        let answer = look_up("web1", name, gateway.trim());
        assert!(answer.contains(&guest.ipv4.to_string()), "{answer}");
        assert!(answer.contains(&guest.ipv6.to_string()), "{answer}");
    }

    // Each other, with their own addresses.
    for (from, to) in [(one.ipv4, two.ipv4), (one.ipv6, two.ipv6)] {
        assert_eq!(one.connect(at(to, 80)), Some(from.to_string()));
    }
    // The world, with the host's.
    for (to, seen) in [(OUTSIDE_4, "192.0.2.1"), (OUTSIDE_6, "2001:db8::1")] {
        assert_eq!(one.connect(at(ip(to), 80)).as_deref(), Some(seen));
    }
    // The world reaches what is published, and sees who asks.
    for (to, from) in [("192.0.2.1", OUTSIDE_4), ("2001:db8::1", OUTSIDE_6)] {
        assert_eq!(connect("out", at(ip(to), 8080)).as_deref(), Some(from));
        assert!(kept_from("out", at(ip(to), 80)));
        // So do this host and other instances.
        assert!(ask(at(ip(to), 8080)).is_some(), "{to}");
        assert!(one.connect(at(ip(to), 8080)).is_some(), "{to}");
    }
    assert!(ask(at([127, 0, 0, 1], 8080)).is_some());
    // What is not published is not reached, though there is a route.
    run("out", "ip route add 10.0.0.0/8 via 192.0.2.1");
    run("out", "ip -6 route add fd00::/8 via 2001:db8::1");
    for to in [two.ipv4, two.ipv6] {
        assert!(kept_from("out", at(to, 80)));
    }
    // Nor is what the host serves to itself.
    let listener = std::net::TcpListener::bind("[::]:9999").unwrap();
    assert!(std::net::TcpStream::connect("127.0.0.1:9999").is_ok());
    for to in [ip(gateway.trim()), ip("192.0.2.1"), ip("2001:db8::1")] {
        assert!(one.kept_from(at(to, 9999)), "{to}");
    }
    drop(listener);
}

#[test]
fn a_port_of_the_loopback_address_is_not_the_neighbours() {
    if !inside("whole::a_port_of_the_loopback_address_is_not_the_neighbours") {
        return;
    }
    outside();
    let networks = web(|_| ());
    let ports = ["127.0.0.1:8080:80", "0.0.0.0:8081:80"];
    let published = nic(1, |nic| {
        nic.publish = ports.map(|port| port.parse().unwrap()).to_vec();
    });
    let one = Guest::attach(&networks, "web1", &published);
    one.configure();
    one.serve(80);
    assert!(ask(at([127, 0, 0, 1], 8080)).is_some());
    for port in ports.map(|port| port.split(':').nth(1).unwrap().parse().unwrap()) {
        let to = at(ip("192.0.2.1"), port);
        match port {
            8081 => assert!(connect("out", to).is_some()),
            _ => assert!(kept_from("out", to), "{port}"),
        }
    }
    // A neighbour that has no loopback address of its own sends such packets
    // to this host.
    run("out", "ip addr del 127.0.0.1/8 dev lo");
    run("out", "sysctl -qw net.ipv4.conf.all.route_localnet=1");
    run(
        "out",
        "ip route add 127.0.0.1/32 via 192.0.2.1 src 192.0.2.2",
    );
    assert!(kept_from("out", at([127, 0, 0, 1], 8080)));
}

#[test]
fn deletion_leaves_nothing() {
    if !inside("whole::deletion_leaves_nothing") {
        return;
    }
    host("ip link add up0 type veth peer name up1");
    host("nft add table inet mine '{ chain c { type filter hook input priority 0; }; }'");
    host("sysctl -qw net.ipv6.conf.up0.accept_ra=1 net.ipv6.conf.up1.accept_ra=2");
    let before = everything();
    let name = "web".parse().unwrap();
    let networks = web(|new| new.rules = vec!["ingress allow tcp 80 log".parse().unwrap()]);
    assert!(host("sysctl net.ipv6.conf.up0.accept_ra").contains("= 2"));
    let publish = |nic: &mut croft_api::net::NetworkNic| {
        nic.publish = vec!["8080:80".parse().unwrap()];
    };
    let attached = networks
        .attach(&"web1".parse().unwrap(), &nic(1, publish), 2)
        .unwrap();
    assert_eq!(attached.queues.len(), 2);
    let used = networks.delete(&name).unwrap_err().to_string();
    assert!(used.contains("'web1'"), "{used}");
    // The NIC goes with whoever has its queues.
    drop(attached);
    networks.delete(&name).unwrap();
    assert_comes_to(&before, "all of it");
    assert!(networks.names().unwrap().is_empty());

    // Stopped, it keeps its configuration and nothing else.
    let networks = web(|_| ());
    let there = everything();
    networks.stop(&name).unwrap();
    assert_comes_to(&before, "all of it");
    networks.start(&name).unwrap();
    assert_comes_to(&there, "all of it");
    networks.delete(&name).unwrap();
    assert_comes_to(&before, "all of it");
}

#[test]
fn an_instance_keeps_its_address() {
    if !inside("whole::an_instance_keeps_its_address") {
        return;
    }
    let networks = web(|new| {
        new.ipv4 = croft_network::Subnet::Is("10.9.8.0/29".parse().unwrap());
    });
    std::fs::create_dir_all("/run/croft-test/instances/kept").unwrap();
    let attach = |name: &str, number| {
        let attached = networks.attach(&name.parse().unwrap(), &nic(number, |_| ()), 1);
        attached.map(|attached| (attached.ipv4.unwrap(), attached))
    };
    let first = attach("kept", 1).unwrap().0;
    let (other, held) = attach("passing", 2).unwrap();
    assert_ne!(first, other);
    networks.detach(&"kept".parse().unwrap(), None).unwrap();
    assert_eq!(attach("kept", 1).unwrap().0, first);
    // It is that of an instance that is no more.
    drop(held);
    networks.reconcile().unwrap();
    assert_eq!(attach("third", 3).unwrap().0, other);
    let _held: Vec<_> = (4..8)
        .map(|number| attach(&format!("i{number}"), number).unwrap())
        .collect();
    let full = attach("last", 9).unwrap_err().to_string();
    assert!(full.contains("10.9.8.0/29 has no free address"), "{full}");
}
