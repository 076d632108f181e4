//! The guest side: one instruction on an engine, through the seam.
//!
//! The guest is in long mode with two worlds: the test's pages
//! ([`crate::layout`]) for CPL 3, and a supervisor's 2 MiB page with tables
//! and exception entries. Each entry is an `out` to the port of its vector;
//! the callback notes the vector and kicks the vCPU.
//!
//! ```text
//! guest-physical
//! 0x00_1000  page tables        0x00_8000  GDT, TSS, IDT
//! 0x00_A000  exception entries  0x00_F000  end of the exception stack
//! 0x20_0000  code area's pages  0x20_8000  data area's pages
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use croft_engine::state::{MpState, MsrState, SegmentState, TableState};
use croft_engine::{
    CpuIo, CpuModel, CpuProfile, CpuState, Engine, EngineError, Kicker, Missing, Partition,
    PartitionConfig, Stop, Topology, Vcpu,
};
use croft_memory::{GuestRam, MemoryError, Range};
use thiserror::Error;

use crate::layout::{self, BACKING, CODE, DATA, GS_BASE, KINDS, Page};
use crate::state::{End, Input, Output, Xsave};

/// Supervisor's linear address of guest-physical address 0.
const KERNEL: u64 = 0xFFFF_8000_0000_0000;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x8000;
const TSS: u64 = 0x8800;
const IDT: u64 = 0x9000;
const ENTRIES: u64 = 0xA000;
const STACK: u64 = 0xF000;
const CODE_PAGES: u64 = 0x20_0000;
const DATA_PAGES: u64 = 0x20_8000;
const RAM: u64 = 0x40_0000;
/// Vectors with an entry.
const VECTORS: u64 = 32;
/// Bytes between entries.
const ENTRY: u64 = 16;
/// Supervisor's code segment.
const KERNEL_CS: u16 = 0x10;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// CR0: PG, AM, WP, NE, ET, MP, PE.
const CR0: u64 = 0x8005_0033;
/// CR4: OSXSAVE, FSGSBASE, OSXMMEXCPT, OSFXSR, PAE.
const CR4: u64 = 1 << 18 | 1 << 16 | 1 << 10 | 1 << 9 | 1 << 5;
/// EFER: NXE, LMA, LME, SCE.
const EFER: u64 = 0xD01;
const MSR_EFER: u32 = 0xC000_0080;

/// Why a guest cannot be used.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The model is not to be had here.
    #[error("the engine cannot honour the CPU model: {0:?}")]
    Model(Vec<Missing>),
}

/// Notes the vector and stops the vCPU.
struct Exit {
    vector: AtomicU32,
    kicker: Kicker,
}

/// No exception yet.
const NONE: u32 = u32::MAX;

impl CpuIo for Exit {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn port_write(&self, port: u16, _data: &[u8]) {
        self.vector.store(u32::from(port), Ordering::Relaxed);
        self.kicker.kick();
    }

    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
}

/// A guest that executes one instruction at a time.
pub struct Machine {
    ram: GuestRam,
    vcpu: Box<dyn Vcpu>,
    exit: Exit,
    state: CpuState,
    profile: CpuProfile,
    _partition: Arc<dyn Partition>,
}

fn segment(selector: u16, attributes: u32) -> SegmentState {
    SegmentState {
        selector,
        base: 0,
        limit: 0xFFFF_FFFF,
        attributes,
    }
}

/// A null data segment in 64-bit mode.
fn null(base: u64) -> SegmentState {
    SegmentState {
        selector: 0,
        base,
        limit: 0,
        attributes: 1 << 16,
    }
}

fn put(ram: &GuestRam, address: u64, value: u64) -> Result<(), MemoryError> {
    ram.write(address, &value.to_le_bytes())
}

impl Machine {
    /// A guest of `engine` with CPU model `model`, whose FS base and CS and
    /// SS selectors are the host's.
    pub fn new(
        engine: &dyn Engine,
        model: CpuModel,
        fs_base: u64,
        (cs, ss): (u16, u16),
    ) -> Result<Machine, MachineError> {
        let profile = engine
            .profile(model, Topology { vcpus: 1 })
            .map_err(MachineError::Model)?;
        let ram = GuestRam::new(&[Range { start: 0, len: RAM }])?;
        let partition = engine.partition(PartitionConfig {
            ram: ram.clone(),
            profile: profile.clone(),
            vcpus: 1,
        })?;
        let mut vcpu = partition.vcpu(0)?;
        write_tables(&ram, cs, ss)?;
        let mut state = vcpu.save()?;
        state.segments = [
            null(0),
            segment(cs, 0xA0FB),
            segment(ss, 0xC0F3),
            null(0),
            null(fs_base),
            null(GS_BASE),
        ];
        state.tr = SegmentState {
            selector: 0x40,
            base: KERNEL + TSS,
            limit: 0x67,
            attributes: 0x8B,
        };
        state.gdtr = TableState {
            base: KERNEL + GDT,
            limit: 0x7F,
        };
        state.idtr = TableState {
            base: KERNEL + IDT,
            limit: (VECTORS * 16 - 1) as u16,
        };
        state.cr0 = CR0;
        state.cr3 = TABLES;
        state.cr4 = CR4;
        state.xcr0 = 7;
        state.msrs.retain(|msr| msr.index != MSR_EFER);
        state.msrs.push(MsrState {
            index: MSR_EFER,
            value: EFER,
        });
        state.msrs.sort_by_key(|msr| msr.index);
        state.mp_state = MpState::Running;
        let exit = Exit {
            vector: AtomicU32::new(NONE),
            kicker: vcpu.kicker(),
        };
        Ok(Machine {
            ram,
            vcpu,
            exit,
            state,
            profile,
            _partition: partition,
        })
    }

