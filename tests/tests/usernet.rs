//! The user network: passt beside machines of a user without any privilege.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use croft_tests::processes::tree;
use croft_tests::{END, Machine, PATIENCE, Stage, eventually, modules};
use rustix::process::{Pid, Signal, kill_process};

/// Modules of a NIC, in the order in which they can be loaded.
const MODULES: [&str; 3] = ["failover", "net_failover", "virtio_net"];
/// The guest's port.
const PORT: u16 = 7000;
/// What the guest's server says.
const PAGE: &str = "a page of seven words from the guest";

/// What udhcpc calls with what it got.
const SETUP: &str = r#"mkdir -p /www; echo '#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
echo "leased $ip of $router"' > /lease; chmod +x /lease
"#;

/// A port of the loopback interface that nobody has.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

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

/// Asks the guest's server at a port of this host.
fn get(port: u16) -> std::io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, END)?;
    stream.set_read_timeout(Some(END))?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(text)
}

/// Waits until the guest serves its page at a port of this host.
fn wait_for_page(port: u16) {
    let end = Instant::now() + PATIENCE;
    loop {
        match get(port) {
            Ok(text) => {
                assert!(text.contains(PAGE), "{text}");
                return;
            }
            Err(error) => assert!(Instant::now() < end, "no page: {error}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
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

/// A guest with an address, whose server is published at a port.
fn guest<'a>(stage: &'a Stage, mut command: Command, port: u16) -> Machine<'a> {
    command.args(["--publish", &format!("127.0.0.1:{port}:{PORT}")]);
    let mut machine = stage.start(command);
    modules::load(&mut machine, &MODULES);
    machine.type_in(SETUP);
    machine.type_in("ip link set eth0 up; udhcpc -q -n -i eth0 -s /lease\n");
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
    let port = free_port();
    let command = modules::unprivileged_shell(&stage, &MODULES);
    let mut machine = guest(&stage, command, port);
    wait_for_page(port);

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
        "wget -T 5 -q -O - http://10.199.15.1:{hidden}/ || echo gateway-$((40 + 3))\n"
    ));
    machine.expect("gateway-43");

    let first = passt(&stage).expect("a passt");
    kill_process(first, Signal::KILL).unwrap();
    machine.stderr.wait_for("passt has ended", PATIENCE);
    eventually(PATIENCE, "another passt", || {
        passt(&stage).is_some_and(|pid| pid != first)
    });
    wait_for_page(port);

    let second = passt(&stage).expect("a passt");
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let proc = format!("/proc/{}", second.as_raw_nonzero());
    eventually(END, "passt ends", || !Path::new(&proc).exists());
}

#[test]
fn a_restored_guest_is_reached_again() {
    if is_missing() {
        return;
    }
    let stage = Stage::new();
    let (port, control) = (free_port(), stage.path("control"));
    let mut command = modules::shell(&stage, &MODULES);
    command.arg("--control").arg(&control);
    let mut machine = guest(&stage, command, port);
    wait_for_page(port);
    machine.close_input();
    let file = stage.path("state");
    let saved = stage.save(&control, &file);
    assert_eq!((saved.code, saved.stderr.as_str()), (Some(0), ""));
    let ended = machine.wait_at_most(END);
    assert_eq!(ended.code, Some(6), "{ended:#?}");

    // Under another port, as its own is taken by now; what it has is named.
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut command = stage.restore(&file);
    command.args(["--net", "user", "--net", "user"]);
    let refused = stage.start(command).wait();
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    let mut command = stage.restore(&file);
    command.args(["--net", "lan"]);
    let refused = stage.start(command).wait();
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    assert!(refused.stderr.contains("net0"), "{refused:#?}");
    let other = free_port();
    let mut command = stage.restore(&file);
    command.args([
        "--net",
        "user",
        "--publish",
        &format!("127.0.0.1:{other}:{PORT}"),
    ]);
    command.stdin(Stdio::piped());
    let mut machine = stage.start(command);
    wait_for_page(other);
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
