use std::sync::Arc;

use super::calendar::Calendar;
use super::{C_IRQ, Rtc, SECOND_NS};
use crate::clock::ManualClock;
use crate::device::{Device, TimerDevice};
use crate::testing::{Recorder, hammer, port_read8, port_write8, refuses_newer, round_trip};

const PORT: u16 = 0x70;
/// 2024-02-29 23:59:58 UTC, a Thursday.
const LEAP_EVENING: u64 = 1_709_251_198;

fn rtc() -> (Rtc, Arc<ManualClock>, Arc<Recorder>) {
    let clock = Arc::new(ManualClock::new(LEAP_EVENING * SECOND_NS));
    let recorder = Recorder::new();
    let rtc = Rtc::new(PORT, recorder.line(8), recorder.alarm(), clock.clone());
    (rtc, clock, recorder)
}

fn r(rtc: &mut Rtc, register: u8) -> u8 {
    port_write8(rtc, PORT, register);
    port_read8(rtc, PORT + 1)
}

fn w(rtc: &mut Rtc, register: u8, value: u8) {
    port_write8(rtc, PORT, register);
    port_write8(rtc, PORT + 1, value);
}

fn expire(rtc: &mut Rtc, clock: &ManualClock) {
    use crate::clock::Clock;
    assert!(rtc.alarm().take_due(clock.now_ns()));
    rtc.expire(clock.now_ns());
}

#[test]
fn calendar_agrees_with_itself_and_known_days() {
    let start = Calendar::from_unix(0);
    assert_eq!((start.year, start.month, start.day), (1970, 1, 1));
    for (unix, year, month, day) in [
        (951_782_400, 2000, 2, 29),
        (4_107_542_400, 2100, 3, 1),
        (1_735_603_200, 2024, 12, 31),
    ] {
        let c = Calendar::from_unix(unix);
        assert_eq!((c.year, c.month, c.day), (year, month, day));
    }
    for unix in (0..8_000_000_000u64).step_by(8_765_432) {
        assert_eq!(Calendar::from_unix(unix).to_unix(), unix);
    }
    Calendar::from_unix(u64::MAX).to_unix();
}

#[test]
fn shows_the_wall_clock_in_each_format() {
    let (mut rtc, clock, _) = rtc();
    let fields = [0, 2, 4, 6, 7, 8, 9, 0x32];
    let read = |rtc: &mut Rtc| fields.map(|f| r(rtc, f));
    assert_eq!(
        read(&mut rtc),
        [0x58, 0x59, 0x23, 5, 0x29, 0x02, 0x24, 0x20]
    );
    w(&mut rtc, 0x0B, 0x06);
    assert_eq!(read(&mut rtc), [58, 59, 23, 5, 29, 2, 24, 20]);
    w(&mut rtc, 0x0B, 0x04);
    assert_eq!(r(&mut rtc, 4), 0x80 | 11);
    w(&mut rtc, 0x0B, 0x02);
    clock.advance(2 * SECOND_NS);
    assert_eq!(read(&mut rtc), [0, 0, 0, 6, 0x01, 0x03, 0x24, 0x20]);
    w(&mut rtc, 0x0B, 0x00);
    assert_eq!(r(&mut rtc, 4), 0x12);
}

#[test]
fn guest_sets_the_time() {
    let (mut rtc, clock, _) = rtc();
    w(&mut rtc, 0x0B, 0x82);
    for (register, value) in [
        (0, 0x30),
        (2, 0x15),
        (4, 0x08),
        (7, 0x31),
        (8, 0x12),
        (9, 0x99),
    ] {
        w(&mut rtc, register, value);
    }
    w(&mut rtc, 0x32, 0x19);
    clock.advance(5 * SECOND_NS);
    assert_eq!(r(&mut rtc, 0), 0x30);
    w(&mut rtc, 0x0B, 0x02);
    clock.advance(3 * SECOND_NS);
    assert_eq!(r(&mut rtc, 0), 0x33);
    assert_eq!(r(&mut rtc, 9), 0x99);
    assert_eq!(r(&mut rtc, 0x32), 0x19);
    // Setting one running register keeps the others.
    w(&mut rtc, 2, 0x44);
    assert_eq!((r(&mut rtc, 2), r(&mut rtc, 0)), (0x44, 0x33));
}

