use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::connection::BUFFER;
use super::packet::{
    HOST_CID, Header, LEN, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op,
};
use super::{VirtioVsock, VsockHandle, VsockHost};
use crate::device::Device;
use crate::lock;
use crate::testing::{refuses_newer, round_trip};
use crate::virtio::testing::{DATA, Rig, wait};

const CID: u64 = 3;
/// The guest's room for data of a connection.
const ROOM: u32 = 64 << 10;
/// Where the guest's buffers are.
const RX: u64 = DATA;
const RX_LEN: u32 = 8192;
const TX: u64 = DATA + 0x8_0000;
const PORT: u32 = 1234;

/// Keeps what the guest asks for.
#[derive(Default)]
struct Asked {
    requests: Mutex<Vec<(u64, u32)>>,
    refuses: bool,
}

impl VsockHost for Asked {
    fn requested(&self, id: u64, port: u32) -> bool {
        lock(&self.requests).push((id, port));
        !self.refuses
    }
}

struct Guest {
    rig: Rig<VirtioVsock>,
    handle: VsockHandle,
    asked: Arc<Asked>,
}

fn guest() -> Guest {
    guest_with(Asked::default(), 15)
}

fn guest_with(asked: Asked, buffers: u64) -> Guest {
    let asked = Arc::new(asked);
    let device = VirtioVsock::new(CID as u32, asked.clone());
    let handle = device.handle();
    let mut rig = Rig::new(device);
    rig.bring_up(0, 3);
    let mut guest = Guest { rig, handle, asked };
    (0..buffers).for_each(|n| guest.post(n));
    guest.rig.notify(0);
    guest
}

fn packet(host: u32, guest: u32, op: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: STREAM,
        op,
        buf_alloc: ROOM,
        ..Header::default()
    }
}

impl Guest {
    /// Receive buffer `n`.
    fn post(&mut self, n: u64) {
        let buffer = (RX + n * 0x4000, LEN as u32 + RX_LEN, true);
        let head = self.rig.chain(0, &[buffer]);
        self.rig.offer(0, head);
    }

    /// The next packet for the guest.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let (head, len) = self.rig.used(0);
        let descriptor = Rig::<VirtioVsock>::descriptors(0) + 16 * u64::from(head);
        let address = self.rig.bytes(descriptor, 8).try_into().unwrap();
        let address = u64::from_le_bytes(address);
        let bytes = self.rig.bytes(address, len as usize);
        let (header, data) = bytes.split_first_chunk::<LEN>().unwrap();
        let header = Header::parse(header);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        assert_eq!(header.len as usize, data.len());
        let data = data.to_vec();
        self.post((address - RX) / 0x4000);
        self.rig.notify(0);
        (header, data)
    }

    /// The next packet that does more than tell of room is this one.
    fn expect(&mut self, op: u16) -> Header {
        let header = loop {
            let (header, _) = self.next();
            if header.op != op::CREDIT_UPDATE || op == op::CREDIT_UPDATE {
                break header;
            }
        };
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header {
            len: data.len() as u32,
            ..header
        };
        self.rig.ram.write(TX, &header.bytes()).unwrap();
        self.rig.ram.write(TX + 4096, data).unwrap();
        let mut pieces = vec![(TX, LEN as u32, false)];
        if !data.is_empty() {
            pieces.push((TX + 4096, data.len() as u32, false));
        }
        assert_eq!(self.rig.request(1, &pieces), 0);
    }

    fn say(&mut self, op: u16) {
        self.send(packet(PORT, 99, op), &[]);
    }

    fn end(&mut self, flags: u32) {
        let header = packet(PORT, 99, op::SHUTDOWN);
        self.send(Header { flags, ..header }, &[]);
    }

    /// Guest port 99 connects to the host's [`PORT`].
    fn connect(&mut self) -> UnixStream {
        self.say(op::REQUEST);
        let (id, port) = lock(&self.asked.requests).pop().unwrap();
        assert_eq!(port, PORT);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        self.handle.answer(id, Some(theirs.into()));
        let header = self.expect(op::RESPONSE);
        assert_eq!((header.src_port, header.dst_port), (PORT, 99));
        assert!(header.buf_alloc > 0);
        ours
    }

    /// Nothing comes for the guest.
    fn expect_silence(&self) {
        let before = self.rig.used_index(0);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(self.rig.used_index(0), before);
    }
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// It is at its end.
fn ended(stream: &mut UnixStream) {
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn a_guest_connects_and_data_goes_both_ways() {
    let mut guest = guest();
    let mut host = guest.connect();
    host.write_all(b"hello guest").unwrap();
    let (header, data) = guest.next();
    assert_eq!((header.op, &data[..]), (op::RW, &b"hello guest"[..]));
    guest.send(packet(PORT, 99, op::RW), b"hello host");
    assert_eq!(read(&mut host, 10), b"hello host");
    drop(host);
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_BOTH);
    guest.say(op::RST);
    guest.expect_silence();
    // The ports are free again.
    guest.connect();
}

