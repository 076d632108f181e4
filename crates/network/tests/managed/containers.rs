//! Containers on networks: namespaces of this host, at the far end of pairs.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use croft_api::net::NicSpec;
use croft_network::{
    Addressing, Home, Inner, Joined, Names, NetworkError, Networks, bring_up_loopback,
};

use super::guest::{Guest, ask, ask_once, connect, kept_from, look_up, nic, serve, wait};
use super::namespace::{host, inside, run, within};
use super::whole::{OUTSIDE_4, OUTSIDE_6, at, ip, outside};
use super::{assert_comes_to, everything, web};

/// A container as a network sees it.
struct Container {
    name: String,
    joined: Joined,
}

impl Container {
    /// One whose addresses it is given.
    fn attach(networks: &Networks, name: &str, nic: &NicSpec) -> Self {
        Container::try_attach(networks, name, nic, Addressing::Given).unwrap()
    }

    fn try_attach(
        networks: &Networks,
        name: &str,
        nic: &NicSpec,
        addressing: Addressing,
    ) -> Result<Self, NetworkError> {
        host(&format!("ip netns add {name}"));
        let namespace = File::open(format!("/run/netns/{name}")).unwrap();
        let home = Home {
            network: namespace.as_fd(),
            user: None,
        };
        bring_up_loopback(home).unwrap();
        let inner = Inner {
            namespace: namespace.as_fd(),
            name: "eth0",
            addressing,
            metric: 0,
        };
        let joined = networks.attach_container(&name.parse().unwrap(), nic, &inner)?;
        Ok(Container {
            name: name.to_owned(),
            joined,
        })
    }

    fn change(&self, networks: &Networks, nic: &NicSpec) -> Result<(), NetworkError> {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let name = self.name.parse().unwrap();
        networks.change_container(&name, nic, namespace.as_fd(), "eth0")
    }

    fn ipv4(&self) -> IpAddr {
        self.joined.ipv4.unwrap().addr().into()
    }

    fn ipv6(&self) -> IpAddr {
        self.joined.ipv6.unwrap().addr().into()
    }

    fn serve(&self, port: u16) {
        serve(&self.name, port);
    }

    fn connect(&self, to: SocketAddr) -> Option<String> {
        connect(&self.name, to)
    }

    fn kept_from(&self, to: SocketAddr) -> bool {
        kept_from(&self.name, to)
    }

    /// The addresses of a name, by the resolvers that it is told.
    fn look_up(&self, name: &str) -> String {
        let text = Names::resolv_conf(std::slice::from_ref(&self.joined.names));
        assert!(text.contains("search croft"), "{text}");
        let resolvers = text.lines().filter_map(|l| l.strip_prefix("nameserver "));
        resolvers.map(|at| look_up(&self.name, name, at)).collect()
    }
}

