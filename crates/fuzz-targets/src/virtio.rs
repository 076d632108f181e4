//! Virtqueues and registers of virtio devices.
//!
//! Promised: whatever a driver leaves in its rings, in the descriptors and in
//! the requests, and however it uses the registers and configuration space,
//! nothing panics or reaches outside RAM and disk; work ends when the device
//! is stopped; a reset makes a device usable again.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use croft_devices::pci::PciFunction;
use croft_devices::virtio::balloon::VirtioBalloon;
use croft_devices::virtio::blk::{BlkOptions, FaultSink, Limits, OnError, VirtioBlk};
use croft_devices::virtio::queue::{ActiveQueue, RingPlace, serve};
use croft_devices::virtio::rng::VirtioRng;
use croft_devices::virtio::{
    Chain, DoorbellRegistry, LogSink, QueueError, QueueHandler, VirtioDevice, VirtioHost, VirtioPci,
};
use croft_devices::{Device, InterruptSink, SharedLine};
use croft_disk::{Disk, DiskError, RawDisk};
use croft_memory::{GuestRam, Range};
use vmm_sys_util::eventfd::EventFd;

use crate::input::Input;

const RAM: u64 = 256 << 10;
const DISK: u64 = 64 << 10;
/// A driver can have the device write to the available ring, which then
/// never ends; the worker's owner stops it, here after this many requests.
const REQUESTS: u32 = 500;
/// Most accesses of one input.
const ACCESSES: usize = 1024;
const SIZES: [usize; 4] = [1, 2, 4, 8];
/// Where the parts of the ring are, when the input does not say.
const PLACES: [u64; 3] = [0x0000, 0x1000, 0x2000];

/// What devices call, and nobody listens to.
struct Nobody;

impl InterruptSink for Nobody {
    fn set_line(&self, _: u32, _: bool) {}
    fn msi(&self, _: u64, _: u32) {}
}

impl FaultSink for Nobody {
    fn disk_failed(&self, _error: &DiskError) {}
}

impl LogSink for Nobody {
    fn log(&self, line: &str) {
        assert!(line.len() < 1000, "a long line: {line}");
    }
}

impl DoorbellRegistry for Nobody {
    fn add(&self, _: u64) -> Option<EventFd> {
        None
    }

    fn remove(&self, _: u64) {}
}

/// Stops the work after [`REQUESTS`].
struct Bounded<'a> {
    handler: Box<dyn QueueHandler>,
    live: &'a AtomicBool,
    left: u32,
}

impl QueueHandler for Bounded<'_> {
    fn ready(&mut self) -> bool {
        self.handler.ready()
    }

    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> Result<u32, QueueError> {
        self.left -= 1;
        if self.left == 0 {
            self.live.store(false, Ordering::SeqCst);
        }
        let written = self.handler.serve(ram, chain)?;
        assert!(u64::from(written) <= chain.writable.len());
        Ok(written)
    }
}

fn ram() -> GuestRam {
    GuestRam::new(&[Range { start: 0, len: RAM }]).expect("a little memory")
}

/// One file for all inputs: its contents do not matter.
fn disk(read_only: bool) -> Arc<RawDisk> {
    static FILE: OnceLock<File> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(DISK).expect("a little space");
        file
    });
    let copy = file.try_clone().expect("a descriptor");
    Arc::new(RawDisk::new(copy, read_only).expect("a disk"))
}

fn block_device(input: &mut Input<'_>) -> (VirtioBlk, Arc<RawDisk>) {
    let flags = input.u8();
    let disk = disk(flags & 1 != 0);
    let queues = u16::from(flags >> 1 & 3) + 1;
    let device = VirtioBlk::new(
        disk.clone(),
        BlkOptions {
            queues,
            serial: "serial".to_owned(),
            name: "disk0".to_owned(),
            write_through: flags & 8 != 0,
            limits: Limits::default(),
            on_error: OnError::Report,
        },
        Arc::new(Nobody),
        Arc::new(Nobody),
    );
    (device, disk)
}

/// Target `virtqueue`: a ring full of anything.
pub fn queue(data: &[u8]) {
    serve_ring(data);
}

/// How many requests there were.
fn serve_ring(data: &[u8]) -> u32 {
    let mut input = Input::new(data);
    let ram = ram();
    let (block, disk) = block_device(&mut input);
    let features = input.u64();
    let handler = match input.u8() {
        kind if kind.is_multiple_of(4) => VirtioRng.handler(0, features),
        kind if kind % 4 == 2 => {
            let balloon = VirtioBalloon::new(RAM, "balloon0", Arc::new(Nobody));
            balloon.handler(u16::from(kind >> 2) % balloon.queues(), features)
        }
        _ => block.handler(0, features),
    };
    let choice = input.u8();
    let size = 1 << (choice & 15);
    let mut places = PLACES;
    for (bit, place) in (4..).zip(&mut places) {
        if choice >> bit & 1 != 0 {
            *place = input.u64();
        }
    }
    let place = RingPlace {
        size,
        descriptors: places[0],
        driver: places[1],
        device: places[2],
    };
    let positions = (input.u16(), input.u16());
    let event_idx = input.u8() & 1 != 0;
    let made = ActiveQueue::new(&ram, place, 256, event_idx, positions);
    let Ok(mut queue) = made else {
        return 0;
    };
    // Pieces of memory: where, how long, what.
    while !input.is_empty() {
        let at = u64::from(input.u16()) << 2;
        let len = usize::from(input.u8());
        let bytes = input.bytes(len);
        ram.write(at.min(RAM - 256), bytes).expect("RAM");
    }
    let live = AtomicBool::new(true);
    let mut handler = Bounded {
        handler,
        live: &live,
        left: REQUESTS,
    };
    // An error stops the device; that is as good as an end.
    let _ = serve(
        &mut queue,
        &mut handler,
        &ram,
        &mut Chain::default(),
        &live,
        || {},
    );
    assert_eq!(disk.size(), DISK);
    REQUESTS - handler.left
}

