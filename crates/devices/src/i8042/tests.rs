use std::sync::Arc;

use super::I8042;
use crate::device::Device;
use crate::testing::{Recorder, hammer, port_read8, port_write8, refuses_newer, round_trip};

fn i8042() -> (I8042, Arc<Recorder>) {
    let recorder = Recorder::new();
    (I8042::new(recorder.line(1), recorder.clone()), recorder)
}

/// A command and, when there is one, its parameter; then the answer with the
/// status it came with.
fn ask(device: &mut I8042, command: u8, parameter: Option<u8>) -> Option<(u8, u8)> {
    port_write8(device, 0x64, command);
    if let Some(parameter) = parameter {
        port_write8(device, 0x60, parameter);
    }
    let status = port_read8(device, 0x64);
    assert_eq!(status & 2, 0, "the input buffer is always free");
    (status & 1 != 0).then(|| (port_read8(device, 0x60), status))
}

#[test]
fn probing_gets_every_answer_at_once() {
    let (mut device, _) = i8042();
    assert_eq!(port_read8(&mut device, 0x64) & 1, 0);
    assert_eq!(ask(&mut device, 0xAA, None).unwrap().0, 0x55);
    assert_eq!(ask(&mut device, 0xAB, None).unwrap().0, 0);
    assert_eq!(ask(&mut device, 0x60, Some(0x65)), None);
    assert_eq!(ask(&mut device, 0x20, None).unwrap().0, 0x65);
    // The auxiliary loop must not look as if it worked.
    let (byte, status) = ask(&mut device, 0xD3, Some(0x5A)).unwrap();
    assert_eq!((byte, status & 0x20), (0x5A, 0));
    assert_eq!(ask(&mut device, 0xA9, None).unwrap().0, 1);
    let (byte, status) = ask(&mut device, 0xD4, Some(0xF2)).unwrap();
    assert_eq!((byte, status & 0x60), (0xFE, 0x60));
    assert_eq!(ask(&mut device, 0xD0, None).unwrap().0 & 3, 3);
}

#[test]
fn absent_keyboard_answers_by_interrupt() {
    let (mut device, recorder) = i8042();
    ask(&mut device, 0x60, Some(0x45));
    port_write8(&mut device, 0x60, 0xF2);
    assert_eq!(recorder.take_lines(), [(1, true)]);
    assert_eq!(port_read8(&mut device, 0x64) & 0x41, 0x41);
    assert_eq!(port_read8(&mut device, 0x60), 0xFE);
    assert_eq!(recorder.take_lines(), [(1, false)]);
}

#[test]
fn three_ways_to_reset() {
    let (mut device, recorder) = i8042();
    port_write8(&mut device, 0x64, 0xFE);
    ask(&mut device, 0xD1, Some(0x02));
    assert_eq!(port_read8(&mut device, 0x92), 2);
    port_write8(&mut device, 0x92, 3);
    assert_eq!(recorder.take_power(), ["reset"; 3]);
    port_write8(&mut device, 0x92, 3);
    port_write8(&mut device, 0x64, 0xFF);
    assert!(recorder.take_power().is_empty());
    device.reset();
    assert_eq!(port_read8(&mut device, 0x92), 2);
}

#[test]
fn state_round_trip() {
    let (mut one, _) = i8042();
    ask(&mut one, 0x60, Some(0x45));
    port_write8(&mut one, 0x60, 0xF2);
    port_write8(&mut one, 0x64, 0xD4);
    let (mut two, recorder) = i8042();
    round_trip(&mut one, &mut two);
    assert_eq!(recorder.take_lines(), [(1, true)]);
    refuses_newer(&mut two);
}

#[test]
fn any_access_is_harmless() {
    hammer(400, || i8042().0);
}
