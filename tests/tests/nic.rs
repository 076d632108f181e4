//! NICs of a stock kernel, on taps: in a network namespace of the test's own,
//! with a bridge to which the host and two machines belong.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use croft_tests::files::Kernel;
use croft_tests::guest::Act;
use croft_tests::modules::{initramfs_of, load, shell};
use croft_tests::namespace::{inside, ip};
use croft_tests::{END, Instance, Machine, PATIENCE, Stage, eventually, succeed};
use tempfile::TempDir;

const MODULES: [&str; 3] = ["failover", "net_failover", "virtio_net"];
/// The host's address on the bridge, where what is sent comes back.
const HOST: &str = "10.77.0.1";
const ECHO: u16 = 7000;
/// Where the same is done behind a [`Gate`].
const GATED: u16 = 7001;
/// What comes through before the gate.
const BEFORE: usize = 1 << 20;

/// Holds up whoever sends back at [`GATED`].
struct Gate {
    /// Something has come, and stands at the gate.
    reached: Receiver<()>,
    open: Sender<()>,
}

impl Gate {
    fn new() -> Self {
        let listener = TcpListener::bind(("::", GATED)).expect("a port");
        let (reach, reached) = channel();
        let (open, opened) = channel();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut first = vec![0; BEFORE];
            stream.read_exact(&mut first).expect("what is sent");
            reach.send(()).expect("a test");
            if opened.recv().is_ok() {
                echo(stream, first);
            }
        });
        Gate { reached, open }
    }
}

/// A bridge with the host's address, and whoever sends what it gets back.
fn network() {
    ip("link set lo up");
    ip("link add br0 type bridge");
    ip(&format!("addr add {HOST}/24 dev br0"));
    ip("addr add fd77::1/64 dev br0 nodad");
    ip("link set br0 up");
    let listener = TcpListener::bind(("::", ECHO)).expect("a port");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            thread::spawn(move || echo(stream, Vec::new()));
        }
    });
}

/// Sends back what comes, behind `first`. It reads on while it cannot write: a
/// guest's `nc` that cannot write does not read either.
fn echo(mut stream: TcpStream, first: Vec<u8>) {
    let mut back = stream.try_clone().expect("a descriptor");
    let (give, pieces) = channel::<Vec<u8>>();
    thread::spawn(move || {
        for piece in std::iter::once(first).chain(pieces) {
            if back.write_all(&piece).is_err() {
                return;
            }
        }
        let _ = back.shutdown(Shutdown::Write);
    });
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if give.send(bytes[..count].to_vec()).is_err() {
            return;
        }
    }
}

/// A machine on the bridge with so many processors, and pairs of queues.
fn command(stage: &Stage, data: &TempDir, cpus: u32, options: &str) -> Command {
    let mut command = shell(stage, &MODULES);
    command.args(["--memory", "256M", "--cpus", &cpus.to_string()]);
    command.arg("--net").arg(format!("bridge=br0{options}"));
    command.arg("--control").arg(stage.path("control"));
    command.env("CROFT_DATA_DIR", data.path());
    command
}

/// Gives a machine its address, and so many mebibytes of data.
fn set_up(machine: &mut Machine<'_>, number: u32, size: u32) {
    load(machine, &MODULES);
    say(
        machine,
        &format!(
            "ip link set lo up; ip addr add 10.77.0.{number}/24 dev eth0; \
             ip addr add fd77::{number}/64 dev eth0; ip link set eth0 up; \
             dd if=/dev/urandom of=/tmp/data bs=1M count={size} 2>/dev/null; \
             md5sum </tmp/data >/tmp/sum; {SETTLED}"
        ),
        "ready",
    );
}

/// Types a command and waits until it has ended well. What is waited for is
/// not in what is typed.
fn say(machine: &mut Machine<'_>, command: &str, word: &str) {
    machine.type_in(&format!("{command} && echo {word}-$((40 + 2))\n"));
    machine.expect(&format!("{word}-42"));
}

/// Waits until the guest's addresses are known to be nobody else's.
const SETTLED: &str = "while ip addr show dev eth0 | grep -q tentative; do sleep 0.1; done";

/// Data to the host and back are what they were.
const THERE_AND_BACK: &str = "nc 10.77.0.1 7000 </tmp/data | md5sum | cmp - /tmp/sum";

/// Pings the host, with so many bytes, until it has answered three times.
fn ping(machine: &mut Machine<'_>, size: u32, word: &str) {
    let once = format!("ping -c 1 -W 10 -s {size} {HOST} >/dev/null");
    let command = format!("for n in 1 2 3; do until {once}; do sleep 0.1; done; done");
    say(machine, &command, word);
}

