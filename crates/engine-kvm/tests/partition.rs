//! Machines on this host's KVM. What runs guest code keeps to instructions
//! that a paravirtual KVM (PVM) can emulate, so these run on one too; without
//! any KVM they are skipped, and say so.

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use croft_engine::state::{MpState, SegmentState, StateError};
use croft_engine::{
    CpuIo, CpuModel, CpuProfile, CpuState, Doorbell, DoorbellAddress, Engine, EngineError,
    InterruptRoute, Partition, PartitionConfig, Stop, Topology, Vcpu,
};
use croft_engine_kvm::KvmEngine;
use croft_engine_software::SoftwareEngine;
use croft_irqchip::Msi;
use croft_memory::{GuestRam, Range};

use common::Tested;

const CODE: u64 = 0x1000;

/// The engine and a profile it takes, if there is any.
fn engine() -> Option<(Tested, CpuProfile)> {
    let engine = common::engine()?;
    let topology = Topology { vcpus: 2 };
    let profile = engine.profile(CpuModel::PortableV1, topology).ok()?;
    Some((engine, profile))
}

struct Guest {
    partition: Arc<dyn Partition>,
    ram: GuestRam,
    vcpu: Box<dyn Vcpu>,
}

fn real_mode(state: &mut CpuState) {
    for segment in &mut state.segments {
        *segment = SegmentState {
            selector: 0,
            base: 0,
            limit: 0xFFFF,
            attributes: 0x93,
        };
    }
    state.segments[1].attributes = 0x9B;
    state.rip = CODE;
    state.registers[4] = 0x8000;
    state.mp_state = MpState::Running;
}

/// vCPU 0 of a new machine at `code`, in real mode.
fn guest_on(engine: &dyn Engine, profile: &CpuProfile, code: &[u8]) -> Guest {
    let ram = GuestRam::new(&[Range {
        start: 0,
        len: 0x20_0000,
    }])
    .unwrap();
    ram.write(CODE, code).unwrap();
    let partition = engine
        .partition(PartitionConfig {
            ram: ram.clone(),
            profile: profile.clone(),
            vcpus: 2,
        })
        .unwrap();
    let mut vcpu = partition.vcpu(0).unwrap();
    let mut state = vcpu.save().unwrap();
    real_mode(&mut state);
    vcpu.restore(&state).unwrap();
    Guest {
        partition,
        ram,
        vcpu,
    }
}

/// Keeps what was written, answers reads, and calls back.
#[derive(Default)]
struct Io {
    seen: Mutex<Vec<(u64, Vec<u8>)>>,
    kicker: Option<croft_engine::Kicker>,
}

impl Io {
    fn kicking(vcpu: &dyn Vcpu) -> Self {
        Io {
            seen: Mutex::default(),
            kicker: Some(vcpu.kicker()),
        }
    }

    fn take(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn note(&self, at: u64, data: &[u8]) {
        self.seen.lock().unwrap().push((at, data.to_vec()));
    }
}

impl CpuIo for Io {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = port as u8 + n as u8;
        }
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.note(port.into(), data);
        if let Some(kicker) = &self.kicker {
            kicker.kick();
        }
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = address as u8 + n as u8;
        }
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.note(address, data);
    }
}

#[test]
fn the_probe_says_what_there_is() {
    let engine = KvmEngine::new();
    let start = Instant::now();
    let fitness = engine.probe();
    println!("{fitness} ({:?})", start.elapsed());
    assert!(!fitness.to_string().is_empty());
}

#[test]
fn a_kick_after_an_access_finds_it_complete() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    // in al, 0x71; out 0x80, al; inc bx; out 0x81, al; hlt
    let code = [0xE4, 0x71, 0xE6, 0x80, 0x43, 0xE6, 0x81, 0xF4];
    let mut guest = guest_on(&engine, &profile, &code);
    let io = Io::kicking(&*guest.vcpu);
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    let state = guest.vcpu.save().unwrap();
    assert_eq!((state.rip, state.registers[0] & 0xFF), (CODE + 4, 0x71));
    assert_eq!(io.take(), [(0x80, vec![0x71])]);
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    let state = guest.vcpu.save().unwrap();
    assert_eq!((state.rip, state.registers[3] & 0xFFFF), (CODE + 7, 1));
    // A kick before `run` is kept.
    guest.vcpu.kicker().kick();
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    assert_eq!(guest.vcpu.save().unwrap().rip, CODE + 7);
}

