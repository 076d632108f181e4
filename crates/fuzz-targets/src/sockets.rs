//! Sockets and terminals: packets, buffers and a host's side in any order.
//!
//! Promised: nothing panics or goes on without end; packets for the guest are
//! well-formed and no larger than its buffers and its room; a terminal's bytes
//! arrive as they were sent, whatever buffers carry them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use croft_devices::virtio::console::{PortConfig, VirtioConsole};
use croft_devices::virtio::queue::{ActiveQueue, RingPlace};
use croft_devices::virtio::vsock::{VirtioVsock, VsockHost};
use croft_devices::virtio::{Queues, Service, VirtioDevice};
use croft_memory::{GuestRam, Range};

use crate::input::Input;

const RAM: u64 = 512 << 10;
const SIZE: u16 = 16;
/// Bytes of a queue's rings, and of each of its buffers.
const RINGS: u64 = 0x1000;
const BUFFER: u64 = 0x1000;
/// Where the buffers are, those of a queue together.
const BUFFERS: u64 = 0x1_0000;
const CID: u64 = 3;
/// Calls of a service for one change: it must come to rest.
const CALLS: usize = 100;

/// A driver's side of some queues. Buffer `n` of a queue has descriptor `n`.
pub(crate) struct Driver {
    ram: GuestRam,
    queues: Vec<(u16, ActiveQueue)>,
    /// Made available and looked at, by queue.
    available: Vec<u16>,
    seen: Vec<u16>,
    live: AtomicBool,
}

impl Driver {
    pub fn new(count: u16) -> Self {
        let ram = GuestRam::new(&[Range { start: 0, len: RAM }]).expect("a little memory");
        let queue = |index: u16| {
            let base = u64::from(index) * RINGS;
            let place = RingPlace {
                size: SIZE,
                descriptors: base,
                driver: base + 0x400,
                device: base + 0x800,
            };
            let active = ActiveQueue::new(&ram, place, SIZE, false, (0, 0));
            (index, active.expect("a ring"))
        };
        let queues = (0..count).map(queue).collect();
        let zeros = vec![0; usize::from(count)];
        Driver {
            ram,
            queues,
            available: zeros.clone(),
            seen: zeros,
            live: AtomicBool::new(true),
        }
    }

    fn half(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.ram.read(at, &mut bytes).expect("RAM");
        u16::from_le_bytes(bytes)
    }

    fn used(&self, queue: u16) -> u16 {
        self.half(u64::from(queue) * RINGS + 0x802)
    }

    /// Makes a buffer available, with `data` for the device or `len` bytes of
    /// room; false when all are in use.
    pub fn offer(&mut self, queue: u16, data: Option<&[u8]>, len: u32) -> bool {
        let index = usize::from(queue);
        if self.available[index].wrapping_sub(self.seen[index]) >= SIZE {
            return false;
        }
        let slot = self.available[index] % SIZE;
        let base = u64::from(queue) * RINGS;
        let at = buffer(queue, slot);
        let mut descriptor = at.to_le_bytes().to_vec();
        descriptor.extend(data.map_or(len, |data| data.len() as u32).to_le_bytes());
        descriptor.extend(u16::from(data.is_none()).wrapping_mul(2).to_le_bytes());
        descriptor.extend([0; 2]);
        let put = |at: u64, bytes: &[u8]| self.ram.write(at, bytes).expect("RAM");
        put(at, data.unwrap_or_default());
        put(base + 16 * u64::from(slot), &descriptor);
        put(base + 0x404 + 2 * u64::from(slot), &slot.to_le_bytes());
        self.available[index] = self.available[index].wrapping_add(1);
        put(base + 0x402, &self.available[index].to_le_bytes());
        true
    }

    /// Makes a buffer with `data` for the device available, and `room` bytes
    /// in the same chain; one at a time.
    pub fn offer_pair(&mut self, queue: u16, data: &[u8], room: u32) -> bool {
        let base = u64::from(queue) * RINGS;
        if !self.offer(queue, Some(data), 0) {
            return false;
        }
        let first = self.available[usize::from(queue)].wrapping_sub(1) % SIZE;
        let second = (first + 1) % SIZE;
        let put = |at: u64, bytes: &[u8]| self.ram.write(at, bytes).expect("RAM");
        // NEXT, and where that is; then WRITE.
        put(base + 16 * u64::from(first) + 12, &[1, 0]);
        put(base + 16 * u64::from(first) + 14, &second.to_le_bytes());
        let mut descriptor = (buffer(queue, second) + BUFFER / 2).to_le_bytes().to_vec();
        descriptor.extend(room.to_le_bytes());
        descriptor.extend([2, 0, 0, 0]);
        put(base + 16 * u64::from(second), &descriptor);
        true
    }

