use super::Pvpanic;
use crate::testing::{Recorder, hammer, port_read8, port_write8, refuses_newer, round_trip};

#[test]
fn tells_known_events_only() {
    let recorder = Recorder::new();
    let mut device = Pvpanic::new(0x505, recorder.clone());
    assert_eq!(port_read8(&mut device, 0x505), 3);
    port_write8(&mut device, 0x505, 0xF0);
    assert!(recorder.take_power().is_empty());
    port_write8(&mut device, 0x505, 0xF1);
    assert_eq!(recorder.take_power(), ["panicked 0x1"]);
}

#[test]
fn state_round_trip() {
    let make = || Pvpanic::new(0x505, Recorder::new());
    round_trip(&mut make(), &mut make());
    refuses_newer(&mut make());
}

#[test]
fn any_access_is_harmless() {
    hammer(100, || Pvpanic::new(0x505, Recorder::new()));
}
