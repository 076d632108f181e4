//! A driver for tests: sets up virtqueues in guest memory and works the
//! device through its BAR, as a guest does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use croft_memory::{GuestRam, Range};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::transport::layout;
use super::{DoorbellRegistry, LogSink, VirtioDevice, VirtioHost, VirtioPci};
use crate::device::Device;
use crate::interrupt::{InterruptSink, SharedLine};
use crate::lock;
use crate::pci::PciFunction;

pub const RAM: u64 = 4 << 20;
/// Where buffers are.
pub const DATA: u64 = 0x10_0000;
/// Where the BAR is.
pub const BAR: u64 = 0xC000_0000;
pub const QUEUE_LEN: u16 = 16;
pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const NEEDS_RESET: u64 = 0x40;
const PATIENCE: Duration = Duration::from_secs(120);
pub const GSI: u32 = 17;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// The machine around a device.
#[derive(Default)]
pub struct World {
    pub messages: Mutex<Vec<(u64, u32)>>,
    pub line: Mutex<bool>,
    pub log: Mutex<Vec<String>>,
    /// Doorbells given out; `None` means that there can be none.
    pub doorbells: Mutex<Option<BTreeMap<u64, EventFd>>>,
}

impl InterruptSink for World {
    fn set_line(&self, gsi: u32, level: bool) {
        assert_eq!(gsi, GSI);
        *lock(&self.line) = level;
    }

    fn msi(&self, address: u64, data: u32) {
        lock(&self.messages).push((address, data));
    }
}

impl LogSink for World {
    fn log(&self, line: &str) {
        lock(&self.log).push(line.to_owned());
    }
}

impl DoorbellRegistry for World {
    fn add(&self, address: u64) -> Option<EventFd> {
        let mut doorbells = lock(&self.doorbells);
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let given = event.try_clone().unwrap();
        doorbells.as_mut()?.insert(address, event);
        Some(given)
    }

    fn remove(&self, address: u64) {
        if let Some(doorbells) = &mut *lock(&self.doorbells) {
            doorbells.remove(&address);
        }
    }
}

impl World {
    pub fn take_messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut lock(&self.messages))
    }

    pub fn logged(&self, text: &str) -> bool {
        lock(&self.log).iter().any(|line| line.contains(text))
    }
}

