use std::sync::{Arc, Mutex};

use super::{
    BarKind, BarRoute, BarSpace, ConfigSpace, HotplugSink, Identity, PciError, PciFunction,
    PciHandle, PciHost, PciHostConfig,
};
use crate::bus::{Bus, DetachedDevice};
use crate::clock::ManualClock;
use crate::device::Device;
use crate::lock;
use crate::platform::{ECAM_BASE, ECAM_SIZE};
use crate::pm::Pm;
use crate::pvpanic::PvpanicState;
use crate::saved::{DeviceState, StateError};
use crate::testing::{Recorder, hammer, refuses_newer, round_trip};

const IDENTITY: Identity = Identity {
    vendor: 0x1AF4,
    device: 0x1042,
    revision: 1,
    class: 0x01_80_00,
    subsystem_vendor: 0x1AF4,
    subsystem: 2,
};

#[derive(Default)]
struct Ejected(Mutex<Vec<(u8, String)>>);

impl HotplugSink for Ejected {
    fn ejected(&self, slot: u8, device: DetachedDevice) {
        lock(&self.0).push((slot, device.name().to_owned()));
    }
}

/// A function with a byte of state behind each kind of BAR.
struct Toy {
    config: ConfigSpace,
    cells: [u8; 6],
    moves: Arc<Mutex<Vec<BarRoute>>>,
}

impl Toy {
    fn new() -> (Box<Self>, Arc<Mutex<Vec<BarRoute>>>) {
        let moves = Arc::default();
        let mut config = ConfigSpace::new(IDENTITY)
            .with_bar(0, BarKind::Memory32, 0x1000)
            .with_bar(1, BarKind::Io, 0x20)
            .with_bar(4, BarKind::Memory64 { prefetchable: true }, 0x4000);
        assert_eq!(
            config.add_capability(0x09, &[8, 1, 2, 3, 4, 5], &[0; 6]),
            0x40
        );
        assert_eq!(
            config.add_capability(0x11, &[0; 10], &[0, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0]),
            0x48
        );
        let toy = Toy {
            config,
            cells: [0; 6],
            moves: Arc::clone(&moves),
        };
        (Box::new(toy), moves)
    }
}

impl PciFunction for Toy {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> bool {
        self.config.write(offset, data)
    }

    fn bars(&self) -> Vec<BarRoute> {
        self.config.decoded()
    }

    fn bars_moved(&mut self) {
        *lock(&self.moves) = self.bars();
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(self.cells[usize::from(bar)].wrapping_add(offset as u8));
    }

    fn bar_write(&mut self, bar: u8, _offset: u64, data: &[u8]) {
        self.cells[usize::from(bar)] = data[0];
    }
}

impl Device for Toy {
    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn reset(&mut self) {
        self.config.reset();
    }

    fn save(&mut self) -> DeviceState {
        DeviceState::Pvpanic(PvpanicState { version: 1 })
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), StateError> {
        Ok(())
    }
}

struct World {
    bus: Arc<Bus>,
    pci: PciHandle,
    ejected: Arc<Ejected>,
    recorder: Arc<Recorder>,
}

fn host(bus: &Arc<Bus>, recorder: &Arc<Recorder>, ejected: &Arc<Ejected>) -> (PciHost, Pm) {
    let clock = Arc::new(ManualClock::new(0));
    let pm = Pm::new(recorder.line(9), recorder.alarm(), clock, recorder.clone());
    let config = PciHostConfig {
        ecam_base: ECAM_BASE,
        ecam_size: ECAM_SIZE,
        power: recorder.clone(),
        pm: pm.handle(),
        hotplug: ejected.clone(),
    };
    (PciHost::new(bus, config), pm)
}

fn world() -> World {
    let bus = Bus::new();
    let (recorder, ejected) = (Recorder::new(), Arc::<Ejected>::default());
    let (host, pm) = host(&bus, &recorder, &ejected);
    let pci = host.handle();
    bus.add("pm", Box::new(pm)).unwrap();
    bus.add("pci", Box::new(host)).unwrap();
    World {
        bus,
        pci,
        ejected,
        recorder,
    }
}

