use super::*;
use crate::{Delivery, Destination};

const X2: u64 = DEFAULT_BASE | BASE_EN | BASE_EXTD;

/// Software-enabled, as Linux leaves it.
fn enabled() -> Lapic {
    let mut lapic = Lapic::new(3, false);
    let _ = write(&mut lapic, 0xF0, 0x1FF);
    lapic
}

fn x2apic() -> Lapic {
    let mut lapic = enabled();
    lapic.set_apic_base(X2).unwrap();
    lapic
}

fn write(lapic: &mut Lapic, offset: u64, value: u32) -> Action {
    lapic.write(offset, value, 0, 0)
}

fn fixed(vector: u8, level: bool) -> Message {
    Message {
        destination: Destination::Physical(3),
        delivery: Delivery::Fixed,
        vector,
        level,
    }
}

#[test]
fn power_on_values() {
    let mut lapic = Lapic::new(3, false);
    let values = [
        (0x20, 3 << 24),
        (0x30, 0x0005_0014),
        (0xD0, 0),
        (0xE0, u32::MAX),
        (0xF0, 0xFF),
        (0x320, LVT_MASKED),
        (0x350, LVT_MASKED),
        (0x390, 0),
    ];
    for (offset, value) in values {
        assert_eq!(lapic.read(offset, 0, 0), value, "{offset:#x}");
    }
    assert_eq!(lapic.apic_base(), 0xFEE0_0800);
    assert_eq!(Lapic::new(0, true).apic_base(), 0xFEE0_0900);
    assert!(Lapic::new(0, true).accepts_pic_interrupts());
    assert!(!lapic.accepts_pic_interrupts());
}

#[test]
fn priorities() {
    let mut lapic = enabled();
    for vector in [0x31, 0x35, 0x82, 0x41] {
        assert!(lapic.accept(&fixed(vector, false)));
    }
    assert_eq!(lapic.acknowledge(), Some(0x82));
    assert_eq!(lapic.ppr(), 0x80);
    assert_eq!(lapic.pending(), None);
    assert!(lapic.accept(&fixed(0x91, false)));
    assert_eq!(lapic.acknowledge(), Some(0x91));
    assert_eq!(lapic.eoi(), None);
    assert_eq!(lapic.pending(), None);
    assert_eq!(lapic.eoi(), None);
    lapic.set_cr8(4);
    assert_eq!(lapic.pending(), None);
    lapic.set_tpr(0x3F);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    lapic.eoi();
    lapic.set_cr8(0);
    assert_eq!(lapic.acknowledge(), Some(0x35));
    assert_eq!(lapic.pending(), None, "same class");
    lapic.eoi();
    assert_eq!(lapic.acknowledge(), Some(0x31));
    lapic.eoi();
    assert_eq!((lapic.eoi(), lapic.ppr()), (None, 0));
}

#[test]
fn only_level_vectors_are_broadcast() {
    let mut lapic = enabled();
    for (level, broadcast) in [(true, Some(0x51)), (false, None), (true, Some(0x51))] {
        assert!(lapic.accept(&fixed(0x51, level)));
        assert_eq!(lapic.acknowledge(), Some(0x51));
        assert_eq!(write(&mut lapic, 0xB0, 0).eoi, broadcast);
    }
}

#[test]
fn only_a_lone_edge_lets_the_eoi_wait() {
    let mut lapic = enabled();
    assert!(!lapic.eoi_can_wait());
    for (level, waits) in [(false, true), (true, false)] {
        assert!(lapic.accept(&fixed(0x51, level)));
        assert_eq!(lapic.acknowledge(), Some(0x51));
        assert_eq!(lapic.eoi_can_wait(), waits);
        assert!(lapic.accept(&fixed(0x31, false)));
        assert!(!lapic.eoi_can_wait());
        lapic.eoi();
        assert_eq!(lapic.acknowledge(), Some(0x31));
        lapic.eoi();
    }
}

