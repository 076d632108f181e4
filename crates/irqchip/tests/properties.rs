//! Random guests: nothing they do panics, and a saved state is complete.

use croft_irqchip::{
    Action, Chips, ChipsState, Delivery, Destination, IoApicState, Lapic, LapicState, Message, Msi,
    Outlet, PicState, PicsState, PitChannelState, PitState,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Counts messages and lowers a line on every other EOI.
#[derive(Default)]
struct Recorder {
    sent: Vec<Message>,
    ended: Vec<u32>,
}

impl Outlet for Recorder {
    fn send(&mut self, message: Message) {
        self.sent.push(message);
    }

    fn ended(&mut self, gsi: u32) -> bool {
        self.ended.push(gsi);
        self.ended.len().is_multiple_of(2)
    }
}

#[derive(Clone, Debug)]
enum LapicStep {
    Write(u64, u32),
    Read(u64),
    WriteMsr(u32, u64),
    ReadMsr(u32),
    Base(u64),
    Deadline(u64),
    Accept(Msi),
    Acknowledge,
    Eoi,
    Poll,
    Init,
    Advance(u64),
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..0x800u64,
        Just(0),
        any::<u32>().prop_map(u64::from)
    ]
}

fn lapic_step() -> impl Strategy<Value = LapicStep> {
    let offset = || prop_oneof![(0..64u64).prop_map(|r| r << 4), any::<u64>()];
    let base = prop_oneof![
        Just(0xFEE0_0000),
        Just(0xFEE0_0800),
        Just(0xFEE0_0C00),
        any::<u64>()
    ];
    let msi = (0..0x1000u64, any::<u32>()).prop_map(|(low, data)| Msi {
        address: 0xFEE0_0000 | low << 2,
        data,
    });
    prop_oneof![
        4 => (offset(), value()).prop_map(|(o, v)| LapicStep::Write(o, v as u32)),
        1 => offset().prop_map(LapicStep::Read),
        4 => (0x7F0..0x850u32, value()).prop_map(|(m, v)| LapicStep::WriteMsr(m, v)),
        1 => (0x7F0..0x850u32).prop_map(LapicStep::ReadMsr),
        1 => base.prop_map(LapicStep::Base),
        1 => value().prop_map(LapicStep::Deadline),
        2 => msi.prop_map(LapicStep::Accept),
        2 => Just(LapicStep::Acknowledge),
        1 => Just(LapicStep::Eoi),
        1 => Just(LapicStep::Poll),
        1 => Just(LapicStep::Init),
        1 => value().prop_map(LapicStep::Advance),
    ]
}

fn run_lapic(lapic: &mut Lapic, step: &LapicStep, now: &mut u64) {
    let tsc = now.wrapping_mul(3);
    let act = |lapic: &mut Lapic, action: Action| {
        if let Some(message) = action.ipi
            && lapic.matches(&message.destination)
        {
            lapic.accept(&message);
        }
    };
    match *step {
        LapicStep::Write(offset, value) => {
            let action = lapic.write(offset, value, *now, tsc);
            act(lapic, action);
        }
        LapicStep::Read(offset) => {
            lapic.read(offset, *now, tsc);
        }
        LapicStep::WriteMsr(msr, value) => {
            if let Ok(action) = lapic.write_msr(msr, value, *now, tsc) {
                act(lapic, action);
            }
        }
        LapicStep::ReadMsr(msr) => {
            let _ = lapic.read_msr(msr, *now, tsc);
        }
        LapicStep::Base(value) => {
            let _ = lapic.set_apic_base(value);
        }
        LapicStep::Deadline(value) => lapic.write_tsc_deadline(value, *now, tsc),
        LapicStep::Accept(msi) => {
            if let Some(message) = Message::from_msi(msi) {
                lapic.accept(&message);
            }
        }
        LapicStep::Acknowledge => {
            let pending = lapic.pending();
            assert_eq!(lapic.acknowledge(), pending);
            assert!(pending.is_none_or(|vector| lapic.ppr() >> 4 == vector >> 4));
        }
        LapicStep::Eoi => {
            lapic.eoi();
        }
        LapicStep::Poll => {
            lapic.poll_timer(*now, tsc);
            assert!(
                lapic
                    .next_expiry_ns(*now)
                    .is_none_or(|at| at > *now || *now == u64::MAX)
            );
        }
        LapicStep::Init => {
            if lapic.take_init() {
                lapic.init_reset();
            }
        }
        LapicStep::Advance(by) => *now = now.saturating_add(by),
    }
}

