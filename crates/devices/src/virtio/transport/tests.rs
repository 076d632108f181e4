use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use croft_memory::GuestRam;
use proptest::prelude::*;

use super::layout;
use crate::device::Device;
use crate::lock;
use crate::pci::PciFunction;
use crate::saved::{DeviceState, StateError};
use crate::testing::{refuses_newer, round_trip};
use crate::virtio::rng::VirtioRng;
use crate::virtio::testing::{
    BAR, DATA, EVENT_IDX, INDIRECT, NEEDS_RESET, NEXT, QUEUE_LEN, RAM, Rig, VERSION_1, WRITE, wait,
};
use crate::virtio::{
    Chain, Kind, Notifier, QueueError, QueueHandler, TransportState, VirtioDevice, copy_config,
};

/// Requests wait while it is closed.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    /// Requests that have come to it.
    came: AtomicUsize,
    /// Requests are left in the queue.
    aside: AtomicBool,
    /// Requests to put back, from the last one on.
    later: Mutex<Vec<Option<Duration>>>,
}

impl Gate {
    fn set(&self, closed: bool) {
        *lock(&self.closed) = closed;
        self.opened.notify_all();
    }

    /// Waits until a request has come.
    fn hold(&self) {
        wait("a request at the gate", || {
            self.came.load(Ordering::SeqCst) > 0
        });
    }
}

/// Copies what it reads to what it writes.
#[derive(Default)]
struct Echo {
    gate: Arc<Gate>,
    written: Arc<Mutex<Vec<u8>>>,
    notifier: Arc<Mutex<Option<Notifier>>>,
}

impl VirtioDevice for Echo {
    const KIND: Kind = Kind {
        name: "echo",
        id: 4,
        class: 0x00_FF_00,
    };

    fn features(&self) -> u64 {
        1 << 3
    }

    fn queues(&self) -> u16 {
        2
    }

    fn queue_size(&self) -> u16 {
        64
    }

    fn config_len(&self) -> usize {
        13
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(b"configuration", offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let mut written = lock(&self.written);
        written.push(offset as u8);
        written.extend(data);
    }

    fn connect(&mut self, notifier: Notifier) {
        *lock(&self.notifier) = Some(notifier);
    }

    fn handler(&self, _queue: u16, _features: u64) -> Box<dyn QueueHandler> {
        Box::new(Copier(self.gate.clone()))
    }

    fn save(&self, transport: TransportState) -> DeviceState {
        VirtioRng.save(transport)
    }

    fn check<'a>(&self, state: &'a DeviceState) -> Result<&'a TransportState, StateError> {
        VirtioRng.check(state)
    }
}

struct Copier(Arc<Gate>);

impl QueueHandler for Copier {
    fn ready(&mut self) -> bool {
        !self.0.aside.load(Ordering::SeqCst)
    }

    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> Result<u32, QueueError> {
        let mut closed = lock(&self.0.closed);
        self.0.came.fetch_add(1, Ordering::SeqCst);
        while *closed {
            closed = self.0.opened.wait(closed).unwrap();
        }
        drop(closed);
        let later = lock(&self.0.later).pop();
        if let Some(wait) = later {
            return Err(QueueError::Later(wait));
        }
        let mut bytes = vec![0; chain.readable.len().min(RAM) as usize];
        chain.readable.read(ram, 0, &mut bytes)?;
        Ok(chain.writable.write(ram, 0, &bytes)? as u32)
    }
}

fn live(features: u64) -> Rig<Echo> {
    let mut rig = Rig::new(Echo::default());
    rig.bring_up(features, 2);
    rig
}

/// Sends `text` through a queue and looks at what comes back.
fn echo(rig: &mut Rig<Echo>, queue: u16, text: &[u8]) {
    let (from, to) = (DATA + 1, DATA + 0x1003);
    rig.ram.write(from, text).unwrap();
    rig.ram.write(to, &vec![0; text.len()]).unwrap();
    let len = text.len() as u32;
    let used = rig.request(queue, &[(from, len, false), (to, len, true)]);
    assert_eq!(used, len);
    assert_eq!(rig.bytes(to, text.len()), text);
}

