use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use croft_net::Stream;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS,
};

use super::*;
use crate::device::Device;
use crate::lock;
use crate::testing::{refuses_newer, round_trip};
use crate::virtio::testing::{DATA, Rig, wait};

const MAC: [u8; 6] = [2, 0xC7, 0x0F, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0xC7, 0x0F, 0, 0, 2];
/// Where the driver's frames are.
const TX: u64 = DATA + 0x10_0000;
/// Where its commands are, and their answers.
const COMMAND: u64 = DATA + 0x18_0000;
const ANSWER: u64 = COMMAND + 0x8000;
const CONFIG: u64 = 0x2000;
const HEADER: usize = 12;

/// What a driver of today accepts.
const ALL: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_CTRL_RX
    | 1 << VIRTIO_NET_F_CTRL_RX_EXTRA
    | 1 << VIRTIO_NET_F_CTRL_VLAN
    | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR
    | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;

#[derive(Default)]
struct Lost(Mutex<Vec<String>>);

impl NicHost for Lost {
    fn lost(&self, name: &str) {
        lock(&self.0).push(name.to_owned());
    }
}

fn options(pairs: u16, backend: Option<Backend>) -> NicOptions {
    NicOptions {
        name: "net0".to_owned(),
        mac: MAC,
        mtu: 1500,
        pairs,
        limits: Limits::default(),
        link: true,
        backend,
    }
}

fn stream() -> (Backend, UnixStream) {
    let (ours, theirs) = ends();
    (Stream::new(ours.into(), 1500).into(), theirs)
}

/// The device's end and the other.
fn ends() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs
        .set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    (ours, theirs)
}

/// A device on a stream, its driver, and the other end.
struct Net {
    rig: Rig<VirtioNet>,
    peer: UnixStream,
    /// The device's end once more, to see what it has not taken.
    device_end: UnixStream,
    handle: NicHandle,
    lost: Arc<Lost>,
}

fn net_with(features: u64, pairs: u16, change: impl FnOnce(&mut NicOptions)) -> Net {
    let (ours, peer) = ends();
    let device_end = ours.try_clone().unwrap();
    let backend = Stream::new(ours.into(), 1500).into();
    let mut options = options(pairs, Some(backend));
    change(&mut options);
    let lost = Arc::<Lost>::default();
    let device = VirtioNet::new(options, lost.clone());
    let handle = device.handle();
    let mut rig = Rig::new(device);
    rig.bring_up(features, 2 * pairs + 1);
    Net {
        rig,
        peer,
        device_end,
        handle,
        lost,
    }
}

fn net(features: u64) -> Net {
    net_with(features, 1, |_| {})
}

/// An Ethernet frame of `len` bytes.
fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend(OTHER);
    frame.extend([0x88, 0xB5]);
    frame.extend((0..len - 14).map(|n| n as u8));
    frame
}

impl Net {
    /// The other end sends.
    fn arrive(&mut self, frame: &[u8]) {
        let length = (frame.len() as u32).to_be_bytes();
        self.peer.write_all(&[&length, frame].concat()).unwrap();
    }

    /// What came to the other end.
    fn heard(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.peer.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.peer.read_exact(&mut frame).unwrap();
        frame
    }

    /// All that the other end has sent is taken from there.
    fn taken(&self) {
        wait("what was sent to be taken", || {
            rustix::io::ioctl_fionread(&self.device_end).unwrap() == 0
        });
    }