    /// What came back in `queue`: contents, as long as the device says.
    pub fn take(&mut self, queue: u16) -> Vec<Vec<u8>> {
        let index = usize::from(queue);
        let mut all = Vec::new();
        while self.seen[index] != self.used(queue) {
            let slot = self.seen[index] % SIZE;
            let at = u64::from(queue) * RINGS + 0x804 + 8 * u64::from(slot);
            let mut element = [0; 8];
            self.ram.read(at, &mut element).expect("RAM");
            let [a, b, _, _, len @ ..] = element;
            let len = u32::from_le_bytes(len) as usize;
            assert!(len <= BUFFER as usize, "{len} bytes were written");
            let mut bytes = vec![0; len];
            let head = u16::from_le_bytes([a, b]);
            self.ram.read(buffer(queue, head), &mut bytes).expect("RAM");
            all.push(bytes);
            self.seen[index] = self.seen[index].wrapping_add(1);
        }
        all
    }

    /// Lets the service work until it rests; false when it stopped.
    pub fn serve(&mut self, service: &mut dyn Service) -> bool {
        for _ in 0..CALLS {
            let interrupt = |_| {};
            let mut queues = Queues::new(&mut self.queues, &self.ram, &self.live, &interrupt);
            match service.serve(&mut queues) {
                Ok(next) if next.again => {}
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
        panic!("it does not come to rest");
    }
}

fn buffer(queue: u16, slot: u16) -> u64 {
    BUFFERS + (u64::from(queue) * u64::from(SIZE) + u64::from(slot)) * BUFFER
}

/// Keeps what the guest asks for; refuses some.
#[derive(Default)]
struct Asked(Mutex<Vec<(u64, u32)>>);

impl VsockHost for Asked {
    fn requested(&self, id: u64, port: u32) -> bool {
        let mut asked = self.0.lock().expect("one thread");
        asked.push((id, port));
        !port.is_multiple_of(8)
    }
}

/// Sockets of a host that are read and written without waiting.
pub(crate) fn streams() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket");
    (ours, theirs)
}

/// Target `vsock`.
pub fn vsock(data: &[u8]) {
    let mut input = Input::new(data);
    let asked = Arc::new(Asked::default());
    let device = VirtioVsock::new(CID as u32, asked.clone());
    let handle = device.handle();
    let mut service = device.service(0, 0);
    let mut driver = Driver::new(3);
    let mut hosts: Vec<UnixStream> = Vec::new();
    // By the guest's port and the host's: the room last told.
    let mut room: HashMap<(u32, u32), u32> = HashMap::new();
    while !input.is_empty() && hosts.len() < 64 {
        match input.u8() % 8 {
            0..=2 => {
                let (packet, key, alloc) = packet(&mut input);
                if driver.offer(1, Some(&packet), 0) {
                    let told = room.entry(key).or_default();
                    *told = alloc.max(*told);
                }
            }
            3 => drop(driver.offer(0, None, 44 + u32::from(input.u8()))),
            4 => {
                let (ours, theirs) = streams();
                handle.connect(u32::from(input.u8() % 4), theirs.into());
                hosts.push(ours);
            }
            5 => {
                let answered = asked.0.lock().expect("one thread").pop();
                if let Some((id, _)) = answered {
                    let (ours, theirs) = streams();
                    let socket = (!input.u8().is_multiple_of(4)).then(|| theirs.into());
                    handle.answer(id, socket);
                    hosts.push(ours);
                }
            }
            6 => {
                let len = usize::from(input.u8());
                let bytes = input.bytes(len);
                if let Some(host) = hosts.last_mut() {
                    let _ = host.write(bytes);
                    let _ = host.read(&mut [0; 4096]);
                }
            }
            _ => drop(hosts.pop()),
        }
        if !driver.serve(&mut *service) {
            return;
        }
        driver.take(1);
        for bytes in driver.take(0) {
            check(&bytes, &room);
        }
    }
}

/// A packet of the guest's, with its ports and the room that it tells.
fn packet(input: &mut Input<'_>) -> (Vec<u8>, (u32, u32), u32) {
    let odd = input.u8();
    let (guest, host) = (u32::from(input.u8() % 4), u32::from(input.u8() % 8));
    let host = if odd & 1 != 0 { host | 1 << 30 } else { host };
    let operation = u16::from(input.u8() % 9);
    let alloc = if odd & 2 != 0 { input.u32() } else { 4096 };
    let len = usize::from(input.u8());
    let body = input.bytes(len);
    let source = if odd & 0xF0 == 0xF0 { input.u64() } else { CID };
    let kind = if odd & 0x0C == 0x0C { input.u16() } else { 1 };
    let mut bytes = source.to_le_bytes().to_vec();
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(guest.to_le_bytes());
    bytes.extend(host.to_le_bytes());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(operation.to_le_bytes());
    bytes.extend(u32::from(odd >> 4 & 3).to_le_bytes());
    bytes.extend(alloc.to_le_bytes());
    bytes.extend(input.u32().to_le_bytes());
    bytes.extend(body);
    (bytes, (guest, host), alloc)
}

/// A packet for the guest.
fn check(bytes: &[u8], room: &HashMap<(u32, u32), u32>) {
    assert!(bytes.len() >= 44, "{bytes:x?}");
    let word = |at: usize| {
        let word = bytes[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(word)
    };
    let operation = u16::from_le_bytes([bytes[30], bytes[31]]);
    let len = word(24);
    assert_eq!(len as usize, bytes.len() - 44);
    assert_eq!((word(8), word(12)), (CID as u32, 0), "for another guest");
    assert!((1..=7).contains(&operation), "operation {operation}");
    assert_eq!(len > 0, operation == 5, "data of operation {operation}");
    let told = room.get(&(word(20), word(16))).copied().unwrap_or(0);
    assert!(len <= told, "{len} bytes into room for {told}");
}

/// Target `console`: a terminal and some ports.
pub fn console(data: &[u8]) {
    let mut input = Input::new(data);
    let multiport = input.u8() & 1 != 0;
    let count = if multiport { 3 } else { 1 };
    let (mut hosts, mut configs) = (Vec::new(), Vec::new());
    for index in 0..count {
        let (ours, theirs) = streams();
        hosts.push(ours);
        configs.push(PortConfig {
            name: format!("port{index}"),
            socket: theirs.into(),
        });
    }
    let device = VirtioConsole::new(configs);
    let handle = device.handle();
    let mut service = device.service(0, if multiport { 2 } else { 0 });
    let mut driver = Driver::new(device.queues());
    let (rx, tx) = if multiport { (4, 5) } else { (0, 1) };
    let index = usize::from(multiport);
    // What was sent and has not come yet, each way.
    let (mut typed, mut printed) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        let len = usize::from(input.u8());
        match input.u8() % 6 {
            0 => {
                let bytes = input.bytes(len);
                if hosts[index].write(bytes).is_ok_and(|n| n == bytes.len()) {
                    typed.extend(bytes);
                }
            }
            1 => {
                let bytes = input.bytes(len);
                if driver.offer(tx, Some(bytes), 0) {
                    printed.extend(bytes);
                }
            }
            2 => drop(driver.offer(rx, None, len as u32)),
            3 if multiport => {
                let mut message = u32::from(input.u8() % 4).to_le_bytes().to_vec();
                message.extend(u16::from(input.u8() % 9).to_le_bytes());
                message.extend(u16::from(input.u8() % 2).to_le_bytes());
                message.truncate(8.min(len));
                driver.offer(3, Some(&message), 0);
            }
            4 if multiport => drop(driver.offer(2, None, len as u32)),
            _ => handle.resize(u16::from(input.u8()), u16::from(input.u8())),
        }
        if !driver.serve(&mut *service) {
            return;
        }
        let mut got = vec![0; 8192];
        let count = hosts[index].read(&mut got).unwrap_or(0);
        assert!(
            printed.starts_with(&got[..count]),
            "other bytes than printed"
        );
        printed.drain(..count);
        for bytes in driver.take(rx) {
            assert!(typed.starts_with(&bytes), "other bytes than typed");
            typed.drain(..bytes.len());
        }
        driver.take(tx);
        if multiport {
            driver.take(2);
            driver.take(3);
        }
    }
}

/// A connection each way, for [`vsock`].
pub fn vsock_seeds() -> Vec<Vec<u8>> {
    let packet = |host: u8, operation: u8, body: &[u8]| {
        let mut bytes = vec![0, 0, 1, host, operation, body.len() as u8];
        bytes.extend(body);
        bytes.extend([0; 4]);
        bytes
    };
    let room = vec![3, 255];
    let guest = [
        room.clone(),
        room.clone(),
        packet(1, 1, b""),
        vec![5, 1],
        packet(1, 5, b"hello"),
        vec![6, 3, b'a', b'b', b'c'],
        room.clone(),
        packet(1, 7, b""),
        vec![7],
        packet(1, 3, b""),
    ]
    .concat();
    let mut response = packet(0, 2, b"");
    response[1] = 1;
    let host = [room.clone(), room, vec![4, 1], response, vec![6, 1, b'x']].concat();
    vec![guest, host]
}

/// A terminal, and a port that is opened, for [`console`].
pub fn console_seeds() -> Vec<Vec<u8>> {
    let terminal = [&[0, 3, 0, b'a', b'b', b'c', 9, 2, 2, 1, b'x', b'y'][..]].concat();
    let ports = [
        &[1, 8, 3, 0, 0, 1, 64, 4, 64, 4, 8, 3, 1, 3, 1, 64, 4][..],
        &[
            8, 3, 1, 6, 1, 3, 0, b'a', b'b', b'c', 9, 2, 2, 1, b'x', b'y',
        ],
    ]
    .concat();
    vec![terminal, ports]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_served() {
        vsock_seeds().iter().for_each(|seed| vsock(seed));
        console_seeds().iter().for_each(|seed| console(seed));
    }
}