#[test]
fn the_capabilities_lead_to_the_registers() {
    let mut rig = Rig::new(Echo::default());
    assert_eq!(rig.config_read(0, 4), 0x1044_1AF4);
    assert_eq!(rig.config_read(8, 1), 1);
    let mut at = rig.config_read(0x34, 1) as u16;
    let mut found = Vec::new();
    while at != 0 {
        let id = rig.config_read(at, 1);
        let kind = if id == 9 {
            rig.config_read(at + 3, 1)
        } else {
            0
        };
        found.push((id, kind, rig.config_read(at + 8, 4)));
        at = rig.config_read(at + 1, 1) as u16;
    }
    let vendor = |kind, offset| (9, kind, offset);
    let expected = [
        vendor(1, layout::COMMON),
        vendor(2, layout::NOTIFY),
        vendor(3, layout::ISR),
        vendor(4, layout::DEVICE),
        vendor(5, 0),
    ];
    assert_eq!(found[0], (0x11, 0, layout::MSIX_PENDING));
    assert_eq!(found[1..], expected);
    assert_eq!(rig.config_read(0x42, 2), 2);
    assert_eq!(rig.read(layout::DEVICE + 13, 2), 0);
    assert_eq!(rig.read(layout::DEVICE, 1), u64::from(b'c'));
    assert_eq!(rig.read(0x12, 2), 2);
    rig.write(0x16, 2, 2);
    assert_eq!(rig.read(0x18, 2), 0);
}

#[test]
fn negotiation() {
    let mut rig = Rig::new(Echo::default());
    let offered = rig.offered();
    assert_eq!(offered, VERSION_1 | EVENT_IDX | 1 << 28 | 1 << 3);
    // A legacy driver, and one that invents features.
    assert!(!rig.negotiate(1 << 3));
    rig.set_status(0xF);
    assert_eq!(rig.status(), 3);
    rig.reset();
    assert!(!rig.negotiate(VERSION_1 | 1 << 40));
    rig.reset();
    assert!(rig.negotiate(VERSION_1));
    // Agreed is agreed.
    rig.write(0x08, 4, 0);
    rig.write(0x0C, 4, 1 << 3);
    assert_eq!(rig.read(0x0C, 4), 0);
    rig.set_status(1);
    assert_eq!(rig.status(), 0xB);
}

#[test]
fn reset_and_negotiate_again() {
    let mut rig = live(EVENT_IDX);
    for round in 0..5 {
        for queue in 0..2 {
            for _ in 0..20 {
                echo(&mut rig, queue, b"there and back");
            }
        }
        rig.reset();
        assert_eq!(rig.read(0x0C, 4), 0);
        rig.write(0x16, 2, 0);
        assert_eq!(rig.read(0x1C, 2), 0);
        assert_eq!(rig.read(0x18, 2), 64);
        rig.bring_up(if round % 2 == 0 { 0 } else { EVENT_IDX }, 2);
    }
    rig.device.reset();
    assert_eq!(rig.status(), 0);
    assert!(rig.device.bars().is_empty());
    assert!(lock(&rig.world.log).is_empty());
}

#[test]
fn the_event_index_spares_interrupts() {
    let mut rig = live(EVENT_IDX);
    rig.use_msix(2);
    // Interrupt when the sixth buffer was used.
    let used_event = Rig::<Echo>::driver_area(0) + 4 + 2 * u64::from(QUEUE_LEN);
    rig.ram.write(used_event, &5u16.to_le_bytes()).unwrap();
    for count in 1..=8 {
        echo(&mut rig, 0, b"x");
        if count < 6 {
            assert!(rig.world.take_messages().is_empty());
        }
    }
    wait("the interrupt", || !lock(&rig.world.messages).is_empty());
    assert_eq!(rig.world.take_messages(), [(0xFEE0_1000, 1)]);
    // The device says from where on it wants to be notified.
    let avail_event = Rig::<Echo>::device_area(0) + 4 + 8 * u64::from(QUEUE_LEN);
    wait("the event index", || rig.half(avail_event) == 8);
}

