//! The user network of containers, for real.

use std::env;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use croft_api::net::Publish;
use croft_network::user::{ContainerEnd, Host, Passt, Program, find, names};
use croft_network::{Home, bring_up_loopback};

use super::guest::{ask, connect, kept_from, serve, wait};
use super::namespace::{host, inside, processes, run, within};
use super::whole::{OUTSIDE_4, OUTSIDE_6, at, ip, outside};

const VICTIM: &str = "CROFT_TEST_VICTIM";
/// The first of the host's ids that a container's are (a range of
/// systemd's for containers).
const IDS: u32 = 0x2000_0000;

/// A process in namespaces of its own, which are its container's.
struct Container {
    process: Child,
    network: File,
    user: Option<File>,
}

impl Container {
    /// The container `box`, with a user namespace of its own or without.
    fn start(user: bool) -> Self {
        let mut command = Command::new("unshare");
        if user {
            command.arg("--user");
        }
        let process = command.args(["--net", "sleep", "1000"]).spawn().unwrap();
        let pid = process.id();
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let namespace = |kind: &str| format!("/proc/{pid}/ns/{kind}");
        wait(|| {
            // It is what it is going to be.
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim() == "sleep")
                && fs::read_link(namespace("net")).is_ok_and(|there| there != own)
        });
        if user {
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{pid}/{map}"), format!("0 {IDS} 65536")).unwrap();
            }
        }
        host(&format!("ip netns attach box {pid}"));
        let network = File::open(namespace("net")).unwrap();
        let made = Container {
            process,
            network,
            user: user.then(|| File::open(namespace("user")).unwrap()),
        };
        bring_up_loopback(made.home()).unwrap();
        made
    }

    fn home(&self) -> Home<'_> {
        Home {
            network: self.network.as_fd(),
            user: self.user.as_ref().map(AsFd::as_fd),
        }
    }

    fn end(&self) -> ContainerEnd<'_> {
        ContainerEnd {
            home: self.home(),
            name: "eth0",
            mac: "02:c7:0f:01:02:03".parse().unwrap(),
            mtu: 65520,
            metric: 0,
        }
    }

    fn pasta(&self, publish: &[&str]) -> Result<Passt, String> {
        let publish: Vec<Publish> = publish.iter().map(|text| text.parse().unwrap()).collect();
        let program = find(Program::Pasta).unwrap();
        Passt::start_container(&program, &Host::look(), &publish, &self.end())
            .map_err(|error| error.to_string())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        host("ip netns del box");
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Whether this is the run in namespaces, with somebody outside. `open`: taps
/// are for all, as they are on most hosts.
fn ready(test: &str, open: bool) -> bool {
    if find(Program::Pasta).is_err() {
        println!("skipped: pasta is not installed");
        return false;
    }
    if !inside(test) {
        return false;
    }
    outside();
    host("ip route add default via 192.0.2.2 && ip -6 route add default via 2001:db8::2");
    serve("out", 80);
    for to in [OUTSIDE_4, OUTSIDE_6] {
        // Their link is new, and for whom it is slow once pasta gives up.
        wait(|| ask(at(ip(to), 80)).is_some());
    }
    let mode = if open { "666" } else { "600" };
    host(&format!(
        "mknod -m {mode} /run/tun c 10 200 && mount --bind /run/tun /dev/net/tun"
    ));
    true
}

fn uid(process: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// Sends a datagram; what comes back.
fn echo(to: SocketAddr) -> Option<String> {
    let any: IpAddr = if to.is_ipv4() {
        ip("0.0.0.0")
    } else {
        ip("::")
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut answer = [0; 100];
    // The first may be before whoever answers listens, and who is in the way
    // may be late.
    (0..60).find_map(|_| {
        socket.send_to(b"hello", to).ok()?;
        let length = socket.recv(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    })
}

/// Has somebody in a namespace send datagrams back.
fn answer(namespace: &str, port: u16) {
    within(namespace, move || {
        let socket = UdpSocket::bind(("::", port)).unwrap();
        thread::spawn(move || {
            let mut bytes = [0; 100];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..length], from);
            }
        });
    });
}

/// What a user network does, whoever pasta is.
fn it_works(container: &Container, low: bool) -> Passt {
    let publish = ["8080:80", "5353:53/udp", "80:80"];
    let publish = if low { &publish[..] } else { &publish[..2] };
    let pasta = container.pasta(publish).unwrap();
    serve("box", 80);
    answer("box", 53);
    // The world, from the first moment.
    for (to, seen) in [(OUTSIDE_4, "192.0.2.1"), (OUTSIDE_6, "2001:db8::1")] {
        assert_eq!(connect("box", at(ip(to), 80)).as_deref(), Some(seen));
    }
    // The world reaches what is published, as does this host; no more.
    for to in ["192.0.2.1", "2001:db8::1"] {
        assert!(connect("out", at(ip(to), 8080)).is_some(), "{to}");
        let web = at(ip(to), 80);
        match low {
            true => assert!(connect("out", web).is_some(), "{to}"),
            false => assert!(kept_from("out", web), "{to}"),
        }
        let to = at(ip(to), 5353);
        assert_eq!(within("out", move || echo(to)).as_deref(), Some("hello"));
    }
    assert!(ask(at(ip("127.0.0.1"), 8080)).is_some());
    // What this host serves to itself is not the container's, by any name.
    let _listener = TcpListener::bind("127.0.0.1:9999").unwrap();
    assert!(std::net::TcpStream::connect("127.0.0.1:9999").is_ok());
    for to in ["127.0.0.1", "10.199.15.1"] {
        assert!(kept_from("box", at(ip(to), 9999)), "{to}");
    }
    // Nor by frames as nobody sends them but whoever may send any: here by
    // routes for loopback addresses.
    let heard = UdpSocket::bind("127.0.0.1:9999").unwrap();
    run("box", "sysctl -qw net.ipv4.conf.all.route_localnet=1");
    run("box", "ip route del local 127.0.0.0/8 dev lo table local");
    run("box", "ip route del local 127.0.0.1 dev lo table local");
    run("box", "ip route add 127.0.0.0/8 via 10.199.15.1");
    within("box", || {
        let socket = UdpSocket::bind("10.199.15.15:0").unwrap();
        socket.send_to(b"hello", "127.0.0.1:9999").unwrap();
    });
    heard
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    assert!(heard.recv(&mut [0; 100]).is_err());
    pasta
}

#[test]
fn pasta_has_rights_over_its_container_alone() {
    if !ready("user::pasta_has_rights_over_its_container_alone", true) {
        return;
    }
    let container = Container::start(true);
    let pasta = it_works(&container, false);
    assert_eq!(uid(pasta.id()), IDS);
    drop(pasta);
    // A port of root's takes root, and so does a container that has all of
    // the host's users.
    let pasta = container.pasta(&["80:80"]).unwrap();
    assert_eq!(uid(pasta.id()), 0);
}

#[test]
fn pasta_is_root_where_nobody_else_may() {
    if !ready("user::pasta_is_root_where_nobody_else_may", false) {
        return;
    }
    let container = Container::start(true);
    let pasta = it_works(&container, true);
    assert_eq!(uid(pasta.id()), 0);
    drop((pasta, container));
    let container = Container::start(false);
    it_works(&container, true);
}

#[test]
fn a_container_outlives_its_pasta() {
    if !ready("user::a_container_outlives_its_pasta", true) {
        return;
    }
    let container = Container::start(true);
    let taken = TcpListener::bind("127.0.0.1:8081").unwrap();
    let error = container.pasta(&["127.0.0.1:8081:80"]).unwrap_err();
    assert!(
        error.contains("pasta does not run here") && error.contains("8081"),
        "{error}"
    );
    drop(taken);
    let pasta = container.pasta(&[]).unwrap();
    let state = || run("box", "ip -o addr show eth0");
    let before = state();
    assert!(before.contains("10.199.15.15/24") && before.contains("fdc7:fb1:4e3a::15/64"));
    assert_eq!(names(&Host::look()).addresses.len(), 2);
    host(&format!("kill -9 {}", pasta.id()));
    wait(|| run("box", "ip -o link show eth0").contains("NO-CARRIER"));
    drop(pasta);
    assert!(kept_from("box", at(ip(OUTSIDE_4), 80)));
    let pasta = container.pasta(&[]).unwrap();
    assert_eq!(state(), before);
    for to in [OUTSIDE_4, OUTSIDE_6] {
        wait(|| connect("box", at(ip(to), 80)).is_some());
    }
    drop(pasta);
    // Somebody inside has taken all of it apart.
    run("box", "ip link del eth0");
    let _pasta = container.pasta(&[]).unwrap();
    for to in [OUTSIDE_4, OUTSIDE_6] {
        assert!(connect("box", at(ip(to), 80)).is_some());
    }
}

#[test]
fn pasta_ends_with_whoever_started_it() {
    let test = "user::pasta_ends_with_whoever_started_it";
    let root = env::var(VICTIM);
    if let Ok(root) = root {
        let container = Container::start(root == "no");
        let _pasta = container.pasta(&[]).unwrap();
        println!("it runs");
        thread::sleep(Duration::from_secs(1000));
    }
    if !ready(test, true) {
        return;
    }
    // It gives itself another name when it has started.
    let running = || processes("pas").len();
    for root in ["no", "yes"] {
        let mut victim = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(VICTIM, root)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait(|| running() == 1);
        // It is past its change of rights.
        wait(|| run("box", "ip -o link show eth0 2>&1 || true").contains("LOWER_UP"));
        victim.kill().unwrap();
        victim.wait().unwrap();
        wait(|| running() == 0);
        host(&format!(
            "ip netns del box; kill -9 {}",
            processes("sleep").join(" ")
        ));
    }
}