impl World {
    fn r(&self, slot: u8, offset: u16) -> u32 {
        let mut data = [0; 4];
        let at = ECAM_BASE + (u64::from(slot) << 15) + u64::from(offset);
        self.bus.mmio_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn w(&self, slot: u8, offset: u16, value: u32) {
        let at = ECAM_BASE + (u64::from(slot) << 15) + u64::from(offset);
        self.bus.mmio_write(at, &value.to_le_bytes());
    }

    fn mem(&self, address: u64) -> u8 {
        let mut data = [0];
        self.bus.mmio_read(address, &mut data);
        data[0]
    }

    fn inl(&self, port: u16) -> u32 {
        let mut data = [0; 4];
        self.bus.port_read(port, &mut data);
        u32::from_le_bytes(data)
    }

    fn outl(&self, port: u16, value: u32) {
        self.bus.port_write(port, &value.to_le_bytes());
    }
}

#[test]
fn both_ways_in_see_the_same() {
    let w = world();
    w.pci.plug(3, "toy", Toy::new().0).unwrap();
    // The probe of mechanism #1.
    w.bus.port_write(0xCFB, &[1]);
    w.outl(0xCF8, 0x8000_0000);
    assert_eq!(w.inl(0xCF8), 0x8000_0000);
    assert_eq!(w.inl(0xCFC), 0x0008_1B36);
    w.outl(0xCF8, 0x8000_0000 | 3 << 11 | 0x08);
    let mut class = [0; 2];
    w.bus.port_read(0xCFE, &mut class);
    assert_eq!(class, [0x80, 0x01]);
    assert_eq!(w.r(3, 0), 0x1042_1AF4);
    assert_eq!(w.r(3, 8), 0x0180_0001);
    // Absent: slots, functions, buses, extended space, a disabled address.
    assert_eq!(w.r(4, 0), u32::MAX);
    assert_eq!(w.r(3, 0x1000), u32::MAX);
    assert_eq!(w.r(3, 0x100), u32::MAX);
    w.outl(0xCF8, 3 << 11);
    assert_eq!(w.inl(0xCFC), u32::MAX);
    w.outl(0xCF8, 0x8001_0000);
    assert_eq!(w.inl(0xCFC), u32::MAX);
}

#[test]
fn reset_control_lives_inside_the_address_register() {
    let w = world();
    w.outl(0xCF8, 0x8000_0600);
    w.bus.port_write(0xCF9, &[0x02]);
    assert!(w.recorder.take_power().is_empty());
    w.bus.port_write(0xCF9, &[0x06]);
    assert_eq!(w.recorder.take_power(), ["reset"]);
    assert_eq!(w.inl(0xCF8), 0x8000_0600);
    w.bus.reset();
    w.bus.port_write(0xCF9, &[0x0E]);
    assert_eq!(w.recorder.take_power(), ["reset"]);
}

#[test]
fn bars_are_sized_and_move() {
    let w = world();
    let (toy, moves) = Toy::new();
    w.pci.plug(1, "toy", toy).unwrap();
    for (bar, size) in [
        (0x10, 0xFFFF_F000),
        (0x14, 0xFFFF_FFE1),
        (0x20, 0xFFFF_C00C),
    ] {
        w.w(1, bar, u32::MAX);
        assert_eq!(w.r(1, bar), size);
    }
    w.w(1, 0x18, u32::MAX);
    assert_eq!(w.r(1, 0x18), 0);
    w.w(1, 0x10, 0xC000_0000);
    w.w(1, 0x14, 0xC000);
    w.w(1, 0x20, 0);
    w.w(1, 0x24, 0x10);
    assert_eq!(w.mem(0xC000_0001), 0xFF);
    w.w(1, 0x04, 0x7);
    assert_eq!(lock(&moves).len(), 3);
    assert_eq!(w.mem(0xC000_0001), 1);
    w.bus.port_write(0xC01F, &[5]);
    assert_eq!(w.mem(0x10_0000_3FFF), 0xFF);
    assert_eq!(w.mem(0x10_0000_4000), 0xFF);
    assert_eq!(w.inl(0xC000) & 0xFF, 5);
    w.w(1, 0x10, 0xC100_0000);
    assert_eq!(w.mem(0xC000_0001), 0xFF);
    assert_eq!(w.mem(0xC100_0002), 2);
    w.bus.reset();
    assert_eq!(w.mem(0xC100_0002), 0xFF);
    assert!(lock(&moves).is_empty());
}

#[test]
fn overlapping_bars_leave_others_their_places() {
    let w = world();
    w.pci.plug(1, "one", Toy::new().0).unwrap();
    w.pci.plug(2, "two", Toy::new().0).unwrap();
    // BAR 4 of one lies over part of the ECAM window's start.
    w.w(1, 0x20, (ECAM_BASE - 0x4000) as u32);
    w.w(1, 0x04, 2);
    w.w(2, 0x10, (ECAM_BASE - 0x1000) as u32);
    w.w(2, 0x04, 2);
    w.bus.mmio_write(ECAM_BASE - 0x1000, &[0x40]);
    assert_eq!(w.mem(ECAM_BASE - 0x1000), 0x40);
    w.w(2, 0x10, ECAM_BASE as u32);
    assert_eq!(w.r(1, 0), 0x1042_1AF4);
    w.w(2, 0x10, 0xFFFF_F000);
    w.w(1, 0x04, 0);
    assert_eq!(w.mem(ECAM_BASE - 0x1000), 0xFF);
    assert_eq!(w.mem(0xFFFF_F003), 3);
}

#[test]
fn capabilities_are_linked_and_guarded() {
    let w = world();
    w.pci.plug(1, "toy", Toy::new().0).unwrap();
    assert_eq!(w.r(1, 0x04) >> 16 & 0x10, 0x10);
    assert_eq!(w.r(1, 0x34), 0x40);
    assert_eq!(w.r(1, 0x40), 0x0108_4809);
    assert_eq!(w.r(1, 0x48), 0x0000_0011);
    w.w(1, 0x48, u32::MAX);
    assert_eq!(w.r(1, 0x48), 0xC000_0011);
    w.w(1, 0x40, u32::MAX);
    assert_eq!(w.r(1, 0x40), 0x0108_4809);
}

#[test]
fn hot_plug_and_eject() {
    let w = world();
    w.pci.plug(1, "cold", Toy::new().0).unwrap();
    assert_eq!(w.pci.free_slot(), Some(2));
    w.bus.port_write(0x622, &[2]);
    w.pci.hot_plug(5, "hot", Toy::new().0, true).unwrap();
    assert_eq!(w.recorder.take_lines(), [(9, true)]);
    assert_eq!(w.inl(0xAE00), 1 << 5);
    assert_eq!(w.inl(0xAE00), 0);
    assert_eq!(w.inl(0xAE0C), 1 << 5);
    assert_eq!(w.pci.request_unplug(1), Err(PciError::NotRemovable(1)));
    assert_eq!(w.pci.request_unplug(2), Err(PciError::Empty(2)));
    assert_eq!(w.pci.request_unplug(32), Err(PciError::NoSuchSlot(32)));
    w.pci.request_unplug(5).unwrap();
    assert_eq!(w.inl(0xAE04), 1 << 5);
    w.outl(0xAE08, u32::MAX);
    assert_eq!(*lock(&w.ejected.0), [(5, "hot".to_owned())]);
    assert_eq!(w.r(5, 0), u32::MAX);
    assert_eq!(w.r(1, 0), 0x1042_1AF4);
    assert_eq!(w.inl(0xAE04), 0);
    // A reset completes what was asked for.
    w.pci.hot_plug(5, "hot", Toy::new().0, true).unwrap();
    w.pci.request_unplug(5).unwrap();
    w.bus.reset();
    assert_eq!(lock(&w.ejected.0).len(), 2);
    assert_eq!(
        w.pci.plug(0, "x", Toy::new().0),
        Err(PciError::NoSuchSlot(0))
    );
}

/// What may go, goes by the guest, by force, or not at all; whoever still
/// finds it finds nothing.
#[test]
fn what_is_removable_is_pulled_and_taken_apart() {
    struct Told(Toy, Arc<Mutex<bool>>);
    impl Device for Told {
        fn pci(&mut self) -> Option<&mut dyn PciFunction> {
            self.0.pci()
        }
        fn reset(&mut self) {}
        fn save(&mut self) -> DeviceState {
            self.0.save()
        }
        fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
            self.0.restore(state)
        }
    }
    impl Drop for Told {
        fn drop(&mut self) {
            *lock(&self.1) = true;
        }
    }
    let w = world();
    let gone = Arc::<Mutex<bool>>::default();
    let told = Box::new(Told(*Toy::new().0, gone.clone()));
    w.pci.plug_removable(4, "four", told).unwrap();
    assert_eq!(w.inl(0xAE00), 0);
    assert_eq!(w.inl(0xAE0C), 1 << 4);
    assert_eq!(w.pci.pull(3).unwrap_err(), PciError::Empty(3));
    assert_eq!(w.pci.pull(0).unwrap_err(), PciError::NoSuchSlot(0));
    w.pci.request_unplug(4).unwrap();
    w.pci.request_unplug(4).unwrap();
    assert!(w.pci.is_asked(4) && !w.pci.is_asked(5) && !w.pci.is_asked(32));
    let pulled = w.pci.pull(4).unwrap();
    assert_eq!(pulled.name(), "four");
    assert!(!w.pci.is_asked(4));
    assert_eq!(w.r(4, 0), u32::MAX);
    assert!(!*lock(&gone));
    pulled.dismantle();
    assert!(*lock(&gone));
    assert!(lock(&w.ejected.0).is_empty());
    // The slot is as good as new.
    w.pci.hot_plug(4, "four", Toy::new().0, false).unwrap();
    assert_eq!(w.inl(0xAE00), 1 << 4);
}