/// Target `virtio`: registers and configuration space in any order.
pub fn registers(data: &[u8]) {
    let mut input = Input::new(data);
    let (device, _) = block_device(&mut input);
    let line = SharedLine::new(Arc::new(Nobody), 16);
    let host = VirtioHost {
        name: "disk0".to_owned(),
        ram: ram(),
        interrupts: Arc::new(Nobody),
        line: Some(line.input()),
        doorbells: Arc::new(Nobody),
        log: Arc::new(Nobody),
    };
    let mut device = VirtioPci::new(device, host).expect("event objects");
    device.start();
    for _ in 0..ACCESSES {
        if input.is_empty() {
            break;
        }
        access(&mut device, &mut input);
    }
    device.reset();
    device.start();
    bring_up(&mut device);
}

fn access<D: VirtioDevice>(device: &mut VirtioPci<D>, input: &mut Input<'_>) {
    let len = input.pick(&SIZES);
    let mut buffer = [0xFF; 8];
    match input.u8() % 16 {
        0..=1 => {
            let offset = u16::from(input.u8()) & !(len as u16 - 1);
            device.config_read(offset, &mut buffer[..len.min(4)]);
        }
        2..=4 => {
            let offset = u16::from(input.u8()) & !(len as u16 - 1);
            let bytes = input.u32().to_le_bytes();
            if device.config_write(offset, &bytes[..len.min(4)]) {
                device.bars_moved();
            }
        }
        5..=6 => device.bar_read(0, place(input), &mut buffer[..len]),
        7..=13 => {
            let offset = place(input);
            device.bar_write(0, offset, &input.u64().to_le_bytes()[..len]);
        }
        14 => bring_up(device),
        _ => {
            device.pause();
            let saved = device.save();
            device.restore(&saved).expect("its own state");
            assert_eq!(device.save(), saved);
            device.resume();
        }
    }
}

/// A register: mostly of the common configuration.
fn place(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        n @ 0..=0x7F => u64::from(n & 0x3F),
        _ => u64::from(input.u16() & 0x7FFF),
    }
}

/// What a well-behaved driver does, with an empty ring.
fn bring_up<D: VirtioDevice>(device: &mut VirtioPci<D>) {
    device.bar_write(0, 0x14, &[0]);
    let status = |device: &mut VirtioPci<D>| {
        let mut status = [0];
        device.bar_read(0, 0x14, &mut status);
        status[0]
    };
    // A worker may be looking at its queue just now.
    while status(device) != 0 {
        std::thread::yield_now();
    }
    let mut write = |offset: u64, value: u64, len: usize| {
        device.bar_write(0, offset, &value.to_le_bytes()[..len]);
    };
    write(0x14, 3, 1);
    write(0x08, 1, 4);
    write(0x0C, 1, 4);
    write(0x14, 0xB, 1);
    write(0x16, 0, 2);
    write(0x18, 16, 2);
    for (register, place) in (0..).zip(PLACES) {
        write(0x20 + 8 * register, place, 8);
    }
    write(0x1C, 1, 2);
    write(0x14, 0xF, 1);
    let status = status(device);
    assert!(status == 0xF || status & 0x40 != 0, "status {status:#x}");
}

/// A ring with one request of each kind, for [`queue`].
pub fn seeds() -> Vec<Vec<u8>> {
    let kinds = [0u32, 1, 4, 8, 11, 13];
    let seed = |kind: u32, indirect: bool| {
        // Disk; features; block device; 16 entries; positions; event index.
        let mut input = vec![0];
        input.extend([0; 8]);
        input.extend([1, 4, 0, 0, 0, 0, 0]);
        let mut piece = |at: u16, bytes: &[u8]| {
            input.extend((at >> 2).to_le_bytes());
            input.push(bytes.len() as u8);
            input.extend(bytes);
        };
        let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            bytes
        };
        let data = if kind == 0 || kind == 8 { 3 } else { 1 };
        let len = if kind < 4 { 512 } else { 16 };
        let table = [
            descriptor(0x4000, 16, 1, 1),
            descriptor(0x5000, len, data, 2),
            descriptor(0x6000, 1, 2, 0),
        ]
        .concat();
        if indirect {
            piece(0, &descriptor(0x7000, 48, 4, 0));
            piece(0x7000, &table);
        } else {
            piece(0, &table);
        }
        piece(0x4000, &kind.to_le_bytes());
        piece(0x5000, &[1, 0, 0, 0, 0, 0, 0, 0, 4]);
        piece(0x1000, &[0, 0, 1, 0, 0, 0]);
        input
    };
    kinds
        .iter()
        .flat_map(|kind| [seed(*kind, false), seed(*kind, true)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds reach the requests: each is answered.
    #[test]
    fn seeds_are_served() {
        for seed in seeds() {
            assert_eq!(serve_ring(&seed), 1);
        }
        registers(&[]);
    }
}
