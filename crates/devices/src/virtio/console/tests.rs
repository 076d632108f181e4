use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{ConsoleHandle, F_MULTIPORT, PortConfig, VirtioConsole};
use crate::device::Device;
use crate::testing::{refuses_newer, round_trip};
use crate::virtio::testing::{DATA, Rig, wait};

/// Where the guest's own data is.
const TX: u64 = DATA + 0x10_0000;

/// Of a device with these ports, the hosts' ends.
fn console(names: &[&str]) -> (VirtioConsole, Vec<UnixStream>) {
    let (mut configs, mut hosts) = (Vec::new(), Vec::new());
    for name in names {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        hosts.push(ours);
        configs.push(PortConfig {
            name: (*name).to_owned(),
            socket: theirs.into(),
        });
    }
    (VirtioConsole::new(configs), hosts)
}

/// A device with a terminal alone and its driver.
fn terminal() -> (Rig<VirtioConsole>, UnixStream, ConsoleHandle) {
    let (device, mut hosts) = console(&["terminal"]);
    let handle = device.handle();
    let mut rig = Rig::new(device);
    rig.bring_up(1, 2);
    (rig, hosts.remove(0), handle)
}

/// Makes `len` bytes available for the next data in `queue`.
fn post(rig: &mut Rig<VirtioConsole>, queue: u16, at: u64, len: u32) {
    let head = rig.chain(queue, &[(at, len, true)]);
    rig.offer(queue, head);
    rig.notify(queue);
}

/// The next data for the guest, in the buffer at `at`.
fn next(rig: &mut Rig<VirtioConsole>, queue: u16, at: u64) -> Vec<u8> {
    let (_, len) = rig.used(queue);
    rig.bytes(at, len as usize)
}