#[test]
fn containers_and_machines_reach_each_other_and_the_world() {
    if !inside("containers::containers_and_machines_reach_each_other_and_the_world") {
        return;
    }
    outside();
    serve("out", 80);
    let networks = web(|_| ());
    let one = Container::attach(&networks, "web1", &nic(1, |_| ()));
    let published = nic(2, |nic| nic.publish = vec!["8080:80".parse().unwrap()]);
    let two = Container::attach(&networks, "web2", &published);
    let machine = Guest::attach(&networks, "vm", &nic(3, |_| ()));
    machine.configure();
    machine.serve(80);
    for container in [&one, &two] {
        container.serve(80);
    }
    // All of it is there from the start: nobody asked for an address.
    assert!(run("web1", "ip -o link show lo").contains("UP"));

    // By name.
    let addresses = [
        ("web2.croft", two.ipv4(), two.ipv6()),
        ("vm.croft", machine.ipv4, machine.ipv6),
    ];
    for (name, four, six) in addresses {
        let answer = one.look_up(name);
        for address in [four, six] {
            assert_eq!(answer.matches(&address.to_string()).count(), 2, "{answer}");
        }
    }
    let hosts = Names::hosts("web1", std::slice::from_ref(&one.joined.names));
    assert!(hosts.contains(&format!("{} web1.croft web1\n", one.ipv4())));

    // Each other, with their own addresses, and the machine.
    for (from, to) in [
        (one.ipv4(), two.ipv4()),
        (one.ipv6(), two.ipv6()),
        (one.ipv4(), machine.ipv4),
        (one.ipv6(), machine.ipv6),
    ] {
        assert_eq!(one.connect(at(to, 80)), Some(from.to_string()), "{to}");
    }
    for to in [one.ipv4(), one.ipv6()] {
        assert!(machine.connect(at(to, 80)).is_some(), "{to}");
    }
    // The world, with the host's.
    for (to, seen) in [(OUTSIDE_4, "192.0.2.1"), (OUTSIDE_6, "2001:db8::1")] {
        assert_eq!(one.connect(at(ip(to), 80)).as_deref(), Some(seen));
    }
    // The world reaches what is published, and so does this host.
    for (to, from) in [("192.0.2.1", OUTSIDE_4), ("2001:db8::1", OUTSIDE_6)] {
        assert_eq!(connect("out", at(ip(to), 8080)).as_deref(), Some(from));
        assert!(kept_from("out", at(ip(to), 80)));
        assert!(ask(at(ip(to), 8080)).is_some(), "{to}");
        assert!(one.connect(at(ip(to), 8080)).is_some(), "{to}");
    }
    assert!(ask(at([127, 0, 0, 1], 8080)).is_some());
    // What the host serves to itself is not reached.
    let _listener = std::net::TcpListener::bind("[::]:9999").unwrap();
    for to in one
        .joined
        .names
        .resolvers
        .iter()
        .copied()
        .chain([ip("192.0.2.1")])
    {
        assert!(one.kept_from(at(to, 9999)), "{to}");
    }
}

#[test]
fn a_container_with_a_system_asks_for_its_address() {
    if !inside("containers::a_container_with_a_system_asks_for_its_address") {
        return;
    }
    let networks = web(|_| ());
    let attached =
        Container::try_attach(&networks, "sys", &nic(1, |_| ()), Addressing::Asked).unwrap();
    assert!(!run("sys", "ip -o addr show eth0").contains("inet"));
    run("sys", "sysctl -qw net.ipv6.conf.eth0.accept_dad=0");
    run("sys", "ip link set eth0 up");
    let guest = Guest {
        name: attached.name.clone(),
        ipv4: attached.ipv4(),
        ipv6: attached.ipv6(),
    };
    // The same addresses.
    guest.configure();
}

#[test]
fn a_container_sends_as_nobody_else() {
    if !inside("containers::a_container_sends_as_nobody_else") {
        return;
    }
    let networks = web(|_| ());
    let evil = Container::attach(&networks, "evil", &nic(1, |_| ()));
    let good = Container::attach(&networks, "good", &nic(2, |_| ()));
    let third = Container::attach(&networks, "third", &nic(3, |_| ()));
    good.serve(80);
    assert!(evil.connect(at(good.ipv4(), 80)).is_some());
    assert!(evil.connect(at(good.ipv6(), 80)).is_some());
    // As root in its own namespace it can take any address: they lead nowhere.
    for (own, other, to) in [
        (evil.ipv4(), third.ipv4(), good.ipv4()),
        (evil.ipv6(), third.ipv6(), good.ipv6()),
    ] {
        let prefix = if own.is_ipv4() { 24 } else { 64 };
        run("evil", &format!("ip addr flush dev eth0 to {own}"));
        run("evil", &format!("ip addr add {other}/{prefix} dev eth0"));
        // It may be seen with what is its own all the same: an address is used
        // only when a worker of the kernel's, which may be late, has seen to it.
        let seen = within("evil", move || ask_once(at(to, 80)));
        let harmless = seen.as_deref().is_none_or(|seen| seen.starts_with("fe80:"));
        assert!(harmless, "{other}: {seen:?}");
        run("evil", &format!("ip addr flush dev eth0 to {other}"));
        run("evil", &format!("ip addr add {own}/{prefix} dev eth0"));
        assert!(evil.connect(at(to, 80)).is_some(), "{own}");
    }
    let mac = nic(1, |_| ()).mac;
    run("evil", "ip link set eth0 address 02:c7:0f:00:00:03");
    assert!(evil.kept_from(at(good.ipv4(), 80)));
    run("evil", &format!("ip link set eth0 address {mac}"));
    assert!(evil.connect(at(good.ipv4(), 80)).is_some());
}