#[test]
fn a_host_connects() {
    let mut guest = guest();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    host.write_all(b"early").unwrap();
    guest.handle.connect(22, theirs.into());
    let request = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 22);
    let port = request.src_port;
    guest.send(packet(port, 22, op::RESPONSE), &[]);
    let greeting = format!("OK {port}\n");
    assert_eq!(read(&mut host, greeting.len()), greeting.as_bytes());
    assert_eq!(guest.next().1, b"early");
    // A greeting is none of the guest's data.
    guest.send(packet(port, 22, op::RW), b"data");
    assert_eq!(read(&mut host, 4), b"data");
    guest.send(packet(port, 22, op::CREDIT_REQUEST), &[]);
    assert_eq!(guest.expect(op::CREDIT_UPDATE).fwd_cnt, 4);
    // Nobody listens: the socket is closed without a greeting.
    let (mut host, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(23, theirs.into());
    let other = guest.expect(op::REQUEST).src_port;
    assert_ne!(other, port);
    guest.send(packet(other, 23, op::RST), &[]);
    ended(&mut host);
}

#[test]
fn what_cannot_be_is_refused() {
    let mut guest = guest_with(
        Asked {
            refuses: true,
            ..Asked::default()
        },
        15,
    );
    let header = |guest: &mut Guest| {
        let header = guest.expect(op::RST);
        (header.src_port, header.dst_port)
    };
    guest.say(op::REQUEST);
    assert_eq!(header(&mut guest), (PORT, 99));
    // No connection: anything but a reset is answered by one.
    for op in [op::RESPONSE, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, 0, 99] {
        guest.say(op);
        assert_eq!(header(&mut guest), (PORT, 99));
    }
    guest.say(op::RST);
    // Another kind of socket; another one's name.
    let seqpacket = Header {
        kind: 2,
        ..packet(PORT, 99, op::REQUEST)
    };
    guest.send(seqpacket, &[]);
    assert_eq!(header(&mut guest), (PORT, 99));
    let liar = Header {
        src_cid: 4,
        ..packet(PORT, 99, op::REQUEST)
    };
    guest.send(liar, &[]);
    guest.expect_silence();
    // Nothing but streams are taken from the host.
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    guest.handle.connect(22, file.into());
    guest.handle.connect(22, theirs.into());
    guest.expect(op::REQUEST);
    guest.rig.reset();
    ended(&mut host);
    // With no driver at work nobody answers.
    let (mut host, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(22, theirs.into());
    guest.handle.answer(1, None);
    ended(&mut host);
}

#[test]
fn an_answer_refuses_or_comes_too_late() {
    let mut guest = guest();
    guest.say(op::REQUEST);
    let (id, _) = lock(&guest.asked.requests).pop().unwrap();
    guest.handle.answer(id, None);
    guest.expect(op::RST);
    let (mut host, theirs) = UnixStream::pair().unwrap();
    guest.handle.answer(id, Some(theirs.into()));
    ended(&mut host);
    // Data before the answer is against the rules.
    guest.say(op::REQUEST);
    guest.send(packet(PORT, 99, op::RW), b"x");
    guest.expect(op::RST);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = guest();
    let mut host = guest.connect();
    let room = |alloc, fwd| Header {
        buf_alloc: alloc,
        fwd_cnt: fwd,
        ..packet(PORT, 99, op::CREDIT_UPDATE)
    };
    guest.send(room(10, 0), &[]);
    host.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(guest.next().1, b"0123456789");
    guest.expect(op::CREDIT_REQUEST);
    guest.expect_silence();
    guest.send(room(10, 4), &[]);
    assert_eq!(guest.next().1, b"abcd");
    guest.expect(op::CREDIT_REQUEST);
    // Less than before; counts that cannot be are harmless.
    guest.send(room(2, 5), &[]);
    guest.send(room(10, 0xFFFF_0000), &[]);
    guest.expect_silence();
    guest.send(room(10, 14), &[]);
    assert_eq!(guest.next().1, b"ef");
}

#[test]
fn much_data_loses_nothing() {
    let mut guest = guest();
    let mut host = guest.connect();
    let text: Vec<u8> = (0..1 << 20u32).map(|n| (n * 7 + (n >> 9)) as u8).collect();
    let copy = text.clone();
    let mut writer = host.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        assert!(read(&mut host, copy.len()) == copy);
        host
    });
    let mut got = Vec::new();
    while got.len() < text.len() {
        let (header, data) = guest.next();
        got.extend(data);
        if header.op == op::CREDIT_REQUEST || got.len() % 32768 < RX_LEN as usize {
            let fwd_cnt = got.len() as u32;
            let header = packet(PORT, 99, op::CREDIT_UPDATE);
            guest.send(Header { fwd_cnt, ..header }, &[]);
        }
    }
    assert!(got == text);
    let mut sent = 0;
    let mut forwarded = 0;
    for piece in text.chunks(60_000) {
        while sent + piece.len() as u32 - forwarded > BUFFER {
            // Room is made known without being asked for.
            forwarded = guest.next().0.fwd_cnt;
        }
        let header = Header {
            fwd_cnt: text.len() as u32,
            ..packet(PORT, 99, op::RW)
        };
        guest.send(header, piece);
        sent += piece.len() as u32;
    }
    drop(thread.join().unwrap());
}