fn end(mut machine: Machine<'_>) {
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[test]
fn machines_and_the_host_exchange_data() {
    if !inside("machines_and_the_host_exchange_data") {
        return;
    }
    network();
    let data = tempfile::tempdir().unwrap();
    let (stage, other_stage) = (Stage::new(), Stage::new());
    let mut one = stage.start(command(&stage, &data, 1, ""));
    let mut two = other_stage.start(command(&other_stage, &data, 2, ""));
    set_up(&mut one, 2, 2);
    set_up(&mut two, 3, 2);
    // The second has a pair of queues for each processor.
    say(&mut one, "[ -e /sys/class/net/eth0/queues/rx-0 ]", "first");
    say(&mut two, "[ -e /sys/class/net/eth0/queues/rx-1 ]", "second");
    say(&mut two, "[ $(cat /sys/class/net/eth0/mtu) = 1500 ]", "mtu");
    for machine in [&mut one, &mut two] {
        say(machine, THERE_AND_BACK, "four");
        let there = "nc fd77::1 7000 </tmp/data | md5sum | cmp - /tmp/sum";
        say(machine, there, "six");
        ping(machine, 1400, "ping");
        // In fragments.
        ping(machine, 5000, "pieces");
        // Several at once.
        let three = format!(
            "({0}) & ({0}) & ({0}); r=$?; wait; [ $r = 0 ]",
            THERE_AND_BACK
        );
        say(machine, &three, "many");
    }
    // One to the other, both ways at once.
    one.type_in("nc -l -p 7001 </bin/busybox >/tmp/got &\n");
    // 7001, and in the state of who listens.
    let listens = "until grep -q ':1B59 .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done";
    say(&mut one, listens, "listens");
    say(
        &mut two,
        "nc 10.77.0.2 7001 </bin/busybox | cmp - /bin/busybox",
        "gave",
    );
    say(&mut one, "wait; cmp /tmp/got /bin/busybox", "got");

    // A reset in the midst of it. Not by an orderly reboot: Linux then breaks the
    // queues and may wait for one of them in its sender for ever (virtio_net's
    // start_xmit, seen of 6.1).
    two.type_in(concat!(
        "(while :; do nc 10.77.0.1 7000 </tmp/data >/tmp/back; done) & ",
        "until [ -s /tmp/back ]; do sleep 0.1; done; echo b >/proc/sysrq-trigger\n",
    ));
    set_up(&mut two, 3, 2);
    say(&mut two, THERE_AND_BACK, "again");
    end(one);
    end(two);
}

/// A connection outlives its machine's save: the file holds one end of it,
/// the host the other one.
#[test]
fn a_connection_outlives_a_save() {
    if !inside("a_connection_outlives_a_save") {
        return;
    }
    network();
    let data = tempfile::tempdir().unwrap();
    let stage = Stage::new();
    let gate = Gate::new();
    let mut machine = stage.start(command(&stage, &data, 2, ""));
    // More than finds room on its way.
    set_up(&mut machine, 2, 16);
    let held = THERE_AND_BACK.replace("7000", &GATED.to_string());
    machine.type_in(&format!("{held} && echo whole-$((40 + 2))\n"));
    gate.reached.recv_timeout(PATIENCE).expect("some of it");
    machine.close_input();
    let file = stage.path("state");
    let saved = stage.save(&stage.path("control"), &file);
    assert_eq!((saved.code, saved.stderr.as_str()), (Some(0), ""));
    let ended = machine.wait_at_most(END);
    assert_eq!(ended.code, Some(6), "{ended:#?}");
    assert!(!ended.stdout.contains("whole-42"), "{ended:#?}");

    let mut command = stage.restore(&file);
    command.env("CROFT_DATA_DIR", data.path());
    command.stdin(Stdio::piped());
    let mut machine = stage.start(command);
    gate.open.send(()).expect("who waits at the gate");
    machine.expect("whole-42");
    say(&mut machine, THERE_AND_BACK, "more");
    end(machine);
}

/// The host sees on a tap whether its guest's cable is plugged in.
#[test]
fn a_tap_follows_its_cable() {
    if !inside("a_tap_follows_its_cable") {
        return;
    }
    network();
    let stage = Stage::new();
    let initrd = initramfs_of(Kernel::Cloud, &MODULES);
    let nic = "bridge=br0,link=down";
    let more = ["--engine", "software", "--net", nic];
    let instance = Instance::create_of(&stage, Kernel::Cloud, &initrd, Act::Shell, &more);
    instance.done(&["start"]);
    let mut console = instance.croft(&["console", stage.name()]);
    console.stdin(Stdio::piped());
    let mut machine = stage.start(console);
    let plug = |link: &str| {
        let mut command = instance.croft(&["nic", "set", stage.name(), "net0"]);
        command.args(["--link", link]);
        succeed(command);
    };
    // The only port of the bridge.
    let carried = |up: bool| {
        eventually(END, "the tap's carrier", || {
            let port = ip("-o link show master br0");
            port.lines().count() == 1 && port.contains("NO-CARRIER") != up
        });
    };
    carried(false);
    plug("up");
    carried(true);
    set_up(&mut machine, 2, 1);
    ping(&mut machine, 56, "ping");
    plug("down");
    carried(false);
    plug("up");
    carried(true);
    say(&mut machine, THERE_AND_BACK, "back");
    drop(machine);
    instance.done(&["stop", "--force"]);
    instance.done(&["delete"]);
}
