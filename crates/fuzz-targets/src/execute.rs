//! Random code in a random state on the software engine.
//!
//! Promised: it ends by one of the ways a run may end, or by a kick; nothing
//! behind guest RAM is touched; devices are asked for well-formed accesses
//! outside RAM only; the state it leaves is one that the engine takes back.

use std::time::Duration;

use croft_engine::state::{MpState, MsrState, SegmentState, check_version};
use croft_engine::{
    CpuIo, CpuModel, CpuState, DebugControl, Engine, Partition, PartitionConfig, Stop, Topology,
    Vcpu,
};
use croft_engine_software::SoftwareEngine;

use crate::fence::Fenced;
use crate::input::Input;
use crate::layout::{self, CODE, GDT, IDT, PAE_PDPT, PD_32, PML4, STACK, TASK, TSS, Width};
use crate::watchdog::Watchdog;

/// Longest one input may run freely.
const FREE_RUN: Duration = Duration::from_millis(2);
/// Most instructions of one input that is stepped through.
const STEPS: usize = 64;
/// Longest one stepped input may sleep in HLT.
const STEPPED: Duration = Duration::from_millis(5);

const RAX: usize = 0;
const RCX: usize = 1;
const RSP: usize = 4;
const CS: usize = 1;
const EFER: u32 = 0xC000_0080;

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;

/// Operands that go wrong more often than others.
const VALUES: [u64; 16] = [
    0,
    1,
    0x8000,
    CODE,
    STACK - 8,
    0x1_FFFC,
    0x4_3FFE,
    0x7FFF_FFFF,
    0xFEC0_0010,
    0xFEE0_0300,
    0xFFFF_FFFF,
    0x0000_7FFF_FFFF_FFFC,
    0xFFFF_8000_0000_0000,
    0xFFFF_FFFF_8001_8000,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Answers with something, after checking the question.
struct Outside;

impl Outside {
    fn port(len: usize) {
        assert!(matches!(len, 1 | 2 | 4), "a port access of {len} bytes");
    }

    fn memory(address: u64, len: usize) {
        assert!(matches!(len, 1 | 2 | 4 | 8), "an access of {len} bytes");
        let end = address.checked_add(len as u64).expect("it ends");
        for range in layout::RANGES {
            assert!(
                end <= range.start || address >= range.start + range.len,
                "{address:#x} (+{len}) is RAM"
            );
        }
    }

    fn fill(data: &mut [u8], address: u64) {
        for (byte, value) in data.iter_mut().zip(address..) {
            *byte = (value as u8).wrapping_mul(0x9D);
        }
    }
}

impl CpuIo for Outside {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        Self::port(data.len());
        Self::fill(data, port.into());
    }

    fn port_write(&self, _: u16, data: &[u8]) {
        Self::port(data.len());
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        Self::memory(address, data.len());
        Self::fill(data, address);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        Self::memory(address, data.len());
    }
}

/// Modes by name; the input's first byte picks one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Real,
    Protected16,
    Protected32,
    Paged32,
    Pae,
    Compatibility,
    Long,
}

impl Mode {
    const ALL: [Mode; 10] = [
        Mode::Real,
        Mode::Protected16,
        Mode::Protected32,
        Mode::Paged32,
        Mode::Pae,
        Mode::Compatibility,
        Mode::Long,
        Mode::Long,
        Mode::Long,
        Mode::Long,
    ];

    fn paged(self) -> bool {
        !matches!(self, Mode::Real | Mode::Protected16 | Mode::Protected32)
    }

    fn long(self) -> bool {
        matches!(self, Mode::Compatibility | Mode::Long)
    }

    fn width(self) -> Width {
        match self {
            Mode::Real => Width::Bits16,
            mode if mode.long() => Width::Bits64,
            _ => Width::Bits32,
        }
    }
}

/// Runs the code and state that `data` stands for.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.pick(&Mode::ALL);
    let switches = input.u8();
    let model = match switches & 1 {
        0 => CpuModel::SoftwareFast,
        _ => CpuModel::PortableV1,
    };
    let engine = SoftwareEngine::new();
    let topology = Topology { vcpus: 1 };
    let Ok(profile) = engine.profile(model, topology) else {
        return;
    };

    let fenced = Fenced::new(&layout::RANGES);
    let ram = &fenced.ram;
    let partition = engine
        .partition(PartitionConfig {
            ram: ram.clone(),
            profile,
            vcpus: 1,
        })
        .expect("a partition with one vCPU");
    let mut vcpu = partition.vcpu(0).expect("its vCPU");

    layout::write(ram, mode.width(), &mut input);
    if enter(&mut *vcpu, mode, switches, &mut input).is_none() {
        return;
    }
    layout::put(ram, CODE, input.rest());

    if switches & 2 != 0 {
        step(&mut *vcpu);
    } else {
        let _watchdog = Watchdog::new(vcpu.kicker(), FREE_RUN);
        check(&vcpu.run(&Outside));
    }
    survives_saving(&*partition, &mut *vcpu);
}