#[test]
fn config_state_round_trip() {
    let mut one = ConfigSpace::new(IDENTITY).with_bar(0, BarKind::Memory32, 0x1000);
    one.write(0x10, &0xC000_0000u32.to_le_bytes());
    assert!(one.write(0x04, &[2]));
    assert!(!one.write(0x04, &[2]));
    let mut two = ConfigSpace::new(IDENTITY).with_bar(0, BarKind::Memory32, 0x1000);
    two.restore(&one.save()).unwrap();
    assert_eq!(two.save(), one.save());
    assert_eq!(two.decoded()[0].space, BarSpace::Memory);
    let other = Identity {
        device: 0x1041,
        ..IDENTITY
    };
    assert!(ConfigSpace::new(other).restore(&one.save()).is_err());
    let mut short = one.save();
    short.bytes.pop();
    assert!(two.restore(&short).is_err());
}

#[test]
fn state_round_trip() {
    let bus = Bus::new();
    let (recorder, ejected) = (Recorder::new(), Arc::<Ejected>::default());
    let (mut one, _pm) = host(&bus, &recorder, &ejected);
    let (mut two, _pm) = host(&bus, &recorder, &ejected);
    one.ports()
        .unwrap()
        .port_write(0xCF8, &0x8000_1234u32.to_le_bytes());
    round_trip(&mut one, &mut two);
    refuses_newer(&mut two);
    // Other devices than the saved machine had.
    one.handle().hot_plug(1, "toy", Toy::new().0, true).unwrap();
    assert!(two.restore(&one.save()).is_err());
}