/// Waits until `ready`.
pub fn wait(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub fn ram() -> GuestRam {
    GuestRam::new(&[Range { start: 0, len: RAM }]).unwrap()
}

/// The driver's side of a queue.
#[derive(Clone, Copy, Default)]
struct DriverQueue {
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

/// A device and its driver.
pub struct Rig<D> {
    pub device: VirtioPci<D>,
    pub ram: GuestRam,
    pub world: Arc<World>,
    queues: [DriverQueue; 8],
}

impl<D: VirtioDevice> Rig<D> {
    /// A device at power-on, its BAR placed, in a running machine.
    pub fn new(device: D) -> Self {
        Self::with_ram(device, ram())
    }

    pub fn with_ram(device: D, ram: GuestRam) -> Self {
        let world = Arc::<World>::default();
        let line = SharedLine::new(world.clone(), GSI);
        let host = VirtioHost {
            name: "dev0".into(),
            ram: ram.clone(),
            interrupts: world.clone(),
            line: Some(line.input()),
            doorbells: world.clone(),
            log: world.clone(),
        };
        let mut rig = Rig {
            device: VirtioPci::new(device, host).unwrap(),
            ram,
            world,
            queues: Default::default(),
        };
        rig.device.start();
        rig.config_write(0x10, &(BAR as u32).to_le_bytes());
        rig.config_write(0x04, &6u16.to_le_bytes());
        rig.device.bars_moved();
        rig
    }

    pub fn config_read(&mut self, offset: u16, len: usize) -> u64 {
        let mut data = [0; 8];
        self.device.config_read(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub fn config_write(&mut self, offset: u16, data: &[u8]) {
        if self.device.config_write(offset, data) {
            self.device.bars_moved();
        }
    }

    pub fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.device.bar_read(0, offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub fn write(&mut self, offset: u64, len: usize, value: u64) {
        self.device
            .bar_write(0, offset, &value.to_le_bytes()[..len]);
    }

    pub fn status(&mut self) -> u64 {
        self.read(0x14, 1)
    }

    pub fn set_status(&mut self, status: u64) {
        self.write(0x14, 1, status);
    }

    pub fn offered(&mut self) -> u64 {
        self.write(0x00, 4, 1);
        let high = self.read(0x04, 4);
        self.write(0x00, 4, 0);
        high << 32 | self.read(0x04, 4)
    }

    /// Acknowledges and accepts `features`; true when the device agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.set_status(1);
        self.set_status(3);
        self.write(0x08, 4, 0);
        self.write(0x0C, 4, features & 0xFFFF_FFFF);
        self.write(0x08, 4, 1);
        self.write(0x0C, 4, features >> 32);
        self.set_status(0xB);
        self.status() & 8 != 0
    }

    pub fn descriptors(queue: u16) -> u64 {
        0x1_0000 + u64::from(queue) * 0x1_0000
    }

    pub fn driver_area(queue: u16) -> u64 {
        Self::descriptors(queue) + 0x4000
    }

    pub fn device_area(queue: u16) -> u64 {
        Self::descriptors(queue) + 0x8000
    }

    /// Places and enables a queue, its ring empty.
    pub fn set_up_queue(&mut self, queue: u16) {
        self.ram
            .write(Self::descriptors(queue), &[0; 0xC000])
            .unwrap();
        self.queues[usize::from(queue)] = DriverQueue::default();
        self.write(0x16, 2, u64::from(queue));
        self.write(0x18, 2, u64::from(QUEUE_LEN));
        self.write(0x20, 4, Self::descriptors(queue));
        self.write(0x24, 4, 0);
        self.write(0x28, 8, Self::driver_area(queue));
        self.write(0x30, 8, Self::device_area(queue));
        self.write(0x1C, 2, 1);
    }

    /// All the way to DRIVER_OK, with `queues` queues.
    pub fn bring_up(&mut self, features: u64, queues: u16) {
        assert!(self.negotiate(features | VERSION_1));
        for queue in 0..queues {
            self.set_up_queue(queue);
        }
        self.set_status(0xF);
        assert_eq!(self.status(), 0xF);
    }

    /// Turns MSI-X on: vector `n` sends data `n` to an address of its own,
    /// vector 0 for the configuration, the next ones for the queues.
    pub fn use_msix(&mut self, queues: u16) {
        for vector in 0..=u64::from(queues) {
            let entry = layout::MSIX_TABLE + vector * 16;
            self.write(entry, 8, 0xFEE0_0000 + (vector << 12));
            self.write(entry + 8, 4, vector);
            self.write(entry + 12, 4, 0);
        }
        self.msix_control(0x8000);
        self.write(0x10, 2, 0);
        for queue in 0..u64::from(queues) {
            self.write(0x16, 2, queue);
            self.write(0x1A, 2, queue + 1);
        }
    }

    pub fn msix_control(&mut self, control: u16) {
        self.config_write(0x42, &control.to_le_bytes());
    }

    pub fn put_descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(address.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.ram.write(at, &bytes).unwrap();
    }

    /// Makes a chain of (address, length, writable) without telling the
    /// device; returns its head.
    pub fn chain(&mut self, queue: u16, pieces: &[(u64, u32, bool)]) -> u16 {
        let state = &mut self.queues[usize::from(queue)];
        let head = state.next_descriptor;
        state.next_descriptor = (head + pieces.len() as u16) % QUEUE_LEN;
        for (i, (address, len, writable)) in (0u16..).zip(pieces) {
            let last = usize::from(i) + 1 == pieces.len();
            let flags = if *writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let index = (head + i) % QUEUE_LEN;
            let at = Self::descriptors(queue) + 16 * u64::from(index);
            self.put_descriptor(at, *address, *len, flags, (index + 1) % QUEUE_LEN);
        }
        head
    }

    /// Makes a head available without notifying.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let state = &mut self.queues[usize::from(queue)];
        let slot = Self::driver_area(queue) + 4 + 2 * u64::from(state.available % QUEUE_LEN);
        state.available = state.available.wrapping_add(1);
        self.ram.write(slot, &head.to_le_bytes()).unwrap();
        self.set_available(queue, self.queues[usize::from(queue)].available);
    }

    pub fn set_available(&self, queue: u16, index: u16) {
        self.ram
            .write(Self::driver_area(queue) + 2, &index.to_le_bytes())
            .unwrap();
    }

    pub fn notify(&mut self, queue: u16) {
        let offset = layout::NOTIFY + u64::from(queue) * layout::NOTIFY_STEP;
        self.write(offset, 2, u64::from(queue));
    }

    pub fn half(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.ram.read(address, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    pub fn used_index(&self, queue: u16) -> u16 {
        self.half(Self::device_area(queue) + 2)
    }

    /// There is a used element that was not looked at.
    pub fn has_used(&self, queue: u16) -> bool {
        self.used_index(queue) != self.queues[usize::from(queue)].seen
    }

    /// The next used element: head and length.
    pub fn used(&mut self, queue: u16) -> (u32, u32) {
        let seen = self.queues[usize::from(queue)].seen;
        wait("a used buffer", || self.used_index(queue) != seen);
        self.queues[usize::from(queue)].seen = seen.wrapping_add(1);
        let at = Self::device_area(queue) + 4 + 8 * u64::from(seen % QUEUE_LEN);
        let mut bytes = [0; 8];
        self.ram.read(at, &mut bytes).unwrap();
        let [a, b, c, d, e, f, g, h] = bytes;
        (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        )
    }

    /// A whole request: chain, notify, wait; returns the used length.
    pub fn request(&mut self, queue: u16, pieces: &[(u64, u32, bool)]) -> u32 {
        let head = self.chain(queue, pieces);
        self.offer(queue, head);
        self.notify(queue);
        let (used, len) = self.used(queue);
        assert_eq!(used, u32::from(head));
        len
    }

    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(address, &mut bytes).unwrap();
        bytes
    }

    /// Waits until the device asks for a reset, which `reason` explains in
    /// the log; resets it.
    pub fn expect_failure(&mut self, reason: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.status() & NEEDS_RESET == 0 {
            assert!(Instant::now() < deadline, "no failure: {reason}");
            std::thread::sleep(Duration::from_micros(200));
        }
        // The status is there first.
        while !self.world.logged(reason) {
            assert!(
                Instant::now() < deadline,
                "{reason} is not in {:?}",
                lock(&self.world.log)
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        self.reset();
    }

    pub fn reset(&mut self) {
        self.set_status(0);
        let deadline = Instant::now() + PATIENCE;
        while self.status() != 0 {
            assert!(Instant::now() < deadline, "the reset does not end");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The driver's view for another device over the same memory.
    pub fn take_over<E>(&mut self, from: &Rig<E>) {
        self.queues = from.queues;
    }
}
