use std::sync::Arc;

use super::{PM_TIMER_HZ, Pm};
use crate::clock::{Clock, ManualClock};
use crate::device::{Device, PortDevice, TimerDevice};
use crate::testing::{Recorder, hammer, port_read8, port_read32, refuses_newer, round_trip};

fn pm() -> (Pm, Arc<ManualClock>, Arc<Recorder>) {
    let clock = Arc::new(ManualClock::new(0));
    let recorder = Recorder::new();
    let pm = Pm::new(
        recorder.line(9),
        recorder.alarm(),
        clock.clone(),
        recorder.clone(),
    );
    (pm, clock, recorder)
}

fn r16(pm: &mut Pm, port: u16) -> u16 {
    let mut data = [0; 2];
    pm.port_read(port, &mut data);
    u16::from_le_bytes(data)
}

fn w16(pm: &mut Pm, port: u16, value: u16) {
    pm.port_write(port, &value.to_le_bytes());
}

#[test]
fn power_button_raises_the_sci_until_acknowledged() {
    let (mut pm, _, recorder) = pm();
    let handle = pm.handle();
    handle.press_power_button();
    assert!(recorder.take_lines().is_empty());
    w16(&mut pm, 0x602, 0x100);
    assert_eq!(recorder.take_lines(), [(9, true)]);
    assert_eq!(r16(&mut pm, 0x600), 0x100);
    w16(&mut pm, 0x600, 0x100);
    assert_eq!(recorder.take_lines(), [(9, false)]);
    w16(&mut pm, 0x622, 1 << 1);
    handle.raise_gpe(1);
    handle.raise_gpe(200);
    assert_eq!(recorder.take_lines(), [(9, true)]);
    assert_eq!(r16(&mut pm, 0x620), 2);
}

#[test]
fn only_s5_powers_off() {
    let (mut pm, _, recorder) = pm();
    assert_eq!(r16(&mut pm, 0x604), 1);
    w16(&mut pm, 0x604, 1 << 13 | 3 << 10);
    w16(&mut pm, 0x604, 5 << 10);
    assert!(recorder.take_power().is_empty());
    w16(&mut pm, 0x604, 1 << 13 | 5 << 10);
    assert_eq!(recorder.take_power(), ["off"]);
    assert_eq!(r16(&mut pm, 0x604), 1 | 5 << 10);
}

#[test]
fn timer_counts_and_carries() {
    let (mut pm, clock, recorder) = pm();
    clock.advance(1_000_000_000);
    assert_eq!(u64::from(port_read32(&mut pm, 0x608)), PM_TIMER_HZ);
    assert_eq!(port_read8(&mut pm, 0x60A), (PM_TIMER_HZ >> 16) as u8);
    w16(&mut pm, 0x602, 1);
    let due = pm.alarm().deadline().unwrap();
    clock.advance(due - clock.now_ns() - 1);
    assert_eq!(port_read32(&mut pm, 0x608), 0x7FFF_FFFF);
    assert_eq!(r16(&mut pm, 0x600), 0);
    clock.advance(1);
    assert!(pm.alarm().take_due(clock.now_ns()));
    pm.expire(clock.now_ns());
    assert_eq!(recorder.take_lines(), [(9, true)]);
    w16(&mut pm, 0x600, 1);
    assert_eq!(recorder.take_lines(), [(9, false)]);
    assert!(pm.alarm().deadline().unwrap() > due);
}

#[test]
fn paused_holds_the_sci() {
    let (mut pm, _, recorder) = pm();
    w16(&mut pm, 0x602, 0x100);
    pm.pause();
    pm.handle().press_power_button();
    assert!(recorder.take_lines().is_empty());
    pm.resume();
    assert_eq!(recorder.take_lines(), [(9, true)]);
    pm.reset();
    assert_eq!(recorder.take_lines(), [(9, false)]);
}

#[test]
fn state_round_trip() {
    let (mut one, clock, _) = pm();
    clock.advance(77);
    w16(&mut one, 0x602, 0x101);
    w16(&mut one, 0x604, 3 << 10);
    one.handle().press_power_button();
    one.handle().raise_gpe(2);
    let (mut two, _, recorder) = pm();
    round_trip(&mut one, &mut two);
    assert_eq!(recorder.take_lines(), [(9, true)]);
    refuses_newer(&mut two);
}

#[test]
fn any_access_is_harmless() {
    hammer(400, || pm().0);
}