#[test]
fn software_disabled_masks() {
    let mut lapic = enabled();
    assert!(lapic.accept(&fixed(0x40, false)));
    let _ = write(&mut lapic, 0x350, 0x700);
    assert!(lapic.accepts_pic_interrupts());
    let _ = write(&mut lapic, 0xF0, 0xFF);
    assert!(!lapic.accepts_pic_interrupts());
    let _ = write(&mut lapic, 0x350, 0x700);
    assert_eq!(lapic.read(0x350, 0, 0), 0x1_0700);
    assert!(!lapic.accept(&fixed(0x41, false)));
    assert_eq!(lapic.pending(), Some(0x40), "what was requested stays");
    for (sent, pending) in [(1, 1), (2, 2), (3, 2)] {
        for _ in 0..sent {
            assert!(lapic.accept(&Message {
                delivery: Delivery::Nmi,
                ..fixed(0, false)
            }));
        }
        assert_eq!((0..4).filter(|_| lapic.take_nmi()).count(), pending);
    }
}

#[test]
fn destinations() {
    let mut lapic = enabled();
    let _ = write(&mut lapic, 0xD0, 0x0800_0000);
    let check = |lapic: &Lapic, yes: &[Destination], no: &[Destination]| {
        yes.iter().for_each(|d| assert!(lapic.matches(d), "{d:?}"));
        no.iter().for_each(|d| assert!(!lapic.matches(d), "{d:?}"));
    };
    use Destination::*;
    check(
        &lapic,
        &[
            All,
            AllBut(2),
            Physical(3),
            Physical(0xFF),
            Physical(u32::MAX),
            Logical(0x18),
        ],
        &[
            AllBut(3),
            Physical(2),
            Logical(0x17),
            Logical(0x108),
            Physical(0x103),
        ],
    );
    let _ = write(&mut lapic, 0xE0, 0);
    let _ = write(&mut lapic, 0xD0, 0x2800_0000);
    check(
        &lapic,
        &[Logical(0x29), Logical(0xFF)],
        &[Logical(0x18), Logical(0x27)],
    );

    let mut lapic = Lapic::new(0x25, false);
    lapic.set_apic_base(X2).unwrap();
    assert_eq!(lapic.read_msr(0x80D, 0, 0), Ok(0x2_0020));
    check(
        &lapic,
        &[
            Physical(0x25),
            Logical(0x2_0021),
            Logical(u32::MAX),
            Physical(u32::MAX),
        ],
        &[
            Physical(0xFF),
            Logical(0x1_0020),
            Logical(0x2_0010),
            Logical(0xFF),
        ],
    );
    lapic.set_apic_base(DEFAULT_BASE).unwrap();
    check(&lapic, &[], &[All, Physical(0x25)]);
}

#[test]
fn ipis() {
    let mut lapic = enabled();
    let _ = write(&mut lapic, 0x310, 0x0100_0000);
    let init = write(&mut lapic, 0x300, 0xC500).ipi.unwrap();
    assert_eq!(
        (init.destination, init.delivery),
        (Destination::Physical(1), Delivery::Init)
    );
    assert_eq!(write(&mut lapic, 0x300, 0x8500).ipi, None, "de-assert");
    let startup = write(&mut lapic, 0x300, 0x0699).ipi.unwrap();
    assert_eq!(
        (startup.delivery, startup.vector),
        (Delivery::Startup, 0x99)
    );
    assert_eq!(
        write(&mut lapic, 0x300, 0x8_00FE).ipi.unwrap().destination,
        Destination::All
    );
    assert_eq!(
        write(&mut lapic, 0x300, 0xC_00FE).ipi.unwrap().destination,
        Destination::AllBut(3)
    );
    assert_eq!(write(&mut lapic, 0x300, 0x4_00FD), Action::default());
    assert_eq!(lapic.acknowledge(), Some(0xFD));

    assert!(lapic.accept(&Message {
        delivery: Delivery::Startup,
        ..fixed(1, false)
    }));
    assert!(lapic.accept(&init));
    assert!(lapic.accept(&startup));
    assert!(lapic.take_init());
    lapic.init_reset();
    assert_eq!(
        (lapic.take_startup(), lapic.take_startup()),
        (Some(0x99), None)
    );
    assert_eq!(lapic.read(0xF0, 0, 0), 0xFF);
}

#[test]
fn errors_are_latched_by_a_write() {
    let mut lapic = enabled();
    let _ = write(&mut lapic, 0x370, 0xFE);
    assert_eq!(write(&mut lapic, 0x300, 0x0005).ipi, None);
    assert!(!lapic.accept(&fixed(7, false)));
    assert_eq!(lapic.read(0x40, 0, 0), 0);
    assert_eq!(lapic.read(0x280, 0, 0), 0);
    let _ = write(&mut lapic, 0x280, 0);
    assert_eq!(lapic.read(0x280, 0, 0), 0xE0);
    assert_eq!(lapic.acknowledge(), Some(0xFE));
    let _ = write(&mut lapic, 0x280, 0);
    assert_eq!(lapic.read(0x280, 0, 0), 0);
}