#[derive(Clone, Debug)]
enum ChipsStep {
    Port(u16, Vec<u8>),
    ReadPort(u16, usize),
    Mmio(u64, Vec<u8>),
    Redirect(u8, u32),
    ReadMmio(u64, usize),
    Line(u32, bool),
    Eoi(u8),
    Acknowledge,
    Poll,
    Advance(u64),
}

fn chips_step() -> impl Strategy<Value = ChipsStep> {
    let ports = vec![
        0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61, 0xFFFF,
    ];
    let port = prop::sample::select(ports);
    let offset = prop_oneof![Just(0), Just(0x10), Just(0x40), any::<u64>()];
    let pin_register = prop_oneof![0..4u8, 0x10..0x42u8];
    prop_oneof![
        6 => (port.clone(), vec(any::<u8>(), 1..5)).prop_map(|(p, d)| ChipsStep::Port(p, d)),
        3 => (port, 1..5usize).prop_map(|(p, n)| ChipsStep::ReadPort(p, n)),
        1 => (offset.clone(), vec(any::<u8>(), 0..9)).prop_map(|(o, d)| ChipsStep::Mmio(o, d)),
        4 => (pin_register, any::<u32>()).prop_map(|(r, v)| ChipsStep::Redirect(r, v)),
        1 => (offset, 0..9usize).prop_map(|(o, n)| ChipsStep::ReadMmio(o, n)),
        4 => (0..26u32, any::<bool>()).prop_map(|(g, l)| ChipsStep::Line(g, l)),
        2 => any::<u8>().prop_map(ChipsStep::Eoi),
        2 => Just(ChipsStep::Acknowledge),
        1 => Just(ChipsStep::Poll),
        2 => value().prop_map(ChipsStep::Advance),
    ]
}

fn run_chips(chips: &mut Chips, step: &ChipsStep, now: &mut u64, out: &mut Recorder) {
    match step {
        ChipsStep::Port(port, data) => chips.port_write(*port, data, *now, out),
        ChipsStep::ReadPort(port, len) => chips.port_read(*port, &mut vec![0; *len], *now, out),
        ChipsStep::Mmio(offset, data) => chips.mmio_write(*offset, data, out),
        ChipsStep::Redirect(register, value) => {
            chips.mmio_write(0, &[*register], out);
            chips.mmio_write(0x10, &value.to_le_bytes(), out);
        }
        ChipsStep::ReadMmio(offset, len) => chips.mmio_read(*offset, &mut vec![0; *len]),
        ChipsStep::Line(gsi, level) => chips.set_line(*gsi, *level, out),
        ChipsStep::Eoi(vector) => chips.eoi(*vector, out),
        ChipsStep::Acknowledge => {
            chips.acknowledge_pic(out);
        }
        ChipsStep::Poll => {
            chips.poll(*now, out);
            let next = chips.next_event_ns(*now);
            assert!(next.is_none_or(|at| at > *now || *now == u64::MAX));
        }
        ChipsStep::Advance(by) => *now = now.saturating_add(*by),
    }
}

fn through_json<T: serde::Serialize + serde::de::DeserializeOwned>(state: &T) -> T {
    serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
}

