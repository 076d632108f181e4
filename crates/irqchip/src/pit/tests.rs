use super::channel::{clocks, nanoseconds};
use super::*;

fn at(clocks: u64) -> u64 {
    nanoseconds(clocks)
}

fn program(pit: &mut Pit, control: u8, count: u16, now: u64) {
    pit.write(0x43, control, now);
    let port = 0x40 + u16::from(control >> 6);
    pit.write(port, count as u8, now);
    pit.write(port, (count >> 8) as u8, now);
}

fn read16(pit: &mut Pit, port: u16, now: u64) -> u16 {
    u16::from_le_bytes([pit.read(port, now), pit.read(port, now)])
}

#[test]
fn clock_conversions_agree() {
    for count in [0, 1, 2, 1193, 11932, 65536, u64::from(u32::MAX)] {
        assert_eq!(clocks(nanoseconds(count)), count);
    }
}

#[test]
fn periodic_neither_drifts_nor_storms() {
    let mut pit = Pit::new();
    assert_eq!(pit.next_edge_ns(0), None);
    program(&mut pit, 0x34, 11932, 0);
    for period in 1..1000 {
        let next = pit.next_edge_ns(at(11932 * (period - 1))).unwrap();
        assert_eq!(next, at(11932 * period));
        assert!(!pit.poll(next - 1).rose);
        assert!(pit.poll(next).rose);
        assert!(!pit.poll(next).rose);
    }
    assert!(pit.poll(at(11932 * 5000) + 10).rose);
    assert!(!pit.poll(at(11932 * 5000) + MIN_EDGE_NS + 10).rose);
    assert_eq!(
        pit.next_edge_ns(at(11932 * 5000) + 20),
        Some(at(11932 * 5001))
    );
}

#[test]
fn short_periods_are_bounded() {
    let mut pit = Pit::new();
    program(&mut pit, 0x34, 2, 0);
    let (mut now, mut reports) = (0, 0);
    while let Some(next) = pit.next_edge_ns(now).filter(|&next| next < 10_000_000) {
        assert!(reports == 0 || next >= now + MIN_EDGE_NS);
        assert!(pit.poll(next).rose);
        (now, reports) = (next, reports + 1);
    }
    assert!(reports <= 201);
}

#[test]
fn one_shot_modes() {
    for (control, length) in [(0x30, 1000), (0x38, 1001)] {
        let mut pit = Pit::new();
        program(&mut pit, control, 1000, 7);
        let due = pit.next_edge_ns(7).unwrap();
        assert_eq!(due, 7 + at(length));
        assert!(!pit.poll(due - 1).rose);
        assert_eq!(
            pit.poll(due),
            Irq0 {
                rose: true,
                level: true
            }
        );
        assert_eq!(pit.next_edge_ns(due), None);
        assert!(!pit.poll(due + 1_000_000_000).rose);
    }
}

#[test]
fn channel_2_calibration_as_linux_does_it() {
    let mut pit = Pit::new();
    pit.write(0x61, pit.clone().read(0x61, 0) & !2 | 1, 0);
    program(&mut pit, 0xB0, 59659, 0);
    assert_eq!(pit.read(0x61, at(59658)) & 0x21, 0x01);
    assert_eq!(pit.read(0x61, at(59659)) & 0x21, 0x21);
    // The gate stops the count and lets it go on.
    program(&mut pit, 0xB0, 100, 0);
    pit.write(0x61, 0, at(40));
    assert_eq!(read16(&mut pit, 0x42, at(90)), 60);
    pit.write(0x61, 1, at(90));
    assert_eq!(pit.read(0x61, at(149)) & 0x20, 0);
    assert_eq!(pit.read(0x61, at(151)) & 0x20, 0x20);
}

#[test]
fn gate_triggers_modes_1_and_5() {
    for (control, low_at) in [(0xB2, 50), (0xBA, 100)] {
        let mut pit = Pit::new();
        program(&mut pit, control, 100, 0);
        assert_eq!(pit.read(0x61, at(500)) & 0x20, 0x20, "not triggered yet");
        pit.write(0x61, 1, at(1000));
        assert_eq!(pit.read(0x61, at(1000 + low_at) + 1) & 0x20, 0);
        assert_eq!(pit.read(0x61, at(1102)) & 0x20, 0x20);
    }
}

#[test]
fn latches_and_read_back() {
    let mut pit = Pit::new();
    program(&mut pit, 0x34, 1000, 0);
    pit.write(0x43, 0x00, at(10));
    pit.write(0x43, 0x00, at(20));
    assert_eq!(read16(&mut pit, 0x40, at(30)), 990, "the first latch holds");
    assert_eq!(read16(&mut pit, 0x40, at(30)), 970);
    pit.write(0x43, 0xC2, at(40));
    assert_eq!(pit.read(0x40, at(50)), 0xB4, "status first");
    assert_eq!(read16(&mut pit, 0x40, at(50)), 960);
    pit.write(0x43, 0x34, at(60));
    pit.write(0x43, 0xE2, at(60));
    assert_eq!(pit.read(0x40, at(60)), 0xF4, "null count");
}

#[test]
fn square_wave_bcd_and_new_period() {
    let mut pit = Pit::new();
    program(&mut pit, 0x37, 0x1000, 0);
    assert_eq!(read16(&mut pit, 0x40, at(1)), 0x0998);
    assert_eq!(read16(&mut pit, 0x40, at(501)), 0x0998);
    assert!(pit.poll(at(499)).level && !pit.poll(at(500)).level);
    pit.write(0x40, 0x00, at(600));
    pit.write(0x40, 0x20, at(600));
    assert_eq!(pit.next_edge_ns(at(600)), Some(at(1000)));
    assert!(pit.poll(at(1000)).rose);
    assert_eq!(pit.next_edge_ns(at(1001)), Some(at(1000) + at(2000)));
}

#[test]
fn damaged_state_is_refused() {
    let mut pit = Pit::new();
    let good = pit.save();
    for damage in [
        (|s: &mut PitState| s.channels[0].reload = 0) as fn(&mut PitState),
        |s| s.channels[1].next_reload = Some(0x1_0001),
        |s| s.channels[2].mode = 6,
        |s| s.channels[2].access = 0,
    ] {
        let mut bad = good.clone();
        damage(&mut bad);
        assert!(pit.restore(&bad).is_err());
    }
    assert_eq!(pit.restore(&good), Ok(()));
}
