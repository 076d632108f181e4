//! The user network: passt beside machines of a user without any privilege.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use croft_tests::namespace::{inside, ip};
use croft_tests::ports::Port;
use croft_tests::processes::tree;
use croft_tests::{END, Machine, PATIENCE, Stage, eventually, modules, sockets};
use rustix::process::{Pid, Signal, kill_process};

/// Modules of a NIC, in the order in which they can be loaded.
const MODULES: [&str; 3] = ["failover", "net_failover", "virtio_net"];
/// The guest's port, and those where it answers datagrams.
const PORT: u16 = 7000;
const DATAGRAMS: [u16; 3] = [7001, 7002, 7003];
/// How long one of many attempts may take, before the next. Few are given up: what
/// is left of them keeps Debian 12's passt busy for long, where packets were late.
const TRIAL: Duration = Duration::from_secs(60);
/// What the guest's server says.
const PAGE: &str = "a page of seven words from the guest";

/// What udhcpc calls with what it got.
const SETUP: &str = r#"mkdir -p /www; echo '#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
echo "leased $ip of $router"' > /lease; chmod +x /lease
"#;

/// Where a guest finds this host, if it has an address beside loopback.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // Nothing is sent.
    socket.connect((Ipv4Addr::new(192, 0, 2, 123), 9)).ok()?;
    let address = socket.local_addr().unwrap().ip();
    Some(address).filter(|address| !address.is_loopback())
}

/// Serves one text to all who come, and forgets the thread.
fn serve(address: IpAddr, text: &'static str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
        }
    });
    port
}

/// Asks the guest's server at an address of this host.
fn get(at: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, TRIAL)?;
    stream.set_read_timeout(Some(TRIAL))?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(text)
}

/// Waits until the guest serves its page at a port of this host.
fn wait_for_page(port: &Port) {
    wait_for_page_at((Ipv4Addr::LOCALHOST, port.number()).into());
}

fn wait_for_page_at(at: SocketAddr) {
    let end = Instant::now() + PATIENCE;
    loop {
        match get(at) {
            Ok(text) => {
                assert!(text.contains(PAGE), "{text}");
                return;
            }
            Err(error) => assert!(Instant::now() < end, "no page: {error}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Sends back what datagrams come, and forgets the thread.
fn send_back(address: IpAddr) -> SocketAddr {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let at = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..count], from);
        }
    });
    at
}

/// Sends a datagram of this size until it comes back.
fn comes_back(to: SocketAddr, size: usize) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(to).unwrap();
    let trial = Duration::from_secs(1);
    socket.set_read_timeout(Some(trial)).unwrap();
    let sent: Vec<u8> = (0..size).map(|n| (n ^ (n >> 8)) as u8).collect();
    let mut bytes = vec![0; 1 << 16];
    eventually(
        PATIENCE,
        &format!("{size} bytes come back from {to}"),
        || {
            socket.send(&sent).is_ok()
                && socket
                    .recv(&mut bytes)
                    .is_ok_and(|count| bytes[..count] == sent)
        },
    );
}

/// passt of the machine.
fn passt(stage: &Stage) -> Option<Pid> {
    let monitor = stage.wait_for("croft-monitor");
    tree(monitor).into_iter().find(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
        name.is_ok_and(|name| name.starts_with("passt"))
    })
}

fn is_missing() -> bool {
    let missing = !["/usr/bin/passt", "/usr/local/bin/passt", "/bin/passt"]
        .iter()
        .any(|path| Path::new(path).exists());
    if missing {
        eprintln!("skipped: passt is not installed");
    }
    missing
}

/// The guest's port, at one of the host's.
fn published(port: &Port) -> String {
    format!("127.0.0.1:{}:{PORT}", port.number())
}

/// A guest with an address, whose server is published at a port.
fn guest<'a>(stage: &'a Stage, mut command: Command, port: &Port) -> Machine<'a> {
    command.args(["--publish", &published(port)]);
    configured(stage, command)
}

/// A guest with an address, and a server.
fn configured(stage: &Stage, command: Command) -> Machine<'_> {
    let mut machine = stage.start(command);
    modules::load(&mut machine, &MODULES);
    machine.type_in(SETUP);
    machine.type_in("ip link set eth0 up; udhcpc -q -T 2 -A 1 -i eth0 -s /lease\n");
    machine.expect("leased 10.199.15.15 of 10.199.15.1");
    machine.type_in(&format!(
        "echo '{PAGE}' > /www/page; httpd -p {PORT} -h /www; echo serving-$((40 + 2))\n"
    ));
    machine.expect("serving-42");
    machine
}

#[test]
fn a_user_reaches_the_guest_and_the_guest_the_host() {
    if is_missing() {
        return;
    }
    let stage = Stage::new();
    let port = Port::free();
    let command = modules::unprivileged_shell(&stage, &MODULES);
    let mut machine = guest(&stage, command, &port);
    wait_for_page(&port);

    match own_address() {
        Some(address) => {
            let served = serve(address, "five words of the host");
            machine.type_in(&format!(
                "wget -q -O - http://{address}:{served}/ | wc -w\n"
            ));
            machine.expect("\n5");
        }
        None => eprintln!("not tried: this host has no address beside loopback"),
    }
    // Nothing of the host's is at the gateway.
    let hidden = serve(Ipv4Addr::LOCALHOST.into(), "nobody's");
    machine.type_in(&format!(
        "echo GET / | nc -w 5 10.199.15.1 {hidden} || echo gateway-$((40 + 3))\n"
    ));
    machine.expect("gateway-43");

    let first = passt(&stage).expect("a passt");
    kill_process(first, Signal::KILL).unwrap();
    machine.stderr.wait_for("passt has ended", PATIENCE);
    eventually(PATIENCE, "another passt", || {
        passt(&stage).is_some_and(|pid| pid != first)
    });
    wait_for_page(&port);

    let second = passt(&stage).expect("a passt");
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let proc = format!("/proc/{}", second.as_raw_nonzero());
    eventually(END, "passt ends", || !Path::new(&proc).exists());
}