fn pic_state() -> impl Strategy<Value = PicState> {
    (any::<[u8; 6]>(), 0..9u8, 0..5u8, any::<[bool; 6]>()).prop_map(|(b, top, step, f)| PicState {
        irr: b[0],
        imr: b[1],
        isr: b[2],
        lines: b[3],
        base: b[4] & 0xF8,
        elcr: b[5] & 0xD8,
        priority_add: top,
        init_step: step,
        auto_eoi: f[0],
        special_mask: f[1],
        special_fully_nested: f[2],
        poll: f[3],
        needs_icw4: f[4],
        single: f[5],
        ..PicState::default()
    })
}

fn channel_state() -> impl Strategy<Value = PitChannelState> {
    (
        (0..0x1_0002u32, any::<Option<u32>>(), 0..7u8, 0..4u8),
        any::<[bool; 6]>(),
        (value(), value(), value()),
        (any::<Option<u16>>(), any::<Option<u8>>()),
    )
        .prop_map(
            |((reload, next, mode, access), f, (loaded_at, counted, edges_seen), latch)| {
                PitChannelState {
                    reload,
                    next_reload: next.map(|n| n & 0xFFFF),
                    mode,
                    access,
                    bcd: f[0],
                    gate: f[1],
                    armed: f[2],
                    triggered: f[3],
                    edge_due: f[4],
                    read_high: f[5],
                    loaded_at,
                    counted,
                    edges_seen,
                    latched: latch.0,
                    latched_status: latch.1,
                    write_low: latch.1,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lapic_survives_and_saves(
        steps in vec(lapic_step(), 0..80),
        after in vec(lapic_step(), 0..20),
        id in 0..300u32,
    ) {
        let (mut lapic, mut now) = (Lapic::new(id, id == 0), 0);
        for step in &steps {
            run_lapic(&mut lapic, step, &mut now);
        }
        let state = lapic.save();
        let mut copy = Lapic::new(id, id == 0);
        prop_assert_eq!(copy.restore(&through_json(&state)), Ok(()));
        prop_assert_eq!(&copy.save(), &state);
        // Nothing that matters is missing from the state.
        let mut copy_now = now;
        for step in &after {
            run_lapic(&mut lapic, step, &mut now);
            run_lapic(&mut copy, step, &mut copy_now);
            prop_assert_eq!(copy.pending(), lapic.pending());
        }
        prop_assert_eq!(copy.save(), lapic.save());
    }

    #[test]
    fn any_lapic_state_is_refused_or_works(
        registers in vec(prop_oneof![3 => Just(0u32), 1 => any::<u32>()], 60..66),
        keep in vec(any::<bool>(), 64),
        base in value(),
        times in (value(), value()),
        steps in vec(lapic_step(), 0..20),
    ) {
        let mut lapic = Lapic::new(1, false);
        let mut state: LapicState = lapic.save();
        let good = state.registers.clone();
        state.registers = registers;
        for (index, &value) in good.iter().enumerate() {
            if (keep[index] || index < 0x10)
                && let Some(register) = state.registers.get_mut(index)
            {
                *register = value;
            }
        }
        if base & 1 != 0 {
            state.apic_base = base;
        }
        (state.tsc_deadline, state.timer_expires_at) = times;
        let _ = lapic.restore(&state);
        let mut now = 0;
        for step in &steps {
            run_lapic(&mut lapic, step, &mut now);
        }
    }

    #[test]
    fn chips_survive_and_save(
        steps in vec(chips_step(), 0..80),
        after in vec(chips_step(), 0..20),
    ) {
        let (mut chips, mut now, mut out) = (Chips::new(), 0, Recorder::default());
        for step in &steps {
            run_chips(&mut chips, step, &mut now, &mut out);
        }
        let state = chips.save();
        let mut copy = Chips::new();
        prop_assert_eq!(copy.restore(&through_json(&state)), Ok(()));
        prop_assert_eq!(&copy.save(), &state);
        let mut copy_now = now;
        let (mut out, mut copy_out) = (Recorder::default(), Recorder::default());
        for step in &after {
            run_chips(&mut chips, step, &mut now, &mut out);
            run_chips(&mut copy, step, &mut copy_now, &mut copy_out);
        }
        prop_assert_eq!(copy.save(), chips.save());
        prop_assert_eq!(copy_out.sent, out.sent);
        prop_assert_eq!(copy_out.ended, out.ended);
    }

    #[test]
    fn any_chips_state_is_refused_or_works(
        master in pic_state(),
        slave in pic_state(),
        channels in [channel_state(), channel_state(), channel_state()],
        last_edge_at in any::<Option<u64>>(),
        entries in vec(value(), 23..26),
        lines in 0..1u32 << 25,
        steps in vec(chips_step(), 0..30),
    ) {
        let mut chips = Chips::new();
        let good = chips.save();
        let parts = [
            ChipsState { pics: PicsState { master, slave }, ..good.clone() },
            ChipsState { pit: PitState { channels, speaker: true, last_edge_at }, ..good.clone() },
            ChipsState { ioapic: IoApicState { entries, lines, ..good.ioapic.clone() }, ..good },
        ];
        for state in parts {
            let _ = chips.restore(&state);
            let (mut now, mut out) = (0, Recorder::default());
            for step in &steps {
                run_chips(&mut chips, step, &mut now, &mut out);
            }
        }
    }

    #[test]
    fn msi_decoding_never_fails(address in any::<u64>(), data in any::<u32>()) {
        let _ = Message::from_msi(Msi { address, data });
        let _ = Message::from_msi(Msi { address: 0xFEE0_0000 | address & 0xF_FFFF, data });
    }
}

/// Device, I/O APIC and local APIC together, as a guest's handler sees them.
#[test]
fn level_interrupt_round() {
    let (mut chips, mut lapic, mut out) = (Chips::new(), Lapic::new(0, true), Recorder::default());
    let _ = lapic.write(0xF0, 0x1FF, 0, 0);
    for (register, value) in [(0x10 + 2 * 17, 0x8061u32), (0x11 + 2 * 17, 0)] {
        chips.mmio_write(0, &[register], &mut out);
        chips.mmio_write(0x10, &value.to_le_bytes(), &mut out);
    }
    chips.set_line(17, true, &mut out);
    for round in 0..2 {
        let message = out.sent.pop().unwrap();
        assert_eq!(message.destination, Destination::Physical(0));
        assert!(lapic.matches(&message.destination) && lapic.accept(&message));
        assert_eq!(lapic.acknowledge(), Some(0x61));
        assert_eq!(out.sent, []);
        let vector = lapic.write(0xB0, 0, 0, 0).eoi.unwrap();
        // The first EOI leaves the line up, so that the interrupt comes again;
        // the second one lowers it.
        chips.eoi(vector, &mut out);
        assert_eq!(out.ended, vec![17; round + 1]);
    }
    assert_eq!(out.sent, []);
}

/// The timer reaches the I/O APIC at pin 2 and the PIC at input 0.
#[test]
fn timer_wiring() {
    let (mut chips, mut out) = (Chips::new(), Recorder::default());
    for (register, value) in [(0x14u8, 0x30u32), (0x10, 0x700)] {
        chips.mmio_write(0, &[register], &mut out);
        chips.mmio_write(0x10, &value.to_le_bytes(), &mut out);
    }
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xFE),
    ] {
        chips.port_write(port, &[value], 0, &mut out);
    }
    for (port, value) in [(0x43, 0x34), (0x40, 0xA9), (0x40, 0x04)] {
        chips.port_write(port, &[value], 0, &mut out);
    }
    let mut due = 0;
    for tick in 1..4 {
        due = chips.next_event_ns(due).unwrap();
        chips.poll(due, &mut out);
        assert!(chips.intr());
        let sent: Vec<_> = out.sent.drain(..).map(|m| (m.delivery, m.vector)).collect();
        assert_eq!(
            sent,
            [(Delivery::Fixed, 0x30), (Delivery::ExtInt, 0)],
            "tick {tick}"
        );
        assert_eq!(chips.acknowledge_pic(&mut out), 0x30);
        chips.port_write(0x20, &[0x60], due, &mut out);
    }
    assert_eq!(out.ended, [0, 0, 0]);
}