#[test]
fn memory_accesses_arrive_split_and_whole() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    // mov ax, [bx]; mov [bx + 3], eax; out 0x80, al
    let code = [0x8B, 0x07, 0x66, 0x89, 0x47, 0x03, 0xE6, 0x80];
    let mut guest = guest_on(&engine, &profile, &code);
    let mut state = guest.vcpu.save().unwrap();
    // DS lies where no RAM is.
    state.segments[3].base = 0xD000_0000;
    state.registers[3] = 0x10;
    guest.vcpu.restore(&state).unwrap();
    let io = Io::kicking(&*guest.vcpu);
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    assert_eq!(guest.vcpu.save().unwrap().registers[0] & 0xFFFF, 0x1110);
    let written: Vec<u8> = io.take().into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(written[..2], [0x10, 0x11]);
    assert_eq!(written.len(), 5);
}

#[test]
fn a_sleeping_vcpu_wakes_for_a_kick() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    let mut guest = guest_on(&engine, &profile, &[0xFA, 0xF4, 0xEB, 0xFD]);
    let kicker = guest.vcpu.kicker();
    // On a busy host it may not have come to HLT before it is kicked.
    let mut rounds = 0;
    loop {
        let kicker = kicker.clone();
        let runner = std::thread::spawn(move || {
            let stop = guest.vcpu.run(&Io::default());
            (stop, guest)
        });
        std::thread::sleep(Duration::from_millis(300));
        kicker.kick();
        let (stop, ran) = runner.join().unwrap();
        guest = ran;
        assert_eq!(stop, Stop::Kicked);
        let state = guest.vcpu.save().unwrap();
        if (state.rip, state.mp_state) == (CODE + 2, MpState::Halted) {
            break;
        }
        rounds += 1;
        assert!(rounds < 100, "{:#x} {:?}", state.rip, state.mp_state);
    }
    // And the other one, which waits to be started.
    let Some(mut other) = guest_partition(&engine, &profile).vcpu(1).ok() else {
        panic!("no second vCPU");
    };
    assert_eq!(other.save().unwrap().mp_state, MpState::Uninitialized);
    let kicker = other.kicker();
    let runner = std::thread::spawn(move || other.run(&Io::default()));
    std::thread::sleep(Duration::from_millis(20));
    kicker.kick();
    assert_eq!(runner.join().unwrap(), Stop::Kicked);
}

fn guest_partition(engine: &Tested, profile: &CpuProfile) -> Arc<dyn Partition> {
    guest_on(engine, profile, &[]).partition
}

#[test]
fn stores_reach_the_dirty_log() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    // mov [0x5000], al; out 0x80, al; mov [0x7000], al; out 0x80, al
    let code = [0xA2, 0x00, 0x50, 0xE6, 0x80, 0xA2, 0x00, 0x70, 0xE6, 0x80];
    let mut guest = guest_on(&engine, &profile, &code);
    let io = Io::kicking(&*guest.vcpu);
    let (_, table) = guest.ram.tables().next().unwrap();
    table.start_dirty_log();
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    guest.ram.write(0x9000, &[1]).unwrap();
    let dirty = table.take_dirty();
    assert_eq!(dirty[0] & (1 << 5 | 1 << 7 | 1 << 9), 1 << 5 | 1 << 9);
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    let dirty = table.take_dirty();
    assert_eq!(dirty[0] & (1 << 5 | 1 << 7 | 1 << 9), 1 << 7);
    table.stop_dirty_log();
}

#[test]
fn doorbells_ring_instead_of_calling() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    // mov al, 7; out 0x90, al; mov al, 8; out 0x90, al
    let code = [0xB0, 0x07, 0xE6, 0x90, 0xB0, 0x08, 0xE6, 0x90];
    let mut guest = guest_on(&engine, &profile, &code);
    let doorbell = Doorbell {
        address: DoorbellAddress::Port(0x90),
        len: 1,
        value: Some(7),
    };
    let event = guest.partition.doorbell(doorbell).unwrap();
    let io = Io::kicking(&*guest.vcpu);
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    assert_eq!(event.read().unwrap(), 1);
    assert_eq!(io.take(), [(0x90, vec![8])]);
    guest.partition.remove_doorbell(doorbell);
    let mut state = guest.vcpu.save().unwrap();
    state.rip = CODE;
    guest.vcpu.restore(&state).unwrap();
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    assert_eq!(io.take(), [(0x90, vec![7])]);
}

