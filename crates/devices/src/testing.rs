//! What the devices' tests share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::device::Device;
use crate::interrupt::{InterruptSink, IrqLine};
use crate::lock;
use crate::power::PowerSink;
use crate::saved::DeviceState;
use crate::timer::{Alarm, TimerWaker};

/// Records what devices ask of the machine.
#[derive(Default)]
pub struct Recorder {
    pub lines: Mutex<Vec<(u32, bool)>>,
    pub power: Mutex<Vec<String>>,
    pub wakes: AtomicUsize,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        IrqLine::new(self.clone(), gsi)
    }

    pub fn alarm(self: &Arc<Self>) -> Alarm {
        Alarm::new(self.clone())
    }

    /// Level changes of lines since the last call.
    pub fn take_lines(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut lock(&self.lines))
    }

    pub fn take_power(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.power))
    }
}

impl InterruptSink for Recorder {
    fn set_line(&self, gsi: u32, level: bool) {
        let mut lines = lock(&self.lines);
        lines.push((gsi, level));
        if lines.len() > 64 {
            lines.clear();
        }
    }

    fn msi(&self, _address: u64, _data: u32) {}
}

impl TimerWaker for Recorder {
    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }
}

impl PowerSink for Recorder {
    fn power_off(&self) {
        lock(&self.power).push("off".into());
    }

    fn reset(&self) {
        lock(&self.power).push("reset".into());
    }

    fn panicked(&self, events: u8) {
        lock(&self.power).push(format!("panicked {events:#x}"));
    }

    fn debug_exit(&self, status: u32) {
        lock(&self.power).push(format!("exit {status}"));
    }
}

pub fn port_read8(device: &mut dyn Device, port: u16) -> u8 {
    let mut data = [0xFF];
    device.ports().unwrap().port_read(port, &mut data);
    data[0]
}

pub fn port_read32(device: &mut dyn Device, port: u16) -> u32 {
    let mut data = [0xFF; 4];
    device.ports().unwrap().port_read(port, &mut data);
    u32::from_le_bytes(data)
}

pub fn port_write8(device: &mut dyn Device, port: u16, value: u8) {
    device.ports().unwrap().port_write(port, &[value]);
}

pub fn port_write32(device: &mut dyn Device, port: u16, value: u32) {
    let data = value.to_le_bytes();
    device.ports().unwrap().port_write(port, &data);
}

/// Saves, goes through JSON, restores into `other`, saves again: the same.
pub fn round_trip(device: &mut dyn Device, other: &mut dyn Device) {
    let state = device.save();
    let text = serde_json::to_string(&state).unwrap();
    let read: DeviceState = serde_json::from_str(&text).unwrap();
    assert_eq!(read, state);
    other.restore(&read).unwrap();
    assert_eq!(other.save(), state);
}

/// A state with a later version is refused, and changes nothing.
pub fn refuses_newer(device: &mut dyn Device) {
    let state = device.save();
    let mut json = serde_json::to_value(&state).unwrap();
    let inner = json.as_object_mut().unwrap().values_mut().next().unwrap();
    inner["version"] = serde_json::json!(u32::MAX);
    let newer: DeviceState = serde_json::from_value(json).unwrap();
    let error = device.restore(&newer).unwrap_err();
    assert!(error.to_string().contains("newer Croft"), "{error}");
    assert_eq!(device.save(), state);
}

/// Random accesses of all sizes, resets, timers and restores neither panic
/// nor make the state larger than `bound` bytes of JSON.
pub fn hammer<D: Device>(bound: usize, make: impl Fn() -> D) {
    let op = (any::<u8>(), any::<u32>(), 0usize..4, any::<[u8; 8]>());
    let mut runner = TestRunner::new(Config {
        cases: 128,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&proptest::collection::vec(op, 1..600), |ops| {
            let mut device = make();
            for (kind, place, size, data) in ops {
                access(&mut device, kind, place, &data[..1 << size]);
            }
            let state = device.save();
            assert!(serde_json::to_string(&state).unwrap().len() <= bound);
            device.restore(&state).unwrap();
            assert_eq!(device.save(), state);
            Ok(())
        })
        .unwrap();
}

fn access(device: &mut dyn Device, kind: u8, place: u32, data: &[u8]) {
    let mut buffer = [0xFF; 8];
    let buffer = &mut buffer[..data.len()];
    match kind {
        0..=1 => device.reset(),
        2..=3 => {
            let state = device.save();
            device.restore(&state).unwrap();
        }
        4..=8 => {
            if let Some(timer) = device.timer() {
                timer.expire(u64::from(place) << 8);
            }
        }
        9..=180 if data.len() <= 4 => {
            if let Some(ports) = device.ports() {
                let all: Vec<u16> = ports.port_ranges().into_iter().flatten().collect();
                let port = all[place as usize % all.len()];
                if kind & 1 == 0 {
                    ports.port_read(port, buffer);
                } else {
                    ports.port_write(port, data);
                }
            }
        }
        _ => {
            if let Some(mmio) = device.mmio() {
                let ranges = mmio.mmio_ranges();
                let range = &ranges[place as usize % ranges.len()];
                let len = range.end() - range.start() + 1;
                let address = range.start() + u64::from(place) % len;
                if kind & 1 == 0 {
                    mmio.mmio_read(address, buffer);
                } else {
                    mmio.mmio_write(address, data);
                }
            }
        }
    }
}