    fn hears_nothing(&mut self) {
        self.peer
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let error = loop {
            let error = self.peer.read(&mut [0; 4]).unwrap_err();
            // By who stopped this process and let it go on.
            if error.kind() != ErrorKind::Interrupted {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        self.peer
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
    }

    /// Makes room for frames.
    fn post(&mut self, at: u64, len: u32) {
        let head = self.rig.chain(0, &[(at, len, true)]);
        self.rig.offer(0, head);
        self.rig.notify(0);
    }

    /// A frame of the driver's, in two buffers.
    fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        self.rig.ram.write(TX, &header).unwrap();
        self.rig.ram.write(TX + HEADER as u64, frame).unwrap();
        let len = (HEADER + frame.len()) as u32;
        let pieces = [(TX, 20, false), (TX + 20, len - 20, false)];
        assert_eq!(self.rig.request(1, &pieces), 0);
    }

    fn command(&mut self, bytes: &[u8]) -> u8 {
        self.rig.ram.write(COMMAND, bytes).unwrap();
        self.rig.ram.write(ANSWER, &[0xEE]).unwrap();
        let pieces = [(COMMAND, bytes.len() as u32, false), (ANSWER, 1, true)];
        let queue = self.rig.device_queues() - 1;
        assert_eq!(self.rig.request(queue, &pieces), 1);
        self.rig.bytes(ANSWER, 1)[0]
    }

    fn status(&mut self) -> u64 {
        self.rig.read(CONFIG + 6, 2)
    }
}

impl Rig<VirtioNet> {
    fn device_queues(&mut self) -> u16 {
        self.read(0x12, 2) as u16
    }
}

#[test]
fn what_the_driver_is_told() {
    let mut net = net(ALL);
    assert_eq!(net.rig.offered() & ALL, ALL);
    assert_eq!(net.rig.offered() & 1 << VIRTIO_NET_F_MQ, 0);
    let mut config = [0; 12];
    for (at, byte) in (0..).zip(&mut config) {
        *byte = net.rig.read(CONFIG + at, 1) as u8;
    }
    assert_eq!(config, [2, 0xC7, 0x0F, 0, 0, 1, 1, 0, 1, 0, 0xDC, 5]);
    let mut net = net_with(ALL, 2, |_| {});
    assert_ne!(net.rig.offered() & 1 << VIRTIO_NET_F_MQ, 0);
    assert_eq!(net.rig.device_queues(), 5);
}

#[test]
fn frames_go_both_ways() {
    let mut net = net(ALL);
    let sent = frame(OTHER, 200);
    net.send([0; HEADER], &sent);
    assert_eq!(net.heard(), sent);
    // Buffers before the frame, and after it.
    net.post(DATA, 2000);
    let got = frame(MAC, 1514);
    net.arrive(&got);
    let (_, len) = net.rig.used(0);
    assert_eq!(len as usize, HEADER + got.len());
    let bytes = net.rig.bytes(DATA, len as usize);
    // Its checksums are right, and it is in one buffer.
    assert_eq!(bytes[..HEADER], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bytes[HEADER..], got);
    net.arrive(&frame(MAC, 60));
    net.arrive(&frame(MAC, 61));
    net.post(DATA, 2000);
    assert_eq!(net.rig.used(0).1, 72);
    net.post(DATA, 2000);
    assert_eq!(net.rig.used(0).1, 73);
}

#[test]
fn a_frame_in_several_buffers() {
    let mut net = net(ALL);
    let got = frame(MAC, 1000);
    net.post(DATA, 400);
    net.post(DATA + 400, 400);
    net.arrive(&got);
    // They are too few: none is used.
    std::thread::sleep(Duration::from_millis(30));
    assert!(!net.rig.has_used(0));
    net.post(DATA + 800, 400);
    let used: Vec<_> = (0..3).map(|_| net.rig.used(0).1).collect();
    assert_eq!(used, [400, 400, 212]);
    let bytes = net.rig.bytes(DATA, 1012);
    assert_eq!(bytes[10..12], [3, 0]);
    assert_eq!(bytes[HEADER..], got);
    // One that all buffers together do not hold is for nobody.
    net.arrive(&frame(MAC, 1400));
    for n in 0..15 {
        net.post(DATA + n * 20, 20);
    }
    std::thread::sleep(Duration::from_millis(30));
    assert!(!net.rig.has_used(0));
    net.arrive(&frame(MAC, 100));
    net.post(DATA + 2000, 1200);
    let used: Vec<_> = (0..16).map(|_| net.rig.used(0).1).collect();
    assert_eq!(used.iter().sum::<u32>(), 1412);
}

#[test]
fn a_driver_that_accepts_little() {
    let mut net = net(1 << VIRTIO_NET_F_STATUS);
    net.post(DATA, 100);
    net.post(DATA + 200, 2000);
    // Each buffer is for one frame: what it does not hold is lost.
    net.arrive(&frame(MAC, 300));
    net.arrive(&frame(MAC, 80));
    assert_eq!(net.rig.used(0).1, 92);
    assert_eq!(
        net.rig.bytes(DATA, HEADER),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    );
    // What it did not accept it cannot ask for.
    let mut header = [0; HEADER];
    header[0] = 1;
    net.send(header, &frame(OTHER, 100));
    header = [0; HEADER];
    header[1] = 1;
    net.send(header, &frame(OTHER, 100));
    header[1] = 3;
    net.send(header, &frame(OTHER, 100));
    net.send([0; HEADER], &frame(OTHER, 77));
    assert_eq!(net.heard().len(), 77);
}

/// A TCP packet over IPv4 with `len` bytes of data.
fn tcp(len: usize) -> Vec<u8> {
    let mut frame = OTHER.to_vec();
    frame.extend(MAC);
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((40 + len as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18]);
    frame.extend([1, 0, 0, 0, 0, 0]);
    frame.extend((0..len).map(|n| n as u8));
    frame
}

#[test]
fn large_packets_are_cut() {
    let mut net = net(ALL);
    let packet = tcp(4000);
    // Checksum at 34 + 16; segments of 1448 bytes.
    let header = [1, 1, 54, 0, 0xA8, 5, 34, 0, 16, 0, 0, 0];
    net.send(header, &packet);
    let mut data: Vec<u8> = Vec::new();
    for len in [1448, 1448, 1104] {
        let frame = net.heard();
        assert_eq!(frame.len(), 54 + len);
        data.extend(&frame[54..]);
    }
    assert_eq!(data, packet[54..]);
    // A header that lies costs the frame alone.
    let mut wrong = header;
    wrong[6] = 35;
    net.send(wrong, &packet);
    wrong = header;
    wrong[4..6].copy_from_slice(&[0, 0]);
    net.send(wrong, &packet);
    net.send([1, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], &packet);
    net.send([0; HEADER], &[1; 13]);
    net.send([0; HEADER], &frame(OTHER, 90));
    assert_eq!(net.heard().len(), 90);
}

#[test]
fn drivers_that_break_the_rules() {
    let mut net = net(ALL);
    let head = net.rig.chain(1, &[(TX, 11, false)]);
    net.rig.offer(1, head);
    net.rig.notify(1);
    net.rig.expect_failure("no complete header");
    net.rig.bring_up(ALL, 3);
    net.arrive(&frame(MAC, 100));
    net.post(DATA, 5);
    net.post(DATA + 100, 500);
    net.rig.expect_failure("no room for a frame's header");
    net.rig.bring_up(ALL, 3);
    let head = net.rig.chain(2, &[(COMMAND, 3, false)]);
    net.rig.offer(2, head);
    net.rig.notify(2);
    net.rig.expect_failure("no room for its answer");
    net.rig.bring_up(ALL, 3);
    let head = net.rig.chain(1, &[(u64::MAX - 5, 100, false)]);
    net.rig.offer(1, head);
    net.rig.notify(1);
    net.rig.expect_failure("not in RAM");
    net.rig.bring_up(ALL, 3);
    // What had come and was not given to a driver is still there.
    net.post(DATA, 2000);
    assert_eq!(net.rig.used(0).1, 112);
    // Longer than any frame.
    net.rig
        .request(1, &[(TX, 0x1_0000, false), (TX, 0x1_0000, false)]);
    net.hears_nothing();
}

#[test]
fn commands() {
    let mut net = net(ALL);
    // Not promiscuous: then only what is for this NIC.
    assert_eq!(net.command(&[0, 0, 0]), 0);
    net.post(DATA, 2000);
    net.arrive(&frame(OTHER, 60));
    net.arrive(&frame([1, 0, 0x5E, 0, 0, 1], 61));
    net.arrive(&frame([0xFF; 6], 62));
    assert_eq!(net.rig.used(0).1, 74);
    // A table of one address and one group.
    let mut table = vec![1, 0, 1, 0, 0, 0];
    table.extend(OTHER);
    table.extend([1, 0, 0, 0, 1, 0, 0x5E, 0, 0, 1]);
    assert_eq!(net.command(&table), 0);
    net.post(DATA, 2000);
    net.arrive(&frame([1, 0, 0x5E, 0, 0, 2], 60));
    net.arrive(&frame(OTHER, 63));
    assert_eq!(net.rig.used(0).1, 75);
    // It ends too early; its length is nonsense.
    assert_eq!(net.command(&table[..table.len() - 1]), 1);
    assert_eq!(net.command(&[1, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]), 1);
    // Another address.
    let address = [2, 9, 9, 9, 9, 9];
    assert_eq!(net.command(&[&[1, 1][..], &address].concat()), 0);
    assert_eq!(net.rig.read(CONFIG, 6), 0x0909_0909_0902);
    net.post(DATA, 2000);
    net.arrive(&frame(MAC, 60));
    net.arrive(&frame(address, 64));
    assert_eq!(net.rig.used(0).1, 76);
    // VLANs.
    assert_eq!(net.command(&[2, 0, 5, 0]), 0);
    assert_eq!(net.command(&[2, 1, 5, 0]), 0);
    assert_eq!(net.command(&[2, 0, 0, 0x10]), 1);
    // What the driver takes over, and what it does not.
    assert_eq!(net.command(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert_eq!(net.command(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]), 1);
    assert_eq!(net.command(&[5, 0, 0]), 1);
    assert_eq!(net.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
    net.post(DATA, 2000);
    net.arrive(&frame(address, 65));
    net.rig.used(0);
    assert_eq!(net.rig.bytes(DATA, 1), [0]);
    // Nonsense, and what is not there.
    for command in [
        &[][..],
        &[0],
        &[9, 9, 9],
        &[0, 6, 1],
        &[0, 0],
        &[3, 1],
        &[4, 0, 1, 0],
    ] {
        assert_eq!(net.command(command), 1, "{command:?}");
    }
    // All as before, after a reset.
    net.rig.reset();
    assert_eq!(net.rig.read(CONFIG, 6), 0x0100_000F_C702);
}

#[test]
fn pairs_of_queues() {
    let features = ALL | 1 << VIRTIO_NET_F_MQ;
    let mut net = net_with(features, 2, |_| {});
    assert_eq!(net.command(&[4, 0, 2, 0]), 0);
    for pairs in [0, 3] {
        assert_eq!(net.command(&[4, 0, pairs, 0]), 1);
    }
    assert_eq!(net.command(&[4, 1, 1, 0]), 1);
    // Both pairs send; a stream's frames come by the first one.
    for queue in [1, 3] {
        net.rig.ram.write(TX, &[0; HEADER]).unwrap();
        let frame = frame(OTHER, 100 + usize::from(queue));
        net.rig.ram.write(TX + HEADER as u64, &frame).unwrap();
        let len = (HEADER + frame.len()) as u32;
        net.rig.request(queue, &[(TX, len, false)]);
        assert_eq!(net.heard(), frame);
    }
    net.post(DATA, 2000);
    net.arrive(&frame(MAC, 60));
    assert_eq!(net.rig.used(0).1, 72);
    // Without the feature the third queue is the one of commands.
    net.rig.reset();
    net.rig.bring_up(ALL, 3);
    net.rig.ram.write(COMMAND, &[0, 0, 0]).unwrap();
    let pieces = [(COMMAND, 3, false), (ANSWER, 1, true)];
    assert_eq!(net.rig.request(2, &pieces), 1);
    assert_eq!(net.rig.bytes(ANSWER, 1), [0]);
}

/// Without EVENT_IDX, too.
#[test]
fn a_queue_that_did_nothing_interrupts_nobody() {
    let mut net = net(ALL);
    net.rig.use_msix(3);
    for _ in 0..20 {
        net.rig.notify(0);
        net.rig.notify(1);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(net.rig.world.take_messages(), []);
    net.send([0; HEADER], &frame(OTHER, 60));
    wait("the interrupt", || {
        !net.rig.world.take_messages().is_empty()
    });
}

#[test]
fn the_link_goes_and_comes() {
    let mut net = net(ALL);
    net.rig.use_msix(3);
    assert_eq!(net.status(), 1);
    net.handle.set_link(false);
    assert!(!net.handle.is_up());
    assert_eq!(net.status(), 0);
    assert_eq!(net.rig.world.take_messages(), [(0xFEE0_0000, 0)]);
    // Whoever looked at the link before has done what he did.
    net.rig.device.pause();
    net.rig.device.resume();
    // What comes now is for nobody.
    net.send([0; HEADER], &frame(OTHER, 60));
    net.hears_nothing();
    net.arrive(&frame(MAC, 60));
    net.taken();
    net.handle.set_link(true);
    // The driver is to announce itself.
    assert_eq!(net.status(), 3);
    assert_eq!(net.command(&[3, 0]), 0);
    assert_eq!(net.status(), 1);
    net.post(DATA, 2000);
    net.arrive(&frame(MAC, 70));
    assert_eq!(net.rig.used(0).1, 82);
    // The other end goes, and another one comes.
    let (backend, peer) = stream();
    net.peer = peer;
    wait("the loss", || !net.handle.is_up());
    wait("word of it", || *lock(&net.lost.0) == ["net0"]);
    assert_eq!(net.status(), 0);
    net.send([0; HEADER], &frame(OTHER, 60));
    net.handle.set_backend(Some(backend));
    assert_eq!(net.status(), 3);
    net.send([0; HEADER], &frame(OTHER, 61));
    assert_eq!(net.heard().len(), 61);
    net.post(DATA, 2000);
    net.arrive(&frame(MAC, 71));
    assert_eq!(net.rig.used(0).1, 83);
    // Something takes the place of what works.
    let (backend, peer) = stream();
    net.handle.set_backend(Some(backend));
    net.peer = peer;
    net.send([0; HEADER], &frame(OTHER, 62));
    assert_eq!(net.heard().len(), 62);
    assert_eq!(lock(&net.lost.0).len(), 1);
}

#[test]
fn limits_hold_both_ways() {
    let rate = Rate {
        frames_per_second: Some(100),
        bytes_per_second: None,
    };
    let mut net = net_with(ALL, 1, |options| {
        options.limits = Limits {
            inbound: rate,
            outbound: rate,
        };
    });
    let start = Instant::now();
    for _ in 0..20 {
        net.send([0; HEADER], &frame(OTHER, 60));
    }
    let sent = start.elapsed();
    assert!(sent > Duration::from_millis(130), "{sent:?}");
    let start = Instant::now();
    for _ in 0..20 {
        net.arrive(&frame(MAC, 60));
    }
    for _ in 0..20 {
        net.post(DATA, 2000);
        net.rig.used(0);
    }
    let received = start.elapsed();
    assert!(received > Duration::from_millis(130), "{received:?}");
    net.handle.set_limits(Limits::default());
    for _ in 0..20 {
        net.send([0; HEADER], &frame(OTHER, 60));
    }
}

#[test]
fn a_peer_that_does_not_read_holds_the_driver_up() {
    let mut net = net(ALL);
    let len = (HEADER + 1514) as u32;
    net.rig.ram.write(TX, &[0; HEADER]).unwrap();
    net.rig
        .ram
        .write(TX + HEADER as u64, &frame(OTHER, 1514))
        .unwrap();
    let mut sent = 0;
    // Until the socket and what is kept before it are full.
    loop {
        let head = net.rig.chain(1, &[(TX, len, false)]);
        net.rig.offer(1, head);
        net.rig.notify(1);
        let deadline = Instant::now() + Duration::from_millis(200);
        while !net.rig.has_used(1) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        if !net.rig.has_used(1) {
            break;
        }
        net.rig.used(1);
        sent += 1;
        assert!(sent < 10_000);
    }
    for _ in 0..=sent {
        assert_eq!(net.heard(), frame(OTHER, 1514));
    }
    net.rig.used(1);
    net.hears_nothing();
}

#[test]
fn state_moves_to_another() {
    let mut one = net_with(ALL, 1, |options| options.mtu = 9000);
    assert_eq!(one.command(&[0, 0, 0]), 0);
    assert_eq!(one.command(&[2, 0, 7, 0]), 0);
    assert_eq!(one.command(&[1, 1, 2, 3, 4, 5, 6, 7]), 0);
    assert_eq!(one.command(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
    one.rig.device.pause();
    let state = one.rig.device.save();
    let (ours, peer) = ends();
    let device_end = ours.try_clone().unwrap();
    let backend = Stream::new(ours.into(), 1500).into();
    let device = VirtioNet::new(options(1, Some(backend)), Arc::<Lost>::default());
    let handle = device.handle();
    let mut two = Net {
        rig: Rig::with_ram(device, one.rig.ram.clone()),
        peer,
        device_end,
        handle,
        lost: Arc::default(),
    };
    two.rig.device.restore(&state).unwrap();
    two.rig.take_over(&one.rig);
    // The driver is to announce itself, and has what it had.
    assert_eq!(two.status(), 3);
    assert_eq!(two.handle.mtu(), 9000);
    let DeviceState::VirtioNet(before) = &state else {
        panic!("{state:?}");
    };
    let DeviceState::VirtioNet(after) = two.rig.device.save() else {
        panic!("another state");
    };
    assert_eq!(
        (&after.filter, after.offloads),
        (&before.filter, before.offloads)
    );
    assert!(after.announce && !before.announce);
    two.rig.device.resume();
    two.post(DATA, 2000);
    two.arrive(&frame(MAC, 60));
    two.arrive(&frame([2, 3, 4, 5, 6, 7], 61));
    assert_eq!(two.rig.used(0).1, 73);
    two.send([0; HEADER], &frame(OTHER, 62));
    assert_eq!(two.heard().len(), 62);
    assert_eq!(two.command(&[3, 0]), 0);
    assert_eq!(two.status(), 1);
    refuses_newer(&mut two.rig.device);
}

#[test]
fn states_that_cannot_be() {
    let device = |pairs| Rig::new(VirtioNet::new(options(pairs, None), Arc::<Lost>::default()));
    let (mut one, mut two) = (device(2), device(2));
    round_trip(&mut one.device, &mut two.device);
    let good = one.device.save();
    let refused = |change: fn(&mut VirtioNetState), why: &str| {
        let mut state = good.clone();
        if let DeviceState::VirtioNet(state) = &mut state {
            change(state);
        }
        let error = device(2).device.restore(&state).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(|state| state.pairs = 0, "queues");
    refused(|state| state.pairs = 3, "queues");
    refused(|state| state.offloads = 1 << 60, "takes over");
    refused(|state| state.filter.vlans = Some(vec![0; 3]), "filter");
    refused(
        |state| state.filter.unicast.listed = vec![MAC; 65],
        "filter",
    );
    let error = device(1).device.restore(&good).unwrap_err().to_string();
    assert!(error.contains("queues"), "{error}");
}