#[test]
fn more_than_there_is_room_for_ends_a_connection() {
    let mut guest = guest();
    let mut host = guest.connect();
    // The host does not read: its socket takes some, then the device does.
    let piece = [0xA5; 65536];
    let mut sent = 0;
    let mut reset = false;
    let deadline = Instant::now() + Duration::from_secs(120);
    while !reset {
        assert!(Instant::now() < deadline, "{sent} bytes are not too many");
        guest.send(packet(PORT, 99, op::RW), &piece);
        sent += piece.len();
        std::thread::sleep(Duration::from_millis(2));
        while guest.rig.has_used(0) {
            reset |= guest.next().0.op == op::RST;
        }
    }
    // Everything that was within the rules arrives.
    let mut got = Vec::new();
    host.read_to_end(&mut got).unwrap();
    assert!(got.len() >= BUFFER as usize && got.len() < sent);
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = guest();
    let mut host = guest.connect();
    guest.send(packet(PORT, 99, op::RW), b"last words");
    guest.end(SHUTDOWN_SEND);
    assert_eq!(read(&mut host, 10), b"last words");
    ended(&mut host);
    host.write_all(b"still here").unwrap();
    assert_eq!(guest.next().1, b"still here");
    drop(host);
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_BOTH);
    guest.say(op::RST);

    let mut host = guest.connect();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_SEND);
    guest.send(packet(PORT, 99, op::RW), b"answer");
    assert_eq!(read(&mut host, 6), b"answer");
    guest.end(SHUTDOWN_BOTH);
    guest.expect(op::RST);
    ended(&mut host);

    let mut host = guest.connect();
    guest.end(SHUTDOWN_RECEIVE);
    wait("a broken pipe", || {
        let error = (&host).write(b"x").err().map(|error| error.kind());
        error == Some(ErrorKind::BrokenPipe)
    });
    guest.send(packet(PORT, 99, op::RW), b"one way");
    assert_eq!(read(&mut host, 7), b"one way");
}

#[test]
fn what_the_guest_sent_before_it_closed_arrives() {
    let mut guest = guest();
    let mut host = guest.connect();
    let mut sent = Vec::new();
    // More than a socket takes, less than too much.
    let mut room = BUFFER;
    while room >= 65536 {
        let piece: Vec<u8> = (0..65536u32)
            .map(|n| (n + sent.len() as u32 / 7) as u8)
            .collect();
        guest.send(packet(PORT, 99, op::RW), &piece);
        sent.extend(piece);
        guest.say(op::CREDIT_REQUEST);
        let update = guest.expect(op::CREDIT_UPDATE);
        room = BUFFER - (sent.len() as u32 - update.fwd_cnt);
    }
    guest.end(SHUTDOWN_BOTH);
    guest.expect(op::RST);
    // The same ports again, while the host has not read yet.
    let mut other = guest.connect();
    other.write_all(b"new").unwrap();
    assert_eq!(guest.next().1, b"new");
    let mut got = Vec::new();
    host.read_to_end(&mut got).unwrap();
    assert!(got == sent);
}