/// In a namespace whose way to the world is of both versions of IP.
#[test]
fn both_versions_of_ip_and_datagrams() {
    if is_missing() || !inside("both_versions_of_ip_and_datagrams") {
        return;
    }
    ip("link set lo up");
    ip("link add up0 type veth peer name up1");
    ip("link set up0 addrgenmode none");
    ip("link set up1 up");
    ip("link set up0 up");
    ip("addr add 192.0.2.1/24 dev up0");
    for address in ["fe80::1/64", "2001:db8::1/64"] {
        ip(&format!("addr add {address} dev up0 nodad"));
    }
    ip("route add default via 192.0.2.2");
    ip("-6 route add default via 2001:db8::2 dev up0");
    // passt's user is not the one of this test.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    let local: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let own: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|own| own.parse().unwrap());

    let stage = Stage::new();
    let mut command = modules::shell_with(&stage, sockets::archive(), &MODULES);
    // Debian 12's passt has a port of the host at one address or at all, and
    // brings back what the guest answers to datagrams of other addresses than
    // loopback ones, from a port of its that is published once.
    let [four, six] = ["192.0.2.1", "[2001:db8::1]"];
    let published = [
        format!("127.0.0.1:8004:{PORT}"),
        format!("[::1]:8006:{PORT}"),
        format!("{four}:8004:{}/udp", DATAGRAMS[0]),
        format!("{six}:8006:{}/udp", DATAGRAMS[1]),
        format!("8000:{}/udp", DATAGRAMS[2]),
    ];
    for port in published {
        command.args(["--publish", &port]);
    }
    let mut machine = configured(&stage, command);
    machine.type_in(
        "until ip -6 addr show dev eth0 | grep 'fdc7:fb1:4e3a.*global' | grep -qv tentative; \
         do sleep 0.1; done; \
         echo six-$((40 + 2))\n",
    );
    machine.expect("six-42");
    for port in DATAGRAMS {
        machine.type_in(&format!("/socket-guest datagrams {port} &\n"));
        machine.expect(&format!("datagrams at {port}"));
    }

    // In, by what is published.
    for (port, (local, own)) in [8004, 8006].into_iter().zip(local.into_iter().zip(own)) {
        wait_for_page_at((local, port).into());
        for size in [1, 1400, 8000] {
            comes_back((own, port).into(), size);
            comes_back((own, 8000).into(), size);
        }
    }
    // Out.
    for (address, family) in own.into_iter().zip([4, 6]) {
        let page = SocketAddr::new(address, serve(address, "five words of the host"));
        machine.type_in(&format!(
            "wget -q -O - http://{page}/ | sed 's/^five.*/page-{family}/'; echo\n"
        ));
        machine.expect(&format!("\npage-{family}"));
        let back = send_back(address);
        for (count, size) in [(50, 10), (20, 1400), (5, 8000)] {
            machine.type_in(&format!("/socket-guest ask {back} {count} {size}\n"));
            machine.expect(&format!("{count} of {size} bytes came back"));
        }
        machine.type_in(&format!(
            "until ping -c 1 -W 10 {address} >/dev/null; do sleep 0.1; done; \
             echo ping{family}-$((40 + 2))\n"
        ));
        machine.expect(&format!("ping{family}-42"));
    }
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[test]
fn a_restored_guest_is_reached_again() {
    if is_missing() {
        return;
    }
    let stage = Stage::new();
    let (port, control) = (Port::free(), stage.path("control"));
    let mut command = modules::shell(&stage, &MODULES);
    command.arg("--control").arg(&control);
    let mut machine = guest(&stage, command, &port);
    wait_for_page(&port);
    machine.close_input();
    let file = stage.path("state");
    let saved = stage.save(&control, &file);
    assert_eq!((saved.code, saved.stderr.as_str()), (Some(0), ""));
    let ended = machine.wait_at_most(END);
    assert_eq!(ended.code, Some(6), "{ended:#?}");

    // Under another port, as its own is taken by now; what it has is named.
    let mut taken = None;
    eventually(END, "passt leaves the port", || {
        taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).ok();
        taken.is_some()
    });
    let mut command = stage.restore(&file);
    command.args(["--net", "user", "--net", "user"]);
    let refused = stage.start(command).wait();
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    let mut command = stage.restore(&file);
    command.args(["--net", "lan"]);
    let refused = stage.start(command).wait();
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    assert!(refused.stderr.contains("net0"), "{refused:#?}");
    let other = Port::free();
    let mut command = stage.restore(&file);
    command.args(["--net", "user", "--publish", &published(&other)]);
    command.stdin(Stdio::piped());
    let mut machine = stage.start(command);
    wait_for_page(&other);
    drop(taken);
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[test]
fn a_port_that_is_taken_is_named_before_the_machine_starts() {
    if is_missing() {
        return;
    }
    let stage = Stage::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut command = modules::unprivileged_shell(&stage, &[]);
    command.args(["--publish", &format!("127.0.0.1:{port}:22")]);
    let ended = stage.start(command).wait();
    assert_eq!(ended.code, Some(2), "{ended:#?}");
    assert!(
        ended
            .stderr
            .contains(&format!("port {port} (tcp) of the host is in use")),
        "{ended:#?}"
    );
    assert!(ended.stdout.is_empty(), "{ended:#?}");
}
