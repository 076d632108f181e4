use super::DebugExit;
use crate::testing::{Recorder, hammer, port_write8, port_write32, refuses_newer, round_trip};

#[test]
fn status_is_odd() {
    let recorder = Recorder::new();
    let mut device = DebugExit::new(0xF4, recorder.clone());
    port_write8(&mut device, 0xF4, 0);
    port_write32(&mut device, 0xF4, 0x10);
    assert_eq!(recorder.take_power(), ["exit 1", "exit 33"]);
}

#[test]
fn state_round_trip() {
    let make = || DebugExit::new(0xF4, Recorder::new());
    round_trip(&mut make(), &mut make());
    refuses_newer(&mut make());
}

#[test]
fn any_access_is_harmless() {
    hammer(100, || DebugExit::new(0xF4, Recorder::new()));
}