    /// What the guest's processor announces.
    pub fn profile(&self) -> &CpuProfile {
        &self.profile
    }

    /// Writes to the backing of the code area.
    pub fn write_code(&self, at: usize, bytes: &[u8]) -> Result<(), MachineError> {
        Ok(self.ram.write(CODE_PAGES + at as u64, bytes)?)
    }

    /// Writes to the backing of the data area.
    pub fn write_data(&self, at: usize, bytes: &[u8]) -> Result<(), MachineError> {
        Ok(self.ram.write(DATA_PAGES + at as u64, bytes)?)
    }

    /// The backing of the data area.
    pub fn read_data(&self, out: &mut [u8; BACKING]) -> Result<(), MachineError> {
        Ok(self.ram.read(DATA_PAGES, out)?)
    }

    /// Executes what stands at `input.rip`, until an exception.
    pub fn run(&mut self, input: &Input) -> Result<Output, MachineError> {
        self.state.registers = input.regs;
        self.state.rip = input.rip;
        self.state.rflags = input.rflags;
        self.state.cr2 = 0;
        self.state.xsave.clear();
        self.state.xsave.extend_from_slice(&input.xsave.0);
        self.vcpu.restore(&self.state)?;
        self.exit.vector.store(NONE, Ordering::Relaxed);
        let stop = self.vcpu.run(&self.exit);
        let vector = self.exit.vector.load(Ordering::Relaxed);
        if vector == NONE || stop != Stop::Kicked {
            let text = format!("the guest stopped without an exception: {stop:?}");
            return Err(EngineError::Unsupported(text).into());
        }
        let saved = self.vcpu.save()?;
        self.output(vector as u8, &saved)
    }

    fn output(&self, vector: u8, saved: &CpuState) -> Result<Output, MachineError> {
        // Error code, if any, RIP, CS, RFLAGS, RSP, SS.
        let top = saved.registers[4].wrapping_sub(KERNEL);
        let has_error = STACK.wrapping_sub(top) == 48;
        let word = |n: u64| {
            let mut bytes = [0; 8];
            let at = STACK - 40 + 8 * n;
            self.ram
                .read(at, &mut bytes)
                .map(|()| u64::from_le_bytes(bytes))
        };
        let mut error = [0; 8];
        if has_error {
            self.ram.read(top, &mut error)?;
        }
        let mut regs = saved.registers;
        regs[4] = word(3)?;
        let mut xsave = Xsave::default();
        let len = saved.xsave.len().min(xsave.0.len());
        xsave.0[..len].copy_from_slice(&saved.xsave[..len]);
        Ok(Output {
            regs,
            rip: word(0)?,
            rflags: word(2)?,
            xsave,
            end: End {
                vector,
                error: u32::from_le_bytes([error[0], error[1], error[2], error[3]]),
                cr2: if vector == 14 { saved.cr2 } else { 0 },
            },
            gs_base: saved.segments[5].base,
        })
    }
}

/// Page tables, GDT, TSS, IDT and exception entries.
fn write_tables(ram: &GuestRam, cs: u16, ss: u16) -> Result<(), MemoryError> {
    let table = |n: u64| TABLES + 0x1000 * n;
    let all = PRESENT | WRITABLE | USER;
    put(ram, table(0), table(1) | all)?;
    put(ram, table(0) + 8 * 256, table(2) | PRESENT | WRITABLE)?;
    put(ram, table(1), table(3) | all)?;
    put(ram, table(2), table(4) | PRESENT | WRITABLE)?;
    put(ram, table(4), PRESENT | WRITABLE | LARGE)?;
    let areas = [
        (
            CODE,
            table(5),
            CODE_PAGES,
            PRESENT | USER,
            PRESENT | USER | NO_EXECUTE,
        ),
        (
            DATA,
            table(6),
            DATA_PAGES,
            all | NO_EXECUTE,
            PRESENT | USER | NO_EXECUTE,
        ),
    ];
    for (area, leaf, pages, full, lesser) in areas {
        put(ram, table(3) + 8 * (area >> 21), leaf | all)?;
        for (n, kind) in KINDS.iter().enumerate() {
            let entry = match kind {
                Page::Absent => continue,
                Page::Full(place) => (pages + place * layout::PAGE) | full,
                Page::Lesser(place) => (pages + place * layout::PAGE) | lesser,
            };
            put(ram, leaf + 8 * (n as u64 + (area >> 12 & 0x1FF)), entry)?;
        }
    }
    put(ram, GDT + u64::from(KERNEL_CS), 0x00AF_9B00_0000_FFFF)?;
    put(ram, GDT + u64::from(cs & !7), 0x00AF_FB00_0000_FFFF)?;
    put(ram, GDT + u64::from(ss & !7), 0x00CF_F300_0000_FFFF)?;
    // RSP0 of the TSS.
    put(ram, TSS + 4, KERNEL + STACK)?;
    // No I/O permission bitmap.
    ram.write(TSS + 0x66, &[0x68, 0])?;
    for vector in 0..VECTORS {
        let entry = ENTRIES + ENTRY * vector;
        // out vector, al; jmp $
        ram.write(entry, &[0xE6, vector as u8, 0xEB, 0xFE])?;
        let handler = KERNEL + entry;
        // 64-bit interrupt gate, DPL 3 for int3 as under Linux.
        let dpl = if vector == 3 { 3u64 } else { 0 };
        let low = handler & 0xFFFF
            | u64::from(KERNEL_CS) << 16
            | (0x8E | dpl << 5) << 40
            | (handler >> 16 & 0xFFFF) << 48;
        put(ram, IDT + 16 * vector, low)?;
        put(ram, IDT + 16 * vector + 8, handler >> 32)?;
    }
    Ok(())
}
