//! What a guest asks of a shared directory.
//!
//! Promised: whatever it asks for, in whatever order, every request is
//! answered or stops the device, and nothing beside the directory changes or
//! is read.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use croft_devices::virtio::VirtioDevice;
use croft_devices::virtio::fs::VirtioFs;
use croft_devices::virtio::queue::{ActiveQueue, RingPlace, serve};
use croft_devices::virtio::{Chain, QueueHandler};
use croft_memory::{GuestRam, Range};

use crate::input::Input;

const RAM: u64 = 512 << 10;
const DESCRIPTORS: u64 = 0x0000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const REQUEST: u64 = 0x4000;
const ANSWER: u64 = 0x2_0000;
/// Bytes for an answer.
const ROOM: u32 = 64 << 10;
/// Entries of the ring.
const SIZE: u16 = 16;
/// Most requests of one input.
const REQUESTS: u16 = 64;
/// Bytes of a request's header.
const HEADER: usize = 40;
/// What must not be seen.
const SECRET: &[u8] = b"the host's own secret, and nobody else's";
const INIT: u32 = 26;
/// Names to ask for, beside those that an input makes.
const NAMES: [&[u8]; 8] = [
    b"a\0",
    b"d\0",
    b"out\0",
    b"up\0",
    b"..\0",
    b"a/b\0",
    b"new\0",
    b"a\0new\0",
];

/// A guest's side of the queue.
struct Guest {
    ram: GuestRam,
    queue: ActiveQueue,
    handler: Box<dyn QueueHandler>,
    asked: u16,
}

impl Guest {
    fn new(device: &VirtioFs) -> Self {
        let ram = GuestRam::new(&[Range { start: 0, len: RAM }]).expect("a little memory");
        let place = RingPlace {
            size: SIZE,
            descriptors: DESCRIPTORS,
            driver: AVAILABLE,
            device: USED,
        };
        let queue = ActiveQueue::new(&ram, place, SIZE, false, (0, 0)).expect("a ring");
        Guest {
            ram,
            queue,
            handler: device.handler(1, 0),
            asked: 0,
        }
    }

    /// The answer, unless the device has stopped.
    fn ask(&mut self, opcode: u32, node: u64, args: &[u8]) -> Option<Vec<u8>> {
        let mut request = Vec::with_capacity(HEADER + args.len());
        request.extend((HEADER as u32).to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend(1u64.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend([0; 16]);
        request.extend(args);
        self.put(REQUEST, &request);
        // Address, length, flags (next; writable), next.
        let descriptors = [(REQUEST, request.len() as u32, 1u16), (ANSWER, ROOM, 2)];
        for (at, (address, len, flags)) in (0u16..).zip(descriptors) {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((at + 1).to_le_bytes());
            self.put(DESCRIPTORS + 16 * u64::from(at), &bytes);
        }
        self.put(AVAILABLE + 4 + 2 * u64::from(self.asked % SIZE), &[0; 2]);
        let used = USED + 4 + 8 * u64::from(self.asked % SIZE);
        self.asked += 1;
        self.put(AVAILABLE + 2, &self.asked.to_le_bytes());
        let served = serve(
            &mut self.queue,
            &mut *self.handler,
            &self.ram,
            &mut Chain::default(),
            &AtomicBool::new(true),
            || {},
        );
        served.ok()?;
        let mut element = [0; 8];
        self.ram.read(used, &mut element).expect("RAM");
        let [_, _, _, _, len @ ..] = element;
        let len = u32::from_le_bytes(len);
        assert!(len == 0 || (16..=ROOM).contains(&len), "{len} bytes");
        let mut answer = vec![0; len as usize];
        self.ram.read(ANSWER, &mut answer).expect("RAM");
        Some(answer)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write(at, bytes).expect("RAM");
    }
}

/// The directory, with links that lead out of it.
fn prepare(shared: &Path) -> std::io::Result<()> {
    fs::create_dir(shared)?;
    fs::write(shared.join("a"), "text")?;
    fs::create_dir(shared.join("d"))?;
    symlink("../secret", shared.join("out"))?;
    symlink("..", shared.join("up"))
}

/// Target `share`: requests, of which the first begin a session and look the
/// names up that there are.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let outside = tempfile::tempdir().expect("a directory");
    let secret = outside.path().join("secret");
    fs::write(&secret, SECRET).expect("a file");
    let shared = outside.path().join("shared");
    prepare(&shared).expect("a few files");
    let directory = OwnedFd::from(File::open(&shared).expect("a directory"));
    let read_only = input.u8() & 1 != 0;
    let device = VirtioFs::new(directory, "tag", read_only, 4).expect("a share");
    let mut guest = Guest::new(&device);
    let version: Vec<u8> = [7u32, 38, 0, !0]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    guest.ask(INIT, 0, &version).expect("an answer");
    for name in &NAMES[..4] {
        guest.ask(1, 1, name).expect("an answer");
    }
    for _ in 0..REQUESTS {
        if input.is_empty() {
            break;
        }
        let (opcode, node) = (u32::from(input.u8() % 56), u64::from(input.u8() % 10));
        let len = usize::from(input.u8() % 100);
        let mut args = input.bytes(len).to_vec();
        let name = usize::from(input.u8());
        args.extend(NAMES.get(name % 16).copied().unwrap_or_default());
        let Some(answer) = guest.ask(opcode, node, &args) else {
            break;
        };
        let seen = answer.windows(SECRET.len()).any(|part| part == SECRET);
        assert!(!seen, "request {opcode} reads what is outside");
        if read_only {
            assert_eq!(fs::read(shared.join("a")).expect("a file"), b"text");
        }
    }
    assert_eq!(fs::read(&secret).expect("a file"), SECRET);
    let beside = fs::read_dir(outside.path()).expect("a directory").count();
    assert_eq!(beside, 2, "something is beside the directory");
}

/// A request of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let all = (0..56).map(|opcode| {
        // Writable; opcode, node, no arguments of its own, name.
        vec![0, opcode, 1, 40, 0, 0, 0, 0, 0, 0, 0, 0]
    });
    let create = [
        35, 1, 16, 66, 0, 0, 0, 164, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6,
    ];
    all.chain([[&[0][..], &create, &create].concat()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_answered() {
        for seed in seeds() {
            run(&seed);
        }
    }
}