#[test]
fn update_in_progress_before_the_second() {
    let (mut rtc, clock, _) = rtc();
    assert_eq!(r(&mut rtc, 0x0A), 0x26);
    clock.advance(SECOND_NS - 100_000);
    assert_eq!(r(&mut rtc, 0x0A), 0xA6);
    clock.advance(100_000);
    assert_eq!(r(&mut rtc, 0x0A), 0x26);
}

#[test]
fn periodic_interrupt_waits_for_the_guest() {
    let (mut rtc, clock, recorder) = rtc();
    w(&mut rtc, 0x0B, 0x42);
    let due = rtc.alarm().deadline().unwrap();
    assert_eq!(due, 976_562);
    clock.advance(due);
    expire(&mut rtc, &clock);
    assert_eq!(recorder.take_lines(), [(8, true)]);
    assert_eq!(rtc.alarm().deadline(), None);
    assert_eq!(r(&mut rtc, 0x0C), 0xC0);
    assert_eq!(recorder.take_lines(), [(8, false)]);
    assert_eq!(rtc.alarm().deadline(), Some(2 * 976_562));
}

#[test]
fn update_and_alarm_interrupts() {
    let (mut rtc, clock, recorder) = rtc();
    w(&mut rtc, 0x0B, 0x12);
    assert_eq!(rtc.alarm().deadline(), Some(SECOND_NS));
    clock.advance(SECOND_NS);
    expire(&mut rtc, &clock);
    // The periodic flag shows too, without its interrupt.
    assert_eq!(r(&mut rtc, 0x0C), 0xD0);
    recorder.take_lines();
    // 00:10:xx of the next day, any second.
    for (register, value) in [(5, 0x00), (3, 0x10), (1, 0xFF)] {
        w(&mut rtc, register, value);
    }
    w(&mut rtc, 0x0B, 0x22);
    assert_eq!(rtc.alarm().deadline(), Some(602 * SECOND_NS));
    clock.advance(601 * SECOND_NS);
    expire(&mut rtc, &clock);
    assert_eq!(recorder.take_lines(), [(8, true)]);
    assert_eq!(r(&mut rtc, 0x0C) & 0xA0, 0xA0);
    // An hour that does not exist never matches.
    w(&mut rtc, 5, 0x25);
    assert_eq!(rtc.alarm().deadline(), None);
}

#[test]
fn flags_show_without_interrupts_and_after_a_pause() {
    let (mut rtc, clock, recorder) = rtc();
    clock.advance(SECOND_NS);
    assert_eq!(r(&mut rtc, 0x0C), 0x50);
    assert_eq!(r(&mut rtc, 0x0C), 0);
    w(&mut rtc, 0x0B, 0x12);
    clock.advance_wall(10 * SECOND_NS);
    rtc.resume();
    assert_eq!(recorder.take_lines(), [(8, true)]);
}

#[test]
fn memory_and_reset() {
    let (mut rtc, _, recorder) = rtc();
    w(&mut rtc, 0x7F, 0xAB);
    w(&mut rtc, 0x80 | 0x40, 0xCD);
    rtc.set_memory(0x34, 7);
    rtc.set_memory(0, 7);
    rtc.set_memory(0xFF, 7);
    rtc.reset();
    assert_eq!(r(&mut rtc, 0x7F), 0xAB);
    assert_eq!(r(&mut rtc, 0x40), 0xCD);
    assert_eq!(r(&mut rtc, 0x34), 7);
    assert_eq!(r(&mut rtc, 0), 0x58);
    assert_eq!(port_read8(&mut rtc, PORT), 0xFF);
    assert_eq!(r(&mut rtc, 0x0D), 0x80);
    assert_eq!(r(&mut rtc, 0x0C) & C_IRQ, 0);
    assert!(recorder.take_lines().is_empty());
}

#[test]
fn state_round_trip() {
    let (mut one, clock, _) = rtc();
    w(&mut one, 0x0B, 0x72);
    w(&mut one, 9, 0x05);
    clock.advance(3 * SECOND_NS);
    one.expire(0);
    let recorder = Recorder::new();
    let mut two = Rtc::new(PORT, recorder.line(8), recorder.alarm(), clock.clone());
    round_trip(&mut one, &mut two);
    assert_eq!(recorder.take_lines(), [(8, true)]);
    assert_eq!(r(&mut two, 9), 0x05);
    assert_eq!(two.alarm().deadline(), one.alarm().deadline());
    refuses_newer(&mut two);
}

#[test]
fn any_access_is_harmless() {
    hammer(1_000, || rtc().0);
}
