use std::sync::Arc;

use super::{Bus, BusError, Unclaimed};
use crate::device::{Device, MmioDevice, MmioRange, PortDevice, PortRange, TimerDevice};
use crate::pvpanic::PvpanicState;
use crate::saved::{DeviceState, StateError};
use crate::testing::Recorder;
use crate::timer::Alarm;

/// Remembers the last write; answers reads by a byte of its own.
struct Probe {
    ports: Vec<PortRange>,
    mmio: Vec<MmioRange>,
    alarm: Alarm,
    answer: u8,
    log: Vec<String>,
}

impl Probe {
    fn new(answer: u8) -> Box<Self> {
        Box::new(Probe {
            ports: Vec::new(),
            mmio: Vec::new(),
            alarm: Recorder::new().alarm(),
            answer,
            log: Vec::new(),
        })
    }

    fn ports(answer: u8, range: PortRange) -> Box<Self> {
        let mut probe = Probe::new(answer);
        probe.ports.push(range);
        probe
    }
}

impl PortDevice for Probe {
    fn port_ranges(&self) -> Vec<PortRange> {
        self.ports.clone()
    }

    fn port_read(&mut self, _port: u16, data: &mut [u8]) {
        data.fill(self.answer);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.answer = data[0];
        self.log.push(format!("{port:x}:{data:?}"));
    }
}

impl MmioDevice for Probe {
    fn mmio_ranges(&self) -> Vec<MmioRange> {
        self.mmio.clone()
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        data.fill(address as u8);
    }

    fn mmio_write(&mut self, _address: u64, data: &[u8]) {
        self.answer = data[0];
    }
}

impl TimerDevice for Probe {
    fn alarm(&self) -> Alarm {
        self.alarm.clone()
    }

    fn expire(&mut self, now: u64) {
        self.log.push(format!("expire {now}"));
        self.answer = 0xEE;
    }
}

impl Device for Probe {
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioDevice> {
        Some(self)
    }

    fn timer(&mut self) -> Option<&mut dyn TimerDevice> {
        Some(self)
    }

    fn reset(&mut self) {
        self.answer = 0;
    }