#[test]
fn the_driver_can_decline_interrupts() {
    let mut rig = live(0);
    rig.use_msix(2);
    rig.ram.write(Rig::<Echo>::driver_area(0), &[1, 0]).unwrap();
    echo(&mut rig, 0, b"quiet");
    rig.device.pause();
    assert!(rig.world.take_messages().is_empty());
    rig.device.resume();
    rig.ram.write(Rig::<Echo>::driver_area(0), &[0, 0]).unwrap();
    echo(&mut rig, 0, b"loud");
    wait("the interrupt", || !lock(&rig.world.messages).is_empty());
}

#[test]
fn indirect_tables() {
    let mut rig = live(0);
    let table = DATA + 0x8000;
    rig.ram.write(DATA, b"indirectly").unwrap();
    rig.put_descriptor(table, DATA, 4, NEXT, 2);
    rig.put_descriptor(table + 32, DATA + 4, 6, NEXT, 1);
    rig.put_descriptor(table + 16, DATA + 100, 10, WRITE, 0);
    let ring = Rig::<Echo>::descriptors(0);
    rig.put_descriptor(ring, table, 48, INDIRECT, 0);
    rig.offer(0, 0);
    rig.notify(0);
    assert_eq!(rig.used(0), (0, 10));
    assert_eq!(rig.bytes(DATA + 100, 10), b"indirectly");
    // A table in a table.
    rig.put_descriptor(table, table, 48, INDIRECT, 0);
    rig.offer(0, 0);
    rig.notify(0);
    rig.expect_failure("chain at 0");
}

#[test]
fn masked_vectors_wait() {
    let mut rig = live(0);
    rig.use_msix(2);
    let entry = layout::MSIX_TABLE + 16;
    let pending = |rig: &mut Rig<Echo>| rig.read(layout::MSIX_PENDING, 8);
    let wait_pending = |rig: &mut Rig<Echo>| {
        // The interrupt comes just after the buffer.
        rig.device.pause();
        rig.device.resume();
        assert_eq!(rig.read(layout::MSIX_PENDING, 8), 2);
        assert!(rig.world.take_messages().is_empty());
    };
    rig.write(entry + 12, 4, 1);
    echo(&mut rig, 0, b"masked vector");
    wait_pending(&mut rig);
    rig.write(entry + 12, 4, 0);
    assert_eq!(rig.world.take_messages(), [(0xFEE0_1000, 1)]);
    assert_eq!(pending(&mut rig), 0);
    rig.msix_control(0xC000);
    echo(&mut rig, 0, b"masked function");
    wait_pending(&mut rig);
    rig.msix_control(0x8000);
    assert_eq!(rig.world.take_messages(), [(0xFEE0_1000, 1)]);
    // Entries are read back; vectors that do not exist are none.
    assert_eq!(rig.read(entry, 8), 0xFEE0_1000);
    assert_eq!(rig.read(entry + 8, 4), 1);
    rig.write(0x1A, 2, 3);
    assert_eq!(rig.read(0x1A, 2), 0xFFFF);
    assert!(!*lock(&rig.world.line));
}

#[test]
fn the_pin_serves_drivers_without_messages() {
    let mut rig = live(0);
    echo(&mut rig, 1, b"pin");
    wait("the line", || *lock(&rig.world.line));
    assert_eq!(rig.config_read(0x06, 2) & 8, 8);
    assert_eq!(rig.read(layout::ISR, 1), 1);
    assert!(!*lock(&rig.world.line));
    assert_eq!(rig.read(layout::ISR, 1), 0);
    assert_eq!(rig.config_read(0x06, 2) & 8, 0);
    // INTx disable.
    rig.config_write(0x04, &0x406u16.to_le_bytes());
    echo(&mut rig, 1, b"no pin");
    rig.device.pause();
    assert!(!*lock(&rig.world.line));
    rig.device.resume();
    rig.config_write(0x04, &0x006u16.to_le_bytes());
    assert!(*lock(&rig.world.line));
    rig.device.reset();
    assert!(!*lock(&rig.world.line));
}

