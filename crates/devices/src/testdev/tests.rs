use std::sync::Arc;

use super::TestDev;
use crate::device::{Device, MmioDevice};
use crate::testing::{
    Recorder, hammer, port_read32, port_write8, port_write32, refuses_newer, round_trip,
};

const MEMORY: u64 = 0xFF00_0000;

fn testdev() -> (TestDev, Arc<Recorder>) {
    let recorder = Recorder::new();
    (TestDev::new(|gsi| recorder.line(gsi)), recorder)
}

#[test]
fn ports_memory_and_lines() {
    let (mut device, recorder) = testdev();
    port_write32(&mut device, 0xE0, 0x1234_5678);
    port_write8(&mut device, 0xE1, 0xAA);
    assert_eq!(port_read32(&mut device, 0xE0), 0x1234_AA78);
    port_write8(&mut device, 0x200E, 1);
    port_write32(&mut device, 0x200E, 0);
    assert_eq!(recorder.take_lines(), [(14, true), (14, false)]);
    device.mmio_write(MEMORY + 0xFFFC, &[1, 2, 3, 4]);
    let mut data = [0xFF; 8];
    device.mmio_read(MEMORY + 0xFFFC, &mut data);
    assert_eq!(data, [1, 2, 3, 4, 0xFF, 0xFF, 0xFF, 0xFF]);
}

#[test]
fn state_round_trip() {
    let (mut one, _) = testdev();
    one.mmio_write(MEMORY + 5, &[1]);
    port_write8(&mut one, 0xE3, 9);
    port_write8(&mut one, 0x2003, 1);
    let (mut two, recorder) = testdev();
    round_trip(&mut one, &mut two);
    assert_eq!(recorder.take_lines(), [(3, true)]);
    refuses_newer(&mut two);
    two.reset();
    assert_eq!(recorder.take_lines(), [(3, false)]);
}

#[test]
fn any_access_is_harmless() {
    hammer(400_000, || testdev().0);
}