#[test]
fn mode_switches() {
    let disabled = DEFAULT_BASE;
    let xapic = DEFAULT_BASE | BASE_EN;
    let mut lapic = enabled();
    for bad in [
        DEFAULT_BASE | BASE_EXTD,
        xapic | 1,
        xapic | 1 << 9,
        xapic | 1 << 52,
    ] {
        assert_eq!(lapic.set_apic_base(bad), Err(GpFault), "{bad:#x}");
    }
    lapic.set_physical_bits(40);
    assert_eq!(lapic.set_apic_base(xapic | 1 << 40), Err(GpFault));
    assert!(lapic.accept(&fixed(0x40, false)));
    assert_eq!(lapic.set_apic_base(X2), Ok(()));
    assert_eq!(lapic.pending(), Some(0x40), "kept");
    assert_eq!(lapic.read(0x20, 0, 0), u32::MAX);
    assert_eq!(lapic.set_apic_base(xapic), Err(GpFault));
    assert_eq!(lapic.set_apic_base(disabled), Ok(()));
    assert_eq!((lapic.pending(), lapic.mmio_base()), (None, None));
    assert_eq!(lapic.set_apic_base(X2), Err(GpFault));
    assert_eq!(lapic.set_apic_base(xapic), Ok(()));
    assert_eq!(lapic.mmio_base(), Some(DEFAULT_BASE));
}

#[test]
fn x2apic_faults() {
    let mut lapic = x2apic();
    for msr in [
        0x800, 0x809, 0x80B, 0x80C, 0x80E, 0x82F, 0x831, 0x83A, 0x83F, 0x840, 0x7FF,
    ] {
        assert_eq!(lapic.read_msr(msr, 0, 0), Err(GpFault), "{msr:#x}");
    }
    for (msr, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x808, 0x100),
        (0x80A, 0),
        (0x80B, 1),
        (0x80D, 0),
        (0x80F, 0x1000),
        (0x810, 0),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 20),
        (0x832, 1 << 8),
        (0x835, 1 << 17),
        (0x838, 1 << 32),
        (0x839, 0),
        (0x83E, 4),
        (0x83F, 0x100),
    ] {
        assert_eq!(
            lapic.write_msr(msr, value, 0, 0),
            Err(GpFault),
            "{msr:#x} {value:#x}"
        );
    }
    assert_eq!(enabled().read_msr(0x802, 0, 0), Err(GpFault), "xAPIC mode");
    assert_eq!(lapic.read_msr(0x802, 0, 0), Ok(3));
    let ipi = lapic
        .write_msr(0x830, 0x1_0001 << 32 | 0x8F0, 0, 0)
        .unwrap()
        .ipi
        .unwrap();
    assert_eq!(ipi.destination, Destination::Logical(0x1_0001));
    assert_eq!(lapic.read_msr(0x830, 0, 0), Ok(0x1_0001 << 32 | 0x8F0));
    assert_eq!(lapic.write_msr(0x83F, 0xF1, 0, 0), Ok(Action::default()));
    assert_eq!(lapic.acknowledge(), Some(0xF1));
    assert_eq!(lapic.write_msr(0x80B, 0, 0, 0), Ok(Action::default()));
}

#[test]
fn one_shot_timer() {
    let mut lapic = enabled();
    let _ = lapic.write(0x320, 0xEC, 100, 0);
    let _ = lapic.write(0x3E0, 3, 100, 0); // divide by 16
    assert!(lapic.write(0x380, 1000, 100, 0).timer);
    assert_eq!(lapic.next_expiry_ns(100), Some(16_100));
    assert_eq!(lapic.read(0x390, 8_100, 0), 500);
    let _ = lapic.write(0x3E0, 0xB, 8_100, 0); // by 1: the rest goes faster
    assert_eq!(lapic.next_expiry_ns(8_100), Some(8_600));
    assert!(!lapic.poll_timer(8_599, 0));
    assert!(lapic.poll_timer(8_600, 0));
    assert_eq!(lapic.acknowledge(), Some(0xEC));
    assert_eq!(
        (lapic.next_expiry_ns(9_000), lapic.read(0x390, 9_000, 0)),
        (None, 0)
    );
    assert!(!lapic.poll_timer(u64::MAX, 0));

    let _ = lapic.write(0x320, LVT_MASKED | 0xEC, 0, 0);
    let _ = lapic.write(0x380, 10, 0, 0);
    assert_eq!(lapic.next_expiry_ns(0), None, "masked");
    let _ = lapic.write(0x320, 0xEC, 20, 0);
    assert!(!lapic.poll_timer(30, 0), "passed while masked");
}