#[test]
fn isolated_containers_reach_the_host_alone() {
    if !inside("containers::isolated_containers_reach_the_host_alone") {
        return;
    }
    outside();
    serve("out", 80);
    let networks = web(|_| ());
    let isolated = |number| nic(number, |nic| nic.isolated = true);
    let one = Container::attach(&networks, "one", &isolated(1));
    let two = Container::attach(&networks, "two", &isolated(2));
    let open = Container::attach(&networks, "open", &nic(3, |_| ()));
    for container in [&one, &two, &open] {
        container.serve(80);
    }
    assert!(one.kept_from(at(two.ipv4(), 80)));
    assert!(one.kept_from(at(two.ipv6(), 80)));
    assert!(one.connect(at(open.ipv4(), 80)).is_some());
    assert!(one.connect(at(ip(OUTSIDE_4), 80)).is_some());
}

#[test]
fn what_a_container_may_do_is_changed_while_it_runs() {
    if !inside("containers::what_a_container_may_do_is_changed_while_it_runs") {
        return;
    }
    let networks = web(|_| ());
    let mut spec = nic(1, |_| ());
    let one = Container::attach(&networks, "one", &spec);
    let two = Container::attach(&networks, "two", &nic(2, |_| ()));
    two.serve(80);
    let carried = |up: bool| wait(|| carrier("one") == up);
    assert!(one.connect(at(two.ipv4(), 80)).is_some());
    spec.link = false;
    one.change(&networks, &spec).unwrap();
    carried(false);
    assert!(one.kept_from(at(two.ipv4(), 80)));
    // It stays so.
    networks.reconcile().unwrap();
    assert!(!carrier("one"));
    spec.link = true;
    one.change(&networks, &spec).unwrap();
    carried(true);
    // Whom it asked for meanwhile it takes for lost for a moment.
    wait(|| one.connect(at(two.ipv4(), 80)).is_some());

    // Four frames a second, after sixteen: each connection needs several.
    spec.limits.outbound.frames_per_second = Some(4);
    one.change(&networks, &spec).unwrap();
    let began = Instant::now();
    let to = at(two.ipv4(), 80);
    let mut connections = 0;
    while began.elapsed() < Duration::from_secs(4) {
        connections += u32::from(within("one", move || ask_once(to)).is_some());
    }
    // However long it was.
    let frames = 16.0 + 4.0 * began.elapsed().as_secs_f64();
    assert!(
        f64::from(connections) < frames / 1.5,
        "{connections} connections with {frames} frames"
    );
    spec.limits = Default::default();
    one.change(&networks, &spec).unwrap();
    for _ in 0..20 {
        assert!(one.connect(at(two.ipv4(), 80)).is_some());
    }
    spec.name = "net7".to_owned();
    let error = one.change(&networks, &spec).unwrap_err();
    assert!(matches!(error, NetworkError::NotAttached { .. }), "{error}");
}

#[test]
fn what_is_too_much_waits() {
    if !inside("containers::what_is_too_much_waits") {
        return;
    }
    let networks = web(|_| ());
    let limited = |inbound, outbound| {
        let mut spec = nic(1, |_| ());
        spec.limits.inbound.bytes_per_second = inbound;
        spec.limits.outbound.bytes_per_second = outbound;
        spec
    };
    let one = Container::attach(&networks, "one", &limited(Some(RATE), None));
    let two = Container::attach(&networks, "two", &nic(2, |_| ()));
    // It is near the limit, and does not lose what is more: that would take
    // TCP far below it, each time.
    let near = |from: &Container, to: &Container, what: &str| {
        let fast = |time: f64| {
            let part = SENT as f64 / time / RATE as f64;
            assert!(part <= 1.05, "{what}: {part} of the limit");
            part >= 0.6
        };
        let near = (0..ATTEMPTS).any(|_| fast(transfer(from, to)));
        assert!(near, "{what}: far below the limit");
    };
    let unlimited = |from: &Container, to: &Container, what: &str| {
        let fast = |time: f64| SENT as f64 / time > 2.0 * RATE as f64;
        let unlimited = (0..ATTEMPTS).any(|_| fast(transfer(from, to)));
        assert!(unlimited, "{what}: not unlimited");
    };
    near(&two, &one, "in, from the start");
    one.change(&networks, &limited(None, Some(RATE))).unwrap();
    near(&one, &two, "out, changed");
    unlimited(&two, &one, "in");
    // It can take its own queue away, but not get far with that: nftables lets
    // pass at once what passes in a second, and a burst.
    run("one", "tc qdisc del dev eth0 root");
    let time = transfer(&one, &two) + transfer(&one, &two);
    let most = RATE as f64 * (2.5 + time);
    assert!(
        2.0 * SENT as f64 <= most,
        "out, by a trick: all in {time} s"
    );
    one.change(&networks, &limited(None, None)).unwrap();
    unlimited(&one, &two, "out");
}