#[test]
fn only_a_bus_master_reaches_memory() {
    let mut rig = live(0);
    rig.config_write(0x04, &2u16.to_le_bytes());
    let head = rig.chain(0, &[(DATA, 4, true)]);
    rig.offer(0, head);
    rig.notify(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(rig.used_index(0), 0);
    rig.config_write(0x04, &6u16.to_le_bytes());
    rig.used(0);
}

#[test]
fn nothing_moves_in_a_paused_machine() {
    let mut rig = live(0);
    rig.device.pause();
    let head = rig.chain(0, &[(DATA, 4, true)]);
    rig.offer(0, head);
    rig.notify(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(rig.used_index(0), 0);
    rig.device.resume();
    rig.used(0);
}

#[test]
fn a_reset_waits_for_the_request_without_blocking() {
    let device = Echo::default();
    let gate = device.gate.clone();
    let mut rig = Rig::new(device);
    rig.bring_up(0, 2);
    gate.set(true);
    let head = rig.chain(0, &[(DATA, 4, true)]);
    rig.offer(0, head);
    rig.notify(0);
    gate.hold();
    rig.set_status(0);
    assert_ne!(rig.status(), 0);
    // What comes meanwhile changes nothing.
    rig.set_status(1);
    rig.write(0x16, 2, 1);
    gate.set(false);
    rig.reset();
    assert_eq!(rig.read(0x16, 2), 0);
    rig.bring_up(0, 2);
    echo(&mut rig, 0, b"again");
}

#[test]
fn pause_waits_for_the_request() {
    let device = Echo::default();
    let gate = device.gate.clone();
    let mut rig = Rig::new(device);
    rig.bring_up(0, 2);
    gate.set(true);
    let head = rig.chain(0, &[(DATA, 4, true)]);
    rig.offer(0, head);
    rig.notify(0);
    gate.hold();
    let (done, paused) = mpsc::channel();
    let mut device = rig.device;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            device.pause();
            done.send(()).unwrap();
        });
        let early = paused.recv_timeout(std::time::Duration::from_millis(20));
        assert!(early.is_err());
        gate.set(false);
        paused.recv().unwrap();
    });
}

#[test]
fn a_restored_device_goes_on() {
    let mut one = live(EVENT_IDX);
    one.use_msix(2);
    for _ in 0..70 {
        echo(&mut one, 0, b"before");
    }
    // A request that nobody has seen yet, and a vector that waits.
    one.msix_control(0xC000);
    one.device.pause();
    one.ram.write(DATA, b"across").unwrap();
    let head = one.chain(0, &[(DATA, 6, false), (DATA + 64, 6, true)]);
    one.offer(0, head);
    one.notify(0);
    let state = one.device.save();
    let mut two = Rig::with_ram(Echo::default(), one.ram.clone());
    two.device.pause();
    round_trip(&mut one.device, &mut two.device);
    two.device.restore(&state).unwrap();
    two.take_over(&one);
    drop(one);
    two.device.resume();
    assert_eq!(two.used(0), (u32::from(head), 6));
    assert_eq!(two.bytes(DATA + 64, 6), b"across");
    two.msix_control(0x8000);
    echo(&mut two, 1, b"and the other");
}

#[test]
fn states_are_checked() {
    let mut rig = live(0);
    rig.device.pause();
    refuses_newer(&mut rig.device);
    let state = rig.device.save();
    let DeviceState::VirtioRng(good) = &state else {
        unreachable!()
    };
    type Harm = fn(&mut TransportState);
    let harms: [Harm; 7] = [
        |s| s.version += 1,
        |s| s.queues[0].descriptors = RAM - 1,
        |s| s.queues[0].size = 3,
        |s| s.queues[1].device = u64::MAX - 3,
        |s| s.queues.truncate(1),
        |s| s.config_vector = 7,
        |s| s.driver_features |= 1 << 41,
    ];
    for harm in harms {
        let mut bad = good.clone();
        harm(&mut bad.transport);
        assert!(rig.device.restore(&DeviceState::VirtioRng(bad)).is_err());
        assert_eq!(rig.device.save(), state);
    }
    rig.device.resume();
    echo(&mut rig, 0, b"unharmed");
}