/// Vectors requested at the local APIC.
fn requested(state: &CpuState) -> Vec<u32> {
    (0..256)
        .filter(|vector| {
            let register = state.lapic.registers[0x20 + *vector as usize / 32];
            register >> (vector % 32) & 1 != 0
        })
        .collect()
}

#[test]
fn messages_and_events_reach_the_local_apic() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    let mut guest = guest_on(&engine, &profile, &[0xF4]);
    let mut state = guest.vcpu.save().unwrap();
    // Software-enabled.
    state.lapic.registers[0xF] = 0x1FF;
    guest.vcpu.restore(&state).unwrap();
    let msi = |vector| Msi {
        address: 0xFEE0_0000,
        data: vector,
    };
    guest.partition.msi(msi(0x41));
    guest.partition.msi(Msi {
        address: 0x1000,
        data: 0x42,
    });
    let event = guest
        .partition
        .irqfd(InterruptRoute::Msi(msi(0x51)))
        .unwrap();
    event.write(1).unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let state = guest.vcpu.save().unwrap();
        if requested(&state) == [0x41, 0x51] {
            break;
        }
        assert!(Instant::now() < until, "{:x?}", requested(&state));
        std::thread::sleep(Duration::from_millis(1));
    }
    // Line events of every kind can be had, in any order.
    for gsi in [5, 11, 2, 99] {
        let before = guest.partition.irqfd(InterruptRoute::Line(gsi)).unwrap();
        guest.partition.resample(gsi).unwrap();
        let after = guest.partition.irqfd(InterruptRoute::Line(gsi)).unwrap();
        before.write(1).unwrap();
        after.write(1).unwrap();
        guest.partition.set_line(gsi, true);
        guest.partition.set_line(gsi, false);
    }
}

#[test]
fn a_vcpu_moves_between_engines() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    // add bx, 1; out 0x80, al; jmp back
    let code = [0x83, 0xC3, 0x01, 0xE6, 0x80, 0xEB, 0xF9];
    let mut guest = guest_on(&engine, &profile, &code);
    let io = Io::kicking(&*guest.vcpu);
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    let (cpu, chips) = (guest.vcpu.save().unwrap(), guest.partition.save().unwrap());

    let software = SoftwareEngine::new();
    let mut other = guest_on(&software, &profile, &code);
    other.partition.restore(&chips).unwrap();
    other.vcpu.restore(&cpu).unwrap();
    let io = Io::kicking(&*other.vcpu);
    assert_eq!(other.vcpu.run(&io), Stop::Kicked);
    let (cpu, chips) = (other.vcpu.save().unwrap(), other.partition.save().unwrap());
    assert_eq!(cpu.registers[3], 2);

    guest.partition.restore(&chips).unwrap();
    guest.vcpu.restore(&cpu).unwrap();
    let io = Io::kicking(&*guest.vcpu);
    assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
    assert_eq!(guest.vcpu.save().unwrap().registers[3], 3);
    assert!(guest.partition.clock_ns() >= chips.clock_ns);
}

/// What may differ after a state went into KVM and came out again.
fn comparable(mut state: CpuState) -> CpuState {
    state.lapic.timer_expires_at = 0;
    state
}

#[test]
fn saved_states_come_back() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    let mut guest = guest_on(&engine, &profile, &[0xF4]);
    let mut state = guest.vcpu.save().unwrap();
    for (n, register) in state.registers.iter_mut().enumerate() {
        *register = 0x1111_1111_1111_1111 * n as u64;
    }
    state.dr = [1, 2, 3, 4];
    state.cr2 = 0x1234_5000;
    // Everything enabled, in a way that the legacy region shows.
    state.xcr0 = profile.xcr0;
    state.xsave[512] = 0b111;
    state.xsave[160..416].fill(0x5A);
    state.xsave[576..832].fill(0xA5);
    for msr in &mut state.msrs {
        match msr.index {
            0xC000_0082 => msr.value = 0xFFFF_8000_0000_1000,
            0x3B => msr.value = 0x1_0000,
            _ => {}
        }
    }
    state.lapic.registers[0xF] = 0x1FF;
    state.lapic.registers[0x21] = 1 << 5;
    state.events.nmi_blocked = true;
    guest.vcpu.restore(&state).unwrap();
    let back = guest.vcpu.save().unwrap();
    state.lapic.registers[9] = back.lapic.registers[9];
    assert_eq!(comparable(back.clone()), comparable(state));
    guest.vcpu.restore(&back).unwrap();
    assert_eq!(comparable(guest.vcpu.save().unwrap()), comparable(back));

    guest.vcpu.reset();
    let reset = guest.vcpu.save().unwrap();
    assert_eq!((reset.rip, reset.segments[1].base), (0xFFF0, 0xFFFF_0000));
    assert_eq!(reset.mp_state, MpState::Running);

    let chips = guest.partition.save().unwrap();
    guest.partition.restore(&chips).unwrap();
    let again = guest.partition.save().unwrap();
    assert_eq!((again.pics, again.ioapic), (chips.pics, chips.ioapic));
    guest.partition.reset();
}