#[test]
fn any_access_is_harmless() {
    // The bus must outlive the host for its slots to answer.
    let buses = Mutex::new(Vec::new());
    hammer(3_000, || {
        let bus = Bus::new();
        let (host, _pm) = host(&bus, &Recorder::new(), &Arc::default());
        host.handle().plug(1, "toy", Toy::new().0).unwrap();
        lock(&buses).push(bus);
        host
    });
}

/// Guests write anything into BARs of several functions: the map stays sound
/// and bounded, and the fixed ranges keep their owners.
#[test]
fn any_bar_is_harmless() {
    use proptest::prelude::*;
    let bar = prop_oneof![any::<u32>(), Just(u32::MAX), 0xDFFF_0000u32..0xE000_8000];
    let write = (1u8..4, 0u16..8, bar);
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(writes in proptest::collection::vec(write, 1..100))| {
        let w = world();
        for slot in 1..4 {
            w.pci.plug(slot, &format!("toy{slot}"), Toy::new().0).unwrap();
        }
        for (slot, register, value) in writes {
            w.w(slot, if register < 2 { 4 } else { 8 + register * 4 }, value);
            w.mem(u64::from(value));
            w.bus.mmio_write(u64::from(value).wrapping_sub(2), &[1; 8]);
            w.bus.port_write(value as u16, &[1; 4]);
            w.outl(0xCF8, 0);
            prop_assert_eq!(w.r(0, 0), 0x0008_1B36);
        }
        prop_assert_eq!(w.r(1, 0), 0x1042_1AF4);
    });
}