#[test]
fn doorbells_follow_the_bar() {
    let mut rig = Rig::new(Echo::default());
    *lock(&rig.world.doorbells) = Some(Default::default());
    let places = |rig: &Rig<Echo>| -> Vec<u64> {
        let doorbells = lock(&rig.world.doorbells);
        doorbells.as_ref().unwrap().keys().copied().collect()
    };
    assert!(places(&rig).is_empty());
    rig.bring_up(0, 2);
    assert_eq!(places(&rig), [BAR + 0x3000, BAR + 0x3004]);
    let ring = |rig: &mut Rig<Echo>, address: u64| {
        let head = rig.chain(1, &[(DATA, 4, true)]);
        rig.offer(1, head);
        let doorbells = lock(&rig.world.doorbells);
        let event = &doorbells.as_ref().unwrap()[&address];
        event.write(1).unwrap();
        drop(doorbells);
        rig.used(1);
    };
    ring(&mut rig, BAR + 0x3004);
    rig.config_write(0x10, &0xD000_0000u32.to_le_bytes());
    assert_eq!(places(&rig), [0xD000_3000, 0xD000_3004]);
    ring(&mut rig, 0xD000_3004);
    rig.config_write(0x04, &[4, 0]);
    assert!(places(&rig).is_empty());
    rig.config_write(0x04, &[6, 0]);
    assert_eq!(places(&rig).len(), 2);
    let world = rig.world.clone();
    drop(rig);
    assert!(lock(&world.doorbells).as_ref().unwrap().is_empty());
}

#[test]
fn registers_through_configuration_space() {
    let mut rig = Rig::new(Echo::default());
    let mut at = 0x34;
    while rig.config_read(at, 1) != 9 || rig.config_read(at + 3, 1) != 5 {
        at = rig.config_read(if at == 0x34 { at } else { at + 1 }, 1) as u16;
    }
    let mut window = |offset: u32, len: u32, write: Option<u32>| {
        rig.config_write(at + 4, &[0]);
        rig.config_write(at + 8, &offset.to_le_bytes());
        rig.config_write(at + 12, &len.to_le_bytes());
        match write {
            Some(value) => {
                rig.config_write(at + 16, &value.to_le_bytes()[..len as usize]);
                0
            }
            None => rig.config_read(at + 16, len as usize),
        }
    };
    assert_eq!(window(0x12, 2, None), 2);
    window(0x16, 2, Some(1));
    assert_eq!(window(0x16, 2, None), 1);
    window(0x14, 1, Some(1));
    assert_eq!(window(0x14, 1, None), 1);
    // Places that cannot be.
    window(0x15, 2, Some(1));
    window(0x8000, 4, Some(1));
    window(u32::MAX, 4, Some(1));
    assert_eq!(window(0x14, 1, None), 1);
}