fn send(rig: &mut Rig<VirtioConsole>, queue: u16, bytes: &[u8]) {
    rig.ram.write(TX, bytes).unwrap();
    let half = bytes.len() as u32 / 2;
    let rest = bytes.len() as u32 - half;
    let pieces = [(TX, half, false), (TX + u64::from(half), rest, false)];
    assert_eq!(rig.request(queue, &pieces), 0);
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_terminal_carries_bytes_both_ways() {
    let (mut rig, mut host, _) = terminal();
    assert_eq!(rig.offered() & F_MULTIPORT, 0);
    host.write_all(b"typed").unwrap();
    post(&mut rig, 0, DATA, 3);
    assert_eq!(next(&mut rig, 0, DATA), b"typ");
    post(&mut rig, 0, DATA, 100);
    assert_eq!(next(&mut rig, 0, DATA), b"ed");
    send(&mut rig, 1, b"printed");
    assert_eq!(read(&mut host, 7), b"printed");
    // Nothing is lost between drivers.
    host.write_all(b"later").unwrap();
    rig.reset();
    rig.bring_up(1, 2);
    post(&mut rig, 0, DATA, 100);
    assert_eq!(next(&mut rig, 0, DATA), b"later");
    // Nobody at the other end: what is printed is for nobody.
    drop(host);
    for _ in 0..50 {
        send(&mut rig, 1, &[b'x'; 60_000]);
    }
}

#[test]
fn a_terminal_has_a_size() {
    let (mut rig, _host, handle) = terminal();
    let config = crate::virtio::transport::layout::DEVICE;
    assert_eq!(rig.read(config, 4), 0);
    handle.resize(132, 43);
    assert_eq!(rig.read(config, 2), 132);
    assert_eq!(rig.read(config + 2, 2), 43);
    // The generation tells, and the interrupt.
    assert_eq!(rig.read(0x15, 1), 1);
    assert_eq!(rig.read(0x1000, 1), 2);
    handle.resize(132, 43);
    assert_eq!(rig.read(0x15, 1), 1);
    rig.reset();
    assert_eq!(rig.read(config, 2), 132);
}

#[test]
fn a_host_that_does_not_read_holds_the_guest_back() {
    let (mut rig, mut host, _) = terminal();
    let mut sent = Vec::new();
    let stuck = loop {
        let n = sent.len();
        let piece: Vec<u8> = (n..n + 50_000).map(|n| (n ^ n >> 9) as u8).collect();
        rig.ram.write(TX, &piece).unwrap();
        let head = rig.chain(1, &[(TX, piece.len() as u32, false)]);
        let before = rig.used_index(1);
        rig.offer(1, head);
        rig.notify(1);
        sent.extend(piece);
        std::thread::sleep(Duration::from_millis(50));
        if rig.used_index(1) == before {
            break head;
        }
        rig.used(1);
        assert!(sent.len() < 16 << 20);
    };
    // Saved in the middle of a buffer: the rest follows, and no byte twice.
    rig.device.pause();
    let state = rig.device.save();
    rig.device.restore(&state).unwrap();
    rig.device.resume();
    assert!(read(&mut host, sent.len()) == sent);
    assert_eq!(rig.used(1), (u32::from(stuck), 0));
    host.set_nonblocking(true).unwrap();
    let error = host.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

/// Makes the next control message of the device's.
fn message(rig: &mut Rig<VirtioConsole>) -> (u32, u16, u16, Vec<u8>) {
    post(rig, 2, DATA, 64);
    let bytes = next(rig, 2, DATA);
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (u32::from(half(0)), half(4), half(6), bytes[8..].to_vec())
}

fn tell(rig: &mut Rig<VirtioConsole>, port: u32, event: u16, value: u16) {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    send(rig, 3, &bytes);
}

#[test]
fn ports_have_names_and_are_opened() {
    let (device, mut hosts) = console(&["terminal", "org.example.log", "c"]);
    let handle = device.handle();
    let mut rig = Rig::new(device);
    handle.resize(80, 25);
    rig.bring_up(F_MULTIPORT | 1, 8);
    tell(&mut rig, 0, 0, 1);
    for port in 0..3 {
        assert_eq!(message(&mut rig), (port, 1, 1, vec![]));
    }
    tell(&mut rig, 0, 3, 1);
    assert_eq!(message(&mut rig), (0, 4, 1, vec![]));
    assert_eq!(message(&mut rig), (0, 5, 1, vec![80, 0, 25, 0]));
    assert_eq!(message(&mut rig), (0, 6, 1, vec![]));
    tell(&mut rig, 1, 3, 1);
    assert_eq!(message(&mut rig), (1, 7, 1, b"org.example.log".to_vec()));
    assert_eq!(message(&mut rig), (1, 6, 1, vec![]));
    handle.resize(81, 26);
    assert_eq!(message(&mut rig), (0, 5, 1, vec![81, 0, 26, 0]));
    // Of ports and events that are none nothing comes.
    tell(&mut rig, 7, 3, 1);
    tell(&mut rig, u32::MAX, 6, 1);
    tell(&mut rig, 0, 99, 1);

    // Data waits until a program of the guest opens the port.
    hosts[1].write_all(b"for one").unwrap();
    post(&mut rig, 4, DATA + 0x1000, 64);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.used_index(4), 0);
    tell(&mut rig, 1, 6, 1);
    assert_eq!(next(&mut rig, 4, DATA + 0x1000), b"for one");
    send(&mut rig, 5, b"from one");
    assert_eq!(read(&mut hosts[1], 8), b"from one");
    send(&mut rig, 7, b"from two");
    assert_eq!(read(&mut hosts[2], 8), b"from two");

    // All of it is saved, what is owed too.
    tell(&mut rig, 2, 3, 1);
    rig.device.pause();
    let (device, mut others) = console(&["terminal", "org.example.log", "c"]);
    let mut other = Rig::with_ram(device, rig.ram.clone());
    other.device.pause();
    round_trip(&mut rig.device, &mut other.device);
    refuses_newer(&mut other.device);
    other.take_over(&rig);
    other.device.resume();
    assert_eq!(message(&mut other), (2, 7, 1, b"c".to_vec()));
    assert_eq!(message(&mut other), (2, 6, 1, vec![]));
    others[1].write_all(b"again").unwrap();
    post(&mut other, 4, DATA + 0x1000, 64);
    assert_eq!(next(&mut other, 4, DATA + 0x1000), b"again");
    let (device, _) = console(&["terminal"]);
    let mut smaller = Rig::new(device);
    smaller.device.pause();
    other.device.pause();
    assert!(smaller.device.restore(&other.device.save()).is_err());
}

#[test]
fn much_data_loses_nothing() {
    let (mut rig, mut host, _) = terminal();
    let text: Vec<u8> = (0..300_000u32)
        .map(|n| ((n * 5) ^ (n >> 8)) as u8)
        .collect();
    let mut writer = host.try_clone().unwrap();
    let copy = text.clone();
    let thread = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut got = Vec::new();
    while got.len() < text.len() {
        post(&mut rig, 0, DATA, 7000);
        got.extend(next(&mut rig, 0, DATA));
    }
    assert!(got == text);
    thread.join().unwrap();
    let copy = text.clone();
    let thread = std::thread::spawn(move || assert!(read(&mut host, copy.len()) == copy));
    for piece in text.chunks(10_001) {
        send(&mut rig, 1, piece);
    }
    thread.join().unwrap();
    let rig = &rig;
    wait("all buffers", || rig.used_index(1) == 30);
}