#[test]
fn periodic_timer() {
    let mut lapic = enabled();
    let _ = lapic.write(0x3E0, 0xB, 0, 0);
    let _ = lapic.write(0x320, 0x2_00EC, 0, 0);
    let _ = lapic.write(0x380, 1_000_000, 5, 0);
    assert!(lapic.poll_timer(1_000_005 + 300, 0));
    assert_eq!(lapic.next_expiry_ns(1_000_305), Some(2_000_005), "no drift");
    assert_eq!(lapic.read(0x390, 1_500_005, 0), 500_000);
    assert!(lapic.poll_timer(77_500_000, 0));
    assert!(!lapic.poll_timer(77_500_000, 0), "missed periods are one");
    assert_eq!(lapic.next_expiry_ns(77_500_000), Some(78_000_005));
    let _ = lapic.write(0x380, 0, 77_500_000, 0);
    assert_eq!(lapic.next_expiry_ns(77_500_000), None);

    let _ = lapic.write(0x380, 1, 0, 0);
    assert_eq!(lapic.next_expiry_ns(0), Some(MIN_PERIOD_NS));
    assert!(lapic.poll_timer(MIN_PERIOD_NS, 0));
    assert_eq!(lapic.next_expiry_ns(MIN_PERIOD_NS), Some(2 * MIN_PERIOD_NS));
}

#[test]
fn deadline_timer() {
    let mut lapic = enabled();
    lapic.write_tsc_deadline(50, 0, 0);
    assert_eq!(lapic.tsc_deadline(), None, "another mode");
    let _ = write(&mut lapic, 0x320, 0x4_00EC);
    lapic.write_tsc_deadline(500, 0, 100);
    assert_eq!(
        (lapic.tsc_deadline(), lapic.read_tsc_deadline(0, 499)),
        (Some(500), 500)
    );
    assert!(!lapic.poll_timer(u64::MAX, 499));
    assert!(lapic.poll_timer(0, 500));
    assert_eq!(
        (lapic.tsc_deadline(), lapic.read_tsc_deadline(0, 500)),
        (None, 0)
    );
    assert_eq!(lapic.acknowledge(), Some(0xEC));
    lapic.eoi();
    lapic.write_tsc_deadline(400, 0, 500);
    assert_eq!(lapic.acknowledge(), Some(0xEC), "already passed");
    lapic.eoi();
    let _ = write(&mut lapic, 0x380, 1000);
    assert_eq!(lapic.read(0x380, 0, 500), 0, "ignored in this mode");
    lapic.write_tsc_deadline(900, 0, 500);
    let _ = lapic.write(0x320, 0xEC, 0, 500);
    assert_eq!(lapic.tsc_deadline(), None);
    assert!(!lapic.poll_timer(0, 1000), "a mode switch disarms");
}

#[test]
fn damaged_state_is_refused() {
    let mut lapic = enabled();
    let good = lapic.save();
    for damage in [
        (|s: &mut crate::LapicState| s.registers.truncate(63)) as fn(&mut crate::LapicState),
        |s| s.registers[0x02] = 4 << 24,
        |s| s.registers[0x03] = 0x10,
        |s| s.registers[0x10] = 1,
        |s| s.registers[0x20] = 0x8000,
        |s| s.registers[0x0F] = 1 << 12,
        |s| s.registers[0x32] = 1 << 12,
        |s| s.registers[0x3E] = 4,
        |s| s.apic_base = BASE_EXTD,
        |s| s.errors = 1,
    ] {
        let mut bad = good.clone();
        damage(&mut bad);
        assert!(lapic.restore(&bad).is_err());
        assert_eq!(lapic.save(), good);
    }
    assert_eq!(lapic.restore(&good), Ok(()));
}