/// Rings that break the rules stop the device until it is reset, and only
/// until then.
#[test]
fn broken_rings() {
    type Harm = fn(&mut Rig<Echo>);
    let ring = Rig::<Echo>::descriptors(0);
    assert_eq!(ring, 0x1_0000);
    let harms: [(&str, Harm); 13] = [
        ("chain at 0", |rig| {
            // A loop.
            rig.put_descriptor(0x1_0000, DATA, 4, NEXT, 1);
            rig.put_descriptor(0x1_0010, DATA, 4, NEXT, 0);
            rig.offer(0, 0);
        }),
        ("chain at 2", |rig| {
            // A successor outside the table.
            rig.put_descriptor(0x1_0020, DATA, 4, NEXT, QUEUE_LEN);
            rig.offer(0, 2);
        }),
        ("chain at 40", |rig| rig.offer(0, 40)),
        ("chain at 0", |rig| {
            // An indirect table outside RAM.
            rig.put_descriptor(0x1_0000, RAM - 8, 16, INDIRECT, 0);
            rig.offer(0, 0);
        }),
        ("chain at 0", |rig| {
            // An indirect table of no whole number of entries.
            rig.put_descriptor(0x1_0000, DATA, 17, INDIRECT, 0);
            rig.offer(0, 0);
        }),
        ("chain at 0", |rig| {
            // An indirect table longer than the queue.
            for i in 0..QUEUE_LEN + 1 {
                let at = DATA + 0x1000 + 16 * u64::from(i);
                rig.put_descriptor(at, DATA, 1, if i < QUEUE_LEN { NEXT } else { 0 }, i + 1);
            }
            let len = 16 * (u32::from(QUEUE_LEN) + 1);
            rig.put_descriptor(0x1_0000, DATA + 0x1000, len, INDIRECT, 0);
            rig.offer(0, 0);
        }),
        ("not in RAM", |rig| {
            let head = rig.chain(0, &[(RAM - 2, 4, false)]);
            rig.offer(0, head);
        }),
        ("not in RAM", |rig| {
            let head = rig.chain(0, &[(DATA, 4, false), (u64::MAX - 1, 4, true)]);
            rig.offer(0, head);
        }),
        ("after a writable one", |rig| {
            let head = rig.chain(0, &[(DATA, 4, true), (DATA, 4, false)]);
            rig.offer(0, head);
        }),
        ("more descriptors", |rig| {
            rig.set_available(0, QUEUE_LEN + 1)
        }),
        ("changed while", |rig| {
            rig.write(0x16, 2, 0);
            rig.write(0x18, 2, 8);
        }),
        ("changed while", |rig| {
            rig.write(0x16, 2, 1);
            rig.write(0x34, 4, 1);
        }),
        ("chain at 0", |rig| {
            // More than 4 GiB in one chain.
            rig.put_descriptor(0x1_0000, DATA, u32::MAX, NEXT, 1);
            rig.put_descriptor(0x1_0010, DATA, u32::MAX, 0, 0);
            rig.offer(0, 0);
        }),
    ];
    for (reason, harm) in harms {
        let mut rig = live(0);
        rig.use_msix(2);
        harm(&mut rig);
        rig.notify(0);
        rig.expect_failure(reason);
        // The driver was told by the vector for such news.
        assert!(rig.world.take_messages().contains(&(0xFEE0_0000, 0)));
        rig.bring_up(0, 2);
        echo(&mut rig, 0, b"mended");
    }
}

#[test]
fn rings_outside_memory_are_refused() {
    for (register, value) in [
        (0x20, RAM - 16),
        (0x20, 8),
        (0x28, u64::MAX - 1),
        (0x30, RAM - 6),
        (0x18, 0),
        (0x18, 5),
        (0x18, 128),
    ] {
        let mut rig = Rig::new(Echo::default());
        assert!(rig.negotiate(VERSION_1));
        rig.write(0x16, 2, 0);
        rig.write(0x18, 2, u64::from(QUEUE_LEN));
        for (register, place) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
            rig.write(register, 8, place);
        }
        let len = if register == 0x18 { 2 } else { 8 };
        rig.write(register, len, value);
        rig.write(0x1C, 2, 1);
        rig.set_status(0xF);
        assert_ne!(rig.status() & NEEDS_RESET, 0, "{register:#x} {value:#x}");
        rig.expect_failure("virtqueue 0");
        rig.bring_up(0, 1);
        echo(&mut rig, 0, b"mended");
    }
}

/// Anything in rings, tables and registers: no panic, no endless work, and a
/// reset always brings the device back.
#[test]
fn anything_is_survived() {
    let word = prop_oneof![
        any::<u64>(),
        0u64..64,
        Just(DATA),
        Just(RAM - 4),
        (0u64..0x3_0000).prop_map(|n| n & !3),
    ];
    let access = (0u64..layout::BAR_SIZE, 0usize..4, word.clone());
    let accesses = proptest::collection::vec(access, 0..30);
    let words = proptest::collection::vec(word, 64);
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(ring in words, heads in any::<[u16; 20]>(), accesses in accesses)| {
        let mut rig = live(if heads[0] & 1 == 0 { 0 } else { EVENT_IDX });
        let bytes: Vec<u8> = ring.iter().flat_map(|w| w.to_le_bytes()).collect();
        rig.ram.write(Rig::<Echo>::descriptors(0), &bytes).unwrap();
        for head in &heads[..10] {
            rig.offer(0, head % (2 * QUEUE_LEN));
            rig.notify(0);
        }
        for (offset, size, value) in accesses {
            // Mostly the registers at the start of each part.
            let offset = if value & 1 == 0 { offset & !0xFC0 } else { offset };
            rig.write(offset, 1 << size, value);
            rig.read(offset, 1 << size);
        }
        rig.reset();
        rig.device.pause();
        let state = rig.device.save();
        rig.device.restore(&state).unwrap();
        rig.device.resume();
        rig.config_write(0x04, &6u16.to_le_bytes());
        rig.bring_up(0, 2);
        echo(&mut rig, 0, b"mended");
    });
}