    fn save(&mut self) -> DeviceState {
        DeviceState::Pvpanic(PvpanicState {
            version: self.answer.into(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        if let DeviceState::Pvpanic(state) = state {
            self.answer = state.version as u8;
        }
        Ok(())
    }
}

fn inl(bus: &Bus, port: u16) -> u32 {
    let mut data = [0; 4];
    bus.port_read(port, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn overlap_and_names_are_refused() {
    let bus = Bus::new();
    bus.add("a", Probe::ports(1, 0x10..=0x17)).unwrap();
    let error = bus.add("b", Probe::ports(2, 0x17..=0x18)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("'b' and device 'a' both claim ports")
    );
    bus.add("b", Probe::ports(2, 0x18..=0x18)).unwrap();
    let error = bus.add("a", Probe::new(0)).unwrap_err();
    assert_eq!(error, BusError::NameTaken("a".into()));
    #[expect(clippy::reversed_empty_ranges)]
    let empty = Probe::ports(0, 0x30..=0x20);
    assert!(matches!(
        bus.add("c", empty),
        Err(BusError::EmptyRange { first: 0x30, .. })
    ));
    assert_eq!(bus.find("c"), None);
}

#[test]
fn accesses_go_to_their_devices() {
    let bus = Bus::new();
    bus.add("a", Probe::ports(0xA0, 0x10..=0x13)).unwrap();
    bus.add("b", Probe::ports(0xB0, 0x14..=0x14)).unwrap();
    bus.add("end", Probe::ports(0xE0, 0xFFFF..=0xFFFF)).unwrap();
    assert_eq!(inl(&bus, 0x10), 0xA0A0_A0A0);
    // Byte by byte over a border, all ones where nobody is.
    assert_eq!(inl(&bus, 0x12), 0xFFB0_A0A0);
    assert_eq!(inl(&bus, 0xFFFF), 0xFFFF_FFE0);
    assert_eq!(bus.unclaimed(), Unclaimed::default());
    assert_eq!(inl(&bus, 0x0E), 0xA0A0_FFFF);
    assert_eq!(inl(&bus, 0x20), u32::MAX);
    bus.port_write(0x20, &[1]);
    bus.port_write(0x13, &[1, 2]);
    assert_eq!(inl(&bus, 0x11) & 0xFF, 1);
    assert_eq!(inl(&bus, 0x14) & 0xFF, 2);
    assert_eq!(bus.unclaimed().ports, 2);
    let mut data = [0; 8];
    bus.mmio_read(u64::MAX - 3, &mut data);
    assert_eq!((data, bus.unclaimed().mmio), ([0xFF; 8], 1));
}

#[test]
fn memory_up_to_the_last_byte() {
    let bus = Bus::new();
    let mut probe = Probe::new(0);
    probe.mmio.push(u64::MAX - 1..=u64::MAX);
    bus.add("top", probe).unwrap();
    let mut data = [0; 4];
    bus.mmio_read(u64::MAX - 2, &mut data);
    assert_eq!(data, [0xFF, 0xFE, 0xFF, 0xFF]);
    bus.mmio_read(u64::MAX, &mut data);
    assert_eq!(data[1..], [0xFF; 3]);
}

#[test]
fn removed_devices_no_longer_answer() {
    let bus = Bus::new();
    let id = bus.add("a", Probe::ports(0xA0, 0x10..=0x13)).unwrap();
    let device = bus.remove(id).unwrap();
    assert_eq!(device.name(), "a");
    assert_eq!(inl(&bus, 0x10), u32::MAX);
    assert!(bus.remove(id).is_none());
    assert!(bus.with(id, |_| ()).is_none());
    let again = bus.add("a", Probe::ports(0xA1, 0x10..=0x13)).unwrap();
    assert_ne!(again, id);
    assert_eq!(inl(&bus, 0x10), 0xA1A1_A1A1);
}

#[test]
fn timers_expire_in_turn_and_wake_when_nearer() {
    let bus = Bus::new();
    let recorder = Recorder::new();
    let alarms = [recorder.alarm(), recorder.alarm()];
    for (i, alarm) in alarms.iter().enumerate() {
        let mut probe = Probe::ports(0, (i as u16)..=(i as u16));
        probe.alarm = alarm.clone();
        bus.add(&format!("t{i}"), probe).unwrap();
    }
    assert_eq!(bus.next_deadline(), None);
    alarms[0].set(Some(100));
    alarms[1].set(Some(50));
    alarms[1].set(Some(60));
    assert_eq!(recorder.wakes.load(std::sync::atomic::Ordering::Relaxed), 2);
    assert_eq!(bus.next_deadline(), Some(60));
    bus.expire(59);
    bus.expire(60);
    assert_eq!(bus.next_deadline(), Some(100));
    assert_eq!(inl(&bus, 0) & 0xFFFF, 0xEE00);
}

#[test]
fn states_go_by_name() {
    let one = Bus::new();
    let two = Bus::new();
    for bus in [&one, &two] {
        bus.add("a", Probe::ports(1, 1..=1)).unwrap();
        bus.add("b", Probe::ports(2, 2..=2)).unwrap();
    }
    one.port_write(1, &[7]);
    let mut state = one.save();
    state.devices.reverse();
    two.restore(&state).unwrap();
    assert_eq!(inl(&two, 1) & 0xFFFF, 0x0207);
    state.devices.pop();
    let error = two.restore(&state).unwrap_err();
    assert_eq!(error, StateError::OtherDevices { name: "a".into() });
    state = one.save();
    state.version += 1;
    assert!(two.restore(&state).is_err());
    two.reset();
    assert_eq!(inl(&two, 1) & 0xFFFF, 0);
}

#[test]
fn many_threads_while_devices_come_and_go() {
    let bus = Bus::new();
    bus.add("fixed", Probe::ports(5, 0x10..=0x10)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let bus = Arc::clone(&bus);
            scope.spawn(move || {
                for _ in 0..5_000 {
                    assert_eq!(inl(&bus, 0x10) & 0xFF, 5);
                    let other = inl(&bus, 0x20) & 0xFF;
                    assert!(other == 9 || other == 0xFF);
                }
            });
        }
        for _ in 0..200 {
            let id = bus.add("guest", Probe::ports(9, 0x20..=0x20)).unwrap();
            bus.remove(id).unwrap();
        }
    });
}