#[test]
fn damaged_states_are_refused() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    let mut guest = guest_on(&engine, &profile, &[0xF4]);
    let good = guest.vcpu.save().unwrap();
    let damages: [fn(&mut CpuState); 8] = [
        |s| s.version = 99,
        |s| s.xcr0 = 0,
        |s| s.xsave.clear(),
        |s| s.lapic.registers.clear(),
        |s| s.lapic.registers[3] = 0x15,
        |s| s.events.exception = Some((32, None)),
        |s| s.cr0 = 1 << 31,
        |s| {
            s.msrs.push(croft_engine::state::MsrState {
                index: 0x9999,
                value: 1,
            })
        },
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        let mut bad = good.clone();
        damage(&mut bad);
        let refused = guest.vcpu.restore(&bad);
        assert!(
            matches!(refused, Err(EngineError::State(_))),
            "{n}: {refused:?}"
        );
    }
    guest.vcpu.restore(&good).unwrap();
    let mut chips = guest.partition.save().unwrap();
    chips.ioapic.entries.pop();
    assert!(guest.partition.restore(&chips).is_err());
    chips.tsc_khz += 1;
    assert!(matches!(
        guest.partition.restore(&chips),
        Err(EngineError::State(StateError::Damaged(_)))
    ));
}

#[test]
fn time_stands_still_while_paused() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    // rdtsc; mov ebx, eax; out 0x80, al
    let code = [0x0F, 0x31, 0x66, 0x89, 0xC3, 0xE6, 0x80];
    let mut guest = guest_on(&engine, &profile, &code);
    let io = Io::kicking(&*guest.vcpu);
    let read = |guest: &mut Guest| {
        let mut state = guest.vcpu.save().unwrap();
        state.rip = CODE;
        guest.vcpu.restore(&state).unwrap();
        assert_eq!(guest.vcpu.run(&io), Stop::Kicked);
        let state = guest.vcpu.save().unwrap();
        state.registers[2] << 32 | state.registers[3] & 0xFFFF_FFFF
    };
    let began = Instant::now();
    let first = read(&mut guest);
    guest.partition.pause_clock();
    let at = guest.partition.clock_ns();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(guest.partition.clock_ns(), at);
    guest.partition.resume_clock();
    let second = read(&mut guest);
    let took = began.elapsed();
    let ticks = u64::from(profile.tsc_khz);
    assert!(second > first, "{first} {second}");
    if first > 10_000 * ticks && common::is_emulating(&engine.probe()) {
        println!("partly skipped: RDTSC shows the host's TSC on this KVM");
        return;
    }
    // Of all that time a second did not count.
    let gone = (second - first) / ticks;
    assert!(
        u128::from(gone) + 100 < took.as_millis(),
        "{gone} ms of {took:?}"
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let Some((engine, profile)) = engine() else {
        return;
    };
    let ram = GuestRam::new(&[Range {
        start: 0,
        len: 0x1000,
    }])
    .unwrap();
    let config = |vcpus| PartitionConfig {
        ram: ram.clone(),
        profile: profile.clone(),
        vcpus,
    };
    for vcpus in [0, 100_000] {
        assert!(matches!(
            engine.partition(config(vcpus)),
            Err(EngineError::TooManyVcpus { .. })
        ));
    }
    let partition = engine.partition(config(1)).unwrap();
    assert!(partition.vcpu(1).is_err());
    let _first = partition.vcpu(0).unwrap();
    assert!(partition.vcpu(0).is_err());
    let refused = engine.profile(CpuModel::SoftwareFast, Topology { vcpus: 1 });
    assert!(refused.is_err());
}