#[test]
fn the_driver_hears_of_another_configuration() {
    let echo = Echo::default();
    let notifier = echo.notifier.clone();
    let written = echo.written.clone();
    let mut rig = Rig::new(echo);
    let notifier = lock(&notifier).clone().unwrap();
    assert!(rig.negotiate(VERSION_1));
    rig.use_msix(2);
    // Before the driver is done it is not disturbed, and hears of it then.
    notifier.config_changed();
    assert_eq!(rig.read(0x15, 1), 1);
    assert!(rig.world.take_messages().is_empty());
    rig.set_status(0xF);
    assert_eq!(rig.world.take_messages(), [(0xFEE0_0000, 0)]);
    notifier.config_changed();
    assert_eq!(rig.read(0x15, 1), 2);
    assert_eq!(rig.world.take_messages(), [(0xFEE0_0000, 0)]);
    // Nor does a machine that stands still send anything.
    rig.device.pause();
    notifier.config_changed();
    assert!(rig.world.take_messages().is_empty());
    let mut other = Rig::with_ram(Echo::default(), rig.ram.clone());
    other.device.pause();
    round_trip(&mut rig.device, &mut other.device);
    for rig in [&mut rig, &mut other] {
        rig.device.resume();
        assert_eq!(rig.world.take_messages(), [(0xFEE0_0000, 0)]);
        assert_eq!(rig.read(0x15, 1), 3);
    }
    rig.write(layout::DEVICE + 4, 4, 0x0403_0201);
    assert_eq!(*lock(&written), [4, 1, 2, 3, 4]);
    drop(rig);
    notifier.config_changed();
    notifier.wake(0);
    notifier.wake(9);
}

#[test]
fn a_request_waits_until_the_device_is_ready() {
    let echo = Echo::default();
    let (gate, notifier) = (echo.gate.clone(), echo.notifier.clone());
    let mut rig = Rig::new(echo);
    let notifier = lock(&notifier).clone().unwrap();
    rig.bring_up(0, 2);
    gate.aside.store(true, Ordering::SeqCst);
    let head = rig.chain(0, &[(DATA, 4, false), (DATA + 64, 4, true)]);
    rig.offer(0, head);
    rig.notify(0);
    // The worker has looked at it when the device stands still.
    rig.device.pause();
    rig.device.resume();
    assert_eq!(rig.used_index(0), 0);
    gate.aside.store(false, Ordering::SeqCst);
    notifier.wake(0);
    assert_eq!(rig.used(0), (u32::from(head), 4));
}

#[test]
fn a_request_that_waits_is_served_once_more() {
    let device = Echo::default();
    let gate = device.gate.clone();
    let mut rig = Rig::new(device);
    rig.bring_up(EVENT_IDX, 2);
    // By its own clock.
    lock(&gate.later).push(Some(Duration::from_millis(5)));
    echo(&mut rig, 0, b"later");
    // When the device goes on; until then it can be saved and reset.
    lock(&gate.later).extend([None, None]);
    let head = rig.chain(0, &[(DATA, 4, false), (DATA + 64, 4, true)]);
    rig.offer(0, head);
    rig.notify(0);
    wait("the first try", || lock(&gate.later).len() == 1);
    rig.device.pause();
    rig.device.save();
    rig.device.resume();
    wait("the second try", || lock(&gate.later).is_empty());
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(rig.used_index(0), 1);
    rig.device.pause();
    let state = rig.device.save();
    let mut two = Rig::with_ram(Echo::default(), rig.ram.clone());
    two.device.pause();
    two.device.restore(&state).unwrap();
    two.take_over(&rig);
    drop(rig);
    two.device.resume();
    assert_eq!(two.used(0), (u32::from(head), 4));
    echo(&mut two, 0, b"and after");
    two.reset();
}