/// The limit of the test, in bytes in a second.
const RATE: u64 = 4_000_000;
/// What one connection sends, in bytes.
const SENT: u64 = 8_000_000;
/// How often a transfer may be slow on a busy host that is not to be slow each
/// time.
const ATTEMPTS: u32 = 30;

/// Seconds from before one connection until all that it sends is there: a
/// stall of the host's makes it more, never less.
fn transfer(from: &Container, to: &Container) -> f64 {
    let address = at(to.ipv4(), 5000);
    let receiver = to.name.clone();
    let (ready, listens) = std::sync::mpsc::channel();
    let receiving = std::thread::spawn(move || {
        within(&receiver, move || {
            let listener = std::net::TcpListener::bind(address).unwrap();
            ready.send(()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            let received = std::io::copy(&mut &stream, &mut std::io::sink()).unwrap();
            assert_eq!(received, SENT);
        })
    });
    listens.recv().unwrap();
    let began = Instant::now();
    within(&from.name, move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let mut bytes = std::io::Read::take(std::io::repeat(7), SENT);
        std::io::copy(&mut bytes, &mut stream).unwrap();
    });
    receiving.join().unwrap();
    began.elapsed().as_secs_f64()
}

/// Whether the NIC of a container has a carrier.
fn carrier(name: &str) -> bool {
    !run(name, "ip -o link show eth0").contains("NO-CARRIER")
}

#[test]
fn a_container_leaves_nothing() {
    if !inside("containers::a_container_leaves_nothing") {
        return;
    }
    let before = everything();
    let networks = web(|_| ());
    let with = everything();
    let publish = |nic: &mut croft_api::net::NetworkNic| {
        nic.publish = vec!["8080:80".parse().unwrap()];
    };
    let name = "web1".parse().unwrap();
    // It is detached.
    let one = Container::attach(&networks, "web1", &nic(1, publish));
    let used = networks.delete(&"web".parse().unwrap()).unwrap_err();
    assert!(used.to_string().contains("'web1'"), "{used}");
    networks.detach(&name, None).unwrap();
    assert!(!run("web1", "ip -o link").contains("eth0"));
    host("ip netns del web1");
    assert_comes_to(&with, "all of it");
    drop(one);

    // It is killed: its interfaces go, and rules with the next who looks.
    Container::attach(&networks, "web1", &nic(1, publish));
    host("ip netns del web1");
    wait(|| !host("ip -o link").contains("link-netns"));
    networks.reconcile().unwrap();
    assert_comes_to(&with, "all of it");

    // It is killed and started at once, before its interfaces are gone.
    let first = Container::attach(&networks, "web1", &nic(1, publish));
    host("ip netns del web1");
    let again = Container::attach(&networks, "web1", &nic(1, publish));
    assert_eq!(first.joined, again.joined);
    again.serve(80);
    assert!(ask(at([127, 0, 0, 1], 8080)).is_some());
    host("ip netns del web1");

    // What fails leaves nothing either: the name is taken in there.
    networks.detach(&name, None).unwrap();
    host("ip netns add taken && ip -n taken link add eth0 type veth peer name other");
    let namespace = File::open("/run/netns/taken").unwrap();
    let inner = Inner {
        namespace: namespace.as_fd(),
        name: "eth0",
        addressing: Addressing::Given,
        metric: 0,
    };
    let failed = networks.attach_container(&name, &nic(1, publish), &inner);
    assert!(failed.is_err());
    assert_comes_to(&with, "all of it");
    networks.delete(&"web".parse().unwrap()).unwrap();
    assert_comes_to(&before, "all of it");
    assert!(
        networks
            .attach_container(&name, &nic(1, |_| ()), &inner)
            .is_err()
    );
}
