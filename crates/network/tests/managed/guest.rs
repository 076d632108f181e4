//! An instance as a network sees it: somebody at the other end of a tap.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use croft_api::net::{Mac, NetworkNic, NicKind, NicLimits, NicSpec};
use croft_net::{HEADER_LEN, open_tap};
use croft_network::{Attached, Networks};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::namespace::{add, host, run, within};

/// The NIC `net0` on a network.
pub fn nic(number: u8, change: impl FnOnce(&mut NetworkNic)) -> NicSpec {
    let mut on = NetworkNic {
        network: "web".to_owned(),
        ipv4: None,
        ipv6: None,
        isolated: false,
        publish: Vec::new(),
    };
    change(&mut on);
    NicSpec {
        name: "net0".to_owned(),
        mac: Mac::new([0x02, 0xC7, 0x0F, 0, 0, number]).unwrap(),
        mtu: None,
        queues: None,
        limits: NicLimits::default(),
        link: true,
        kind: NicKind::Network(on),
    }
}

/// An instance whose frames the test itself sends and receives.
pub struct Bare {
    pub mac: [u8; 6],
    pub attached: Attached,
}

impl Bare {
    pub fn attach(networks: &Networks, name: &str, nic: &NicSpec) -> Self {
        let attached = networks.attach(&name.parse().unwrap(), nic, 1).unwrap();
        Bare {
            mac: nic.mac.bytes(),
            attached,
        }
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) {
        let mut bytes = vec![0; HEADER_LEN];
        bytes.extend(frame);
        let queue = &self.attached.queues[0];
        assert_eq!(rustix::io::write(queue, &bytes).unwrap(), bytes.len());
    }

    /// The frames that come within `patience`, or until `last` is one.
    pub fn receive(&self, patience: Duration, last: &[u8]) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut frames = Vec::new();
        while let Some(frame) = read(&self.attached.queues[0], deadline) {
            let frame = frame[HEADER_LEN..].to_vec();
            let done = frame == last;
            frames.push(frame);
            if done {
                break;
            }
        }
        frames
    }
}

fn read(queue: &OwnedFd, deadline: Instant) -> Option<Vec<u8>> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).unwrap();
    let mut wait = [PollFd::new(queue, PollFlags::IN)];
    if poll(&mut wait, Some(&timeout)).unwrap() == 0 {
        return None;
    }
    let mut bytes = vec![0; 70_000];
    let length = rustix::io::read(queue, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// An instance with a system of its own: a network namespace.
pub struct Guest {
    pub name: String,
    pub ipv4: IpAddr,
    pub ipv6: IpAddr,
}

impl Guest {
    /// Attaches an instance that gets its addresses from the network.
    pub fn attach(networks: &Networks, name: &str, nic: &NicSpec) -> Self {
        let (ipv4, ipv6) = Guest::plug(networks, name, nic);
        Guest {
            name: name.to_owned(),
            ipv4: ipv4.unwrap().into(),
            ipv6: ipv6.unwrap().into(),
        }
    }

    /// Attaches an instance, and has a namespace of the same name be behind
    /// its NIC. The addresses that it is to have, if the network gives any.
    pub fn plug(
        networks: &Networks,
        name: &str,
        nic: &NicSpec,
    ) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let attached = networks.attach(&name.parse().unwrap(), nic, 1).unwrap();
        add(name);
        let (inner, queues) = open_tap(&format!("in-{name}"), 1).unwrap();
        // What is in the guest is its own: its network card has its MAC.
        host(&format!(
            "ip link set {inner} netns {name} && ip -n {name} link set {inner} name eth0 \
             address {} mtu {}",
            nic.mac, attached.mtu
        ));
        run(
            name,
            "sysctl -qw net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.eth0.accept_dad=0",
        );
        run(name, "ip link set eth0 up");
        pump(attached.queues, queues);
        (attached.ipv4, attached.ipv6)
    }

    /// Gets its addresses as any system does.
    pub fn configure(&self) {
        let script = "/run/udhcpc.sh";
        std::fs::write(
            script,
            "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\n\
             ip addr add $ip/$mask dev $interface\n\
             ip route add default via $router\n\
             echo \"$ip $dns $domain $mtu\" > /run/dhcp-$(ip netns identify)\n",
        )
        .unwrap();
        host(&format!("chmod +x {script}"));
        let busybox = busybox();
        run(
            &self.name,
            &format!("{busybox} udhcpc -f -q -n -t 60 -T 1 -i eth0 -s {script} -O mtu"),
        );
        let lease = std::fs::read_to_string(format!("/run/dhcp-{}", self.name)).unwrap();
        assert_eq!(
            lease.split(' ').next(),
            Some(&*self.ipv4.to_string()),
            "{lease}"
        );
        assert!(lease.contains(" croft "), "{lease}");
        let address = within(&self.name, solicit);
        assert_eq!(address, self.ipv6);
        run(&self.name, &format!("ip addr add {address}/128 dev eth0"));
        // Advertisements say where the network is, and the way out of it.
        wait(|| {
            let routes = run(&self.name, "ip -6 route");
            routes.contains("default via fe80::1") && routes.contains("::/64 dev eth0")
        });
    }

    /// Listens on a port for one connection after another, and tells each who
    /// it is.
    pub fn serve(&self, port: u16) {
        serve(&self.name, port);
    }

    /// What a server tells it.
    pub fn connect(&self, to: SocketAddr) -> Option<String> {
        connect(&self.name, to)
    }

    /// Whether it is kept from connecting.
    pub fn kept_from(&self, to: SocketAddr) -> bool {
        kept_from(&self.name, to)
    }
}