/// Brings the vCPU to the input's state, or as near as it lets itself be
/// brought. `None` where the input spoiled PAE's page-directory pointers, with
/// which no processor enters that mode.
fn enter(vcpu: &mut dyn Vcpu, mode: Mode, switches: u8, input: &mut Input<'_>) -> Option<()> {
    let reset = vcpu.save().expect("a state");
    let user = switches & 4 != 0 && mode != Mode::Real;
    let plain = plain_state(reset, mode, user);
    let mut wild = plain.clone();
    for index in 0..16 {
        let choice = input.u8();
        wild.registers[index] = match choice {
            0..=15 => VALUES[usize::from(choice)],
            16..=79 => input.u64(),
            80..=143 => u64::from(choice),
            144..=199 => CODE + 0x8000 + u64::from(choice),
            _ => wild.registers[index],
        };
    }
    wild.cr0 ^= input.u64() & 0x6005_002E;
    wild.cr4 ^= input.u64() & 0x77_0F9F;
    wild.rflags ^= u64::from(input.u32()) & 0x24_7FD5;
    wild.dr7 = input.u64() & 0xFFFF_03FF;
    wild.dr = [CODE + 3, STACK - 8, 0x8000, input.u64()];
    wild.cr8 = u64::from(input.u8() & 15);
    let vectors = input.bytes(32);
    if let Some(room) = wild.xsave.get_mut(32..416) {
        for (byte, value) in room.iter_mut().zip(vectors.iter().cycle()) {
            *byte = *value;
        }
    }
    if let Some(room) = wild.xsave.get_mut(512..520) {
        room.copy_from_slice(&7u64.to_le_bytes());
    }
    if vcpu.restore(&wild).is_ok() {
        return Some(());
    }
    wild.cr0 = plain.cr0;
    wild.cr4 = plain.cr4;
    if vcpu.restore(&wild).is_ok() {
        return Some(());
    }
    match vcpu.restore(&plain) {
        Ok(()) => Some(()),
        Err(error) if mode == Mode::Pae => {
            assert!(error.to_string().contains("PAE"), "{error}");
            None
        }
        Err(error) => panic!("a plain state was refused: {error}"),
    }
}

fn plain_state(mut state: CpuState, mode: Mode, user: bool) -> CpuState {
    let flat = |selector: u16, attributes: u32| SegmentState {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes,
    };
    state.rflags = 2;
    state.registers[RAX] = 1;
    state.registers[RCX] = 4;
    state.registers[RSP] = STACK;
    state.idtr.limit = 0xFFF;
    state.gdtr.limit = 0x7F;
    state.gdtr.base = GDT;
    if mode == Mode::Real {
        state.rip = 0;
        state.idtr.base = 0;
        state.segments[CS].selector = (CODE >> 4) as u16;
        state.segments[CS].base = CODE;
        state.registers[RSP] = 0x8000;
        return state;
    }
    state.rip = CODE;
    state.idtr.base = IDT;
    state.cr0 = CR0_PE | 0x10;
    let dpl = if user { 0x60 } else { 0 };
    let data = if user {
        layout::USER_DATA
    } else {
        layout::DATA
    };
    state.segments = [flat(data, 0xC093 | dpl); 6];
    let (selector, attributes) = match (mode, user) {
        (Mode::Long, false) => (layout::CODE_64, 0xA09B),
        (Mode::Long, true) => (layout::USER_64, 0xA09B),
        (Mode::Protected16, false) => (layout::CODE_16, 0x009B),
        (_, false) => (layout::CODE_32, 0xC09B),
        (_, true) => (layout::USER_32, 0xC09B),
    };
    state.segments[CS] = flat(selector, attributes | dpl);
    if mode == Mode::Protected16 && !user {
        state.segments[CS].limit = 0xF_FFFF;
    }
    state.tr = SegmentState {
        selector: TASK,
        base: TSS,
        limit: 0xFFF,
        attributes: 0x8B,
    };
    if mode.paged() {
        state.cr0 |= CR0_PG;
    }
    state.cr3 = match mode {
        Mode::Paged32 => PD_32,
        Mode::Pae => PAE_PDPT,
        _ => PML4,
    };
    if mode.paged() && mode != Mode::Paged32 {
        state.cr4 |= CR4_PAE;
    }
    // OSFXSR, OSXMMEXCPT.
    state.cr4 |= 0x600;
    let efer = if mode.long() { 0xD01 } else { 0x801 };
    state.msrs.retain(|msr| msr.index != EFER);
    state.msrs.push(MsrState {
        index: EFER,
        value: efer,
    });
    state.msrs.sort_by_key(|msr| msr.index);
    state
}

fn step(vcpu: &mut dyn Vcpu) {
    let control = DebugControl {
        single_step: true,
        ..DebugControl::default()
    };
    vcpu.set_debug(&control).expect("single step");
    let _watchdog = Watchdog::new(vcpu.kicker(), STEPPED);
    for _ in 0..STEPS {
        let stop = vcpu.run(&Outside);
        check(&stop);
        if !matches!(stop, Stop::Debug(_)) {
            break;
        }
    }
}

fn check(stop: &Stop) {
    if let Stop::Failed(text) = stop {
        panic!("the guest made the engine fail: {text}");
    }
}

/// What the engine saves it must take back, and mean the same by it.
fn survives_saving(partition: &dyn Partition, vcpu: &mut dyn Vcpu) {
    partition.pause_clock();
    let shared = partition.save().expect("a partition's state");
    let first = vcpu.save().expect("a vCPU's state");
    check_version(first.version).expect("its version");
    assert_eq!(first.rflags & 2, 2, "RFLAGS bit 1 is always set");
    assert!(matches!(
        first.mp_state,
        MpState::Running | MpState::Halted | MpState::WaitForStartup
    ));
    partition.restore(&shared).expect("its own state");
    if let Err(error) = vcpu.restore(&first) {
        // The guest may have changed PAE pointers in memory since it loaded
        // them; a processor keeps the loaded ones.
        assert!(error.to_string().contains("PAE"), "{error}\n{first:x?}");
        return;
    }
    let mut second = vcpu.save().expect("a vCPU's state again");
    // Time goes on, and so do timers.
    second.msrs.clone_from(&first.msrs);
    second.lapic.clone_from(&first.lapic);
    assert_eq!(first, second, "saved, restored and saved");
}