#[test]
fn connections_are_bounded() {
    let mut guest = guest();
    let mut hosts = Vec::new();
    let ports = 1000..1000 + super::switchboard::CONNECTIONS_MAX as u32;
    for port in ports.clone() {
        guest.send(packet(PORT, port, op::REQUEST), &[]);
        let (id, _) = lock(&guest.asked.requests).pop().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        guest.handle.answer(id, Some(theirs.into()));
        guest.expect(op::RESPONSE);
        hosts.push(ours);
    }
    guest.send(packet(PORT, 9999, op::REQUEST), &[]);
    assert_eq!(guest.expect(op::RST).dst_port, 9999);
    drop(hosts.pop());
    guest.expect(op::SHUTDOWN);
    guest.send(packet(PORT, ports.end - 1, op::RST), &[]);
    guest.connect();
    // All have their turn.
    for host in &mut hosts {
        host.write_all(b"x").unwrap();
    }
    let mut ports: Vec<u32> = hosts.iter().map(|_| guest.next().0.dst_port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), hosts.len());
}

#[test]
fn packets_wait_for_buffers_and_resets_are_bounded() {
    let mut guest = guest_with(Asked::default(), 0);
    // Nobody takes the answers: after some the device takes no more packets.
    let header = packet(PORT, 99, op::RW);
    guest.rig.ram.write(TX, &header.bytes()).unwrap();
    let mut sent = 0;
    loop {
        let head = guest.rig.chain(1, &[(TX, LEN as u32, false)]);
        guest.rig.offer(1, head);
        guest.rig.notify(1);
        sent += 1;
        std::thread::sleep(Duration::from_micros(500));
        if guest.rig.used_index(1) != sent {
            std::thread::sleep(Duration::from_millis(50));
            if guest.rig.used_index(1) != sent {
                break;
            }
        }
        assert!(sent < 1000);
    }
    for n in 0..8 {
        guest.post(n);
    }
    guest.rig.notify(0);
    for _ in 0..sent {
        guest.expect(op::RST);
    }
    let rig = &guest.rig;
    wait("all packets", || rig.used_index(1) == sent);
}

#[test]
fn broken_packets_stop_the_device() {
    let mut guest = guest();
    let short = [(TX, LEN as u32 - 1, false)];
    let head = guest.rig.chain(1, &short);
    guest.rig.offer(1, head);
    guest.rig.notify(1);
    guest.rig.expect_failure("no complete header");
    let mut guest = self::guest();
    let header = Header {
        len: 1,
        ..packet(PORT, 99, op::RW)
    };
    guest.rig.ram.write(TX, &header.bytes()).unwrap();
    let head = guest.rig.chain(1, &[(TX, LEN as u32, false)]);
    guest.rig.offer(1, head);
    guest.rig.notify(1);
    guest.rig.expect_failure("less data than its header says");
}

#[test]
fn a_machine_that_stands_still_takes_nothing() {
    let mut guest = guest();
    let mut host = guest.connect();
    guest.rig.device.pause();
    host.write_all(b"wait").unwrap();
    guest.expect_silence();
    guest.rig.device.resume();
    assert_eq!(guest.next().1, b"wait");
    guest.rig.reset();
    ended(&mut host);
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    let mut one = guest();
    let _host = one.connect();
    one.rig.device.pause();
    let asked = Arc::new(Asked::default());
    let device = VirtioVsock::new(CID as u32, asked.clone());
    let handle = device.handle();
    let mut two = Rig::with_ram(device, one.rig.ram.clone());
    two.device.pause();
    round_trip(&mut one.rig.device, &mut two.device);
    refuses_newer(&mut two.device);
    two.take_over(&one.rig);
    two.device.resume();
    let head = two.chain(2, &[(TX + 0x1_0000, 4, true)]);
    two.ram.write(TX + 0x1_0000, &[0xFF; 4]).unwrap();
    two.offer(2, head);
    two.notify(2);
    assert_eq!(two.used(2), (u32::from(head), 4));
    assert_eq!(two.bytes(TX + 0x1_0000, 4), [0; 4]);
    let mut two = Guest {
        rig: two,
        handle,
        asked,
    };
    two.send(packet(PORT, 99, op::RW), b"who?");
    two.expect(op::RST);
    two.connect();
    // Told once only.
    let head = two.rig.chain(2, &[(TX + 0x1_0000, 4, true)]);
    two.rig.offer(2, head);
    two.rig.notify(2);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(two.rig.used_index(2), 1);
}