/// Has somebody in a namespace listen on a port, who tells everybody from
/// where they seem to come.
pub fn serve(namespace: &str, port: u16) {
    within(namespace, move || serve_here(port));
}

fn serve_here(port: u16) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            // As servers do: answers nobody who does not ask. (Debian 12's
            // pasta loses what comes before.)
            let _ = stream.read(&mut [0]);
            let _ = stream.write_all(peer.to_string().as_bytes());
        }
    });
}

/// Connects from a namespace; what the server tells.
pub fn connect(namespace: &str, to: SocketAddr) -> Option<String> {
    within(namespace, move || ask(to))
}

/// Whether somebody in a namespace is kept from connecting.
pub fn kept_from(namespace: &str, to: SocketAddr) -> bool {
    within(namespace, move || try_to_ask(to, SHORT).is_err())
}

/// How long somebody is waited for who should not answer.
const SHORT: Duration = Duration::from_secs(2);
/// And who should: only a hang is so long.
const LONG: Duration = Duration::from_secs(120);

/// Connects from here; what the server tells. Who is in the way may be late,
/// by seconds: then the kernel has given up a neighbour, or a packet.
pub fn ask(to: SocketAddr) -> Option<String> {
    let deadline = Instant::now() + LONG;
    loop {
        let error = match try_to_ask(to, LONG / 4) {
            Ok(text) => return Some(text),
            Err(error) => error,
        };
        // No lateness makes these of what is right.
        let refused = matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::NetworkUnreachable
        );
        if refused || Instant::now() > deadline {
            println!("{to}: {error}");
            return None;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The same, once, and not for long.
pub fn ask_once(to: SocketAddr) -> Option<String> {
    try_to_ask(to, SHORT).ok()
}

fn try_to_ask(to: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"?")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Waits until it is so.
pub fn wait(is: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < deadline, "it did not come to that");
        thread::sleep(Duration::from_millis(50));
    }
}

/// What somebody in a namespace is told of a name by the resolver at an
/// address, who may be late.
pub fn look_up(namespace: &str, name: &str, at: &str) -> String {
    let busybox = busybox();
    let ask = format!("{busybox} nslookup {name} {at} || true");
    let deadline = Instant::now() + LONG;
    loop {
        let answer = run(namespace, &ask);
        if !answer.contains("timed out") || Instant::now() > deadline {
            return answer;
        }
    }
}

/// A busybox with a DHCP client.
pub fn busybox() -> String {
    let cached = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.cache/busybox");
    if cached.exists() {
        cached.to_str().unwrap().to_owned()
    } else {
        "busybox".to_owned()
    }
}

/// Copies frames both ways until one end is gone.
fn pump(one: Vec<OwnedFd>, other: Vec<OwnedFd>) {
    let copy = |from: OwnedFd, to: OwnedFd| {
        thread::spawn(move || {
            let forever = Duration::from_secs(3600);
            while let Some(frame) = read(&from, Instant::now() + forever) {
                // One that is not taken is lost, as on any wire.
                let _ = rustix::io::write(to.as_fd(), &frame);
            }
        });
    };
    for (one, other) in one.into_iter().zip(other) {
        copy(one.try_clone().unwrap(), other.try_clone().unwrap());
        copy(other, one);
    }
}

/// Asks for an address by DHCPv6 (RFC 8415) in two messages.
fn solicit() -> IpAddr {
    let index = host("ip -o link show eth0");
    let index: u32 = index
        .split([':', '\n'])
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 546)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    // Solicit, with a client identifier that says nothing of the MAC address
    // (a UUID, RFC 6355), one address wanted, and "rapid commit".
    let mut message = vec![1, 0x12, 0x34, 0x56, 0, 1, 0, 18, 0, 4];
    message.extend([0xAB; 16]);
    message.extend([0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    message.extend([0, 8, 0, 2, 0, 0, 0, 14, 0, 0]);
    let servers: Ipv6Addr = "ff02::1:2".parse().unwrap();
    for _ in 0..60 {
        socket
            .send_to(&message, SocketAddrV6::new(servers, 547, 0, index))
            .unwrap();
        let mut answer = [0; 1500];
        let Ok(length) = socket.recv(&mut answer) else {
            continue;
        };
        // A reply, with an identity association, with an address in it.
        assert_eq!(answer[..4], [7, 0x12, 0x34, 0x56]);
        let found = answer[4..length]
            .windows(20)
            .find(|window| window[..4] == [0, 5, 0, 24])
            .expect("no address in the reply");
        let address: [u8; 16] = found[4..20].try_into().unwrap();
        return Ipv6Addr::from(address).into();
    }
    panic!("no answer to DHCPv6");
}
