//! The guest: cases one after the other, without coming back in between.
//!
//! ```text
//!        ┌────────────── any exception ───────────────┐
//!        ▼                                            │
//!  next case? ──► load its state, IRETQ ──► its code ─┘
//!        │ none left
//!        └──► OUT: the host puts the next batch in place
//! ```
//!
//! A [`Program`](super::program::Program) stands where the loop is, and runs
//! once.
//!
//! What a case leaves behind is of no interest here: the engine compares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use croft_engine::state::{MpState, MsrState, SegmentState, TableState};
use croft_engine::{
    CpuIo, CpuModel, CpuProfile, CpuState, Engine, EngineError, Kicker, Partition, PartitionConfig,
    Stop, Topology, Vcpu,
};
use croft_memory::{GuestRam, MemoryError, Range};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, al, cl, eax, edx, qword_ptr, r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp,
    rbx, rcx, rdi, rdx, rsi, rsp,
};

use super::draw::Case;
use super::layout::{
    CODE, CODE_AT, CODE_PAGES, DATA, DATA_AT, INT3, KERNEL, KINDS, MMIO, PAGE, Page, RAM, SPARE_RAM,
};
use crate::layout::GS_BASE;
use crate::machine::MachineError;

const TABLES: u64 = 0x1000;
const GDT: u64 = 0x8000;
const TSS: u64 = 0x8800;
const IDT: u64 = 0x9000;
const ENTRY: u64 = 0xA000;
const STACK: u64 = 0xF000;
/// Has the next record's address and the last one's end.
const CURSOR: u64 = 0xF800;
const RECORDS: u64 = 0x10000;

/// Guest-physical address of the spare page's table entry.
pub const SPARE_ENTRY: u64 = TABLES + 5 * PAGE + 8 * CODE_PAGES;

/// Bytes of a case's record: RAX … R15, RIP, CS, RFLAGS, RSP, SS, and from
/// [`XSAVE`] on its vector state.
const RECORD: u64 = 1280;
const FRAME: u64 = 128;
const XSAVE: u64 = 192;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

/// CR0: PG, AM, WP, NE, ET, MP, PE.
const CR0: u64 = 0x8005_0033;
/// CR4: SMAP, OSXSAVE, FSGSBASE, OSXMMEXCPT, OSFXSR, PGE, PAE.
const CR4: u64 = 1 << 21 | 1 << 18 | 1 << 16 | 1 << 10 | 1 << 9 | 1 << 7 | 1 << 5;
/// EFER: NXE, LMA, LME, SCE.
const EFER: u64 = 0xD01;
const MSR_EFER: u32 = 0xC000_0080;
const MSR_KERNEL_GS_BASE: u32 = 0xC000_0102;
const SYSTEM_CS: u64 = 0x10;
const SYSTEM_SS: u64 = 0x18;
const USER_SS: u64 = 0x23;
const USER_CS: u64 = 0x2B;
/// A case is over long before, on a busy host too, unless it runs in circles.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The machine's bus: a port that ends a batch, and memory that is none.
struct Bus {
    done: AtomicBool,
    kicker: Kicker,
}

impl CpuIo for Bus {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn port_write(&self, _port: u16, _data: &[u8]) {
        self.done.store(true, Ordering::Relaxed);
        self.kicker.kick();
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = (address as u8).wrapping_add(n as u8);
        }
    }

    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
}

/// A case that ran in circles.
#[derive(Clone, Copy, Debug)]
pub struct Circle {
    /// Its number in the batch.
    pub case: usize,
    /// Where it was when it was ended.
    pub rip: u64,
}

/// A guest that runs batches of cases.
pub struct Guest {
    ram: GuestRam,
    vcpu: Box<dyn Vcpu>,
    bus: Bus,
    profile: CpuProfile,
    /// The state before the first batch.
    initial: CpuState,
    _partition: Arc<dyn Partition>,
}

fn put(ram: &GuestRam, address: u64, value: u64) -> Result<(), MemoryError> {
    ram.write(address, &value.to_le_bytes())
}

fn segment(selector: u64, attributes: u32) -> SegmentState {
    SegmentState {
        selector: selector as u16,
        base: 0,
        limit: 0xFFFF_FFFF,
        attributes,
    }
}

impl Guest {
    /// A guest of `engine`, before its first batch.
    ///
    /// # Errors
    /// The engine refuses, or there is no memory.
    pub fn new(engine: &dyn Engine, model: CpuModel) -> Result<Self, MachineError> {
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
        write_tables(&ram)?;
        let program = program().map_err(|error| EngineError::Unsupported(error.to_string()))?;
        ram.write(ENTRY, &program)?;
        let mut state = vcpu.save()?;
        let data = segment(SYSTEM_SS, 0xC093);
        state.segments = [data, segment(SYSTEM_CS, 0xA09B), data, data, data, data];
        state.segments[4].base = DATA + 0x1100;
        state.segments[5].base = GS_BASE;
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
            limit: 0xFFF,
        };
        (state.cr0, state.cr3, state.cr4, state.xcr0) = (CR0, TABLES, CR4, 7);
        for (index, value) in [(MSR_EFER, EFER), (MSR_KERNEL_GS_BASE, DATA + 0x1340)] {
            state.msrs.retain(|msr| msr.index != index);
            state.msrs.push(MsrState { index, value });
        }
        state.msrs.sort_by_key(|msr| msr.index);
        state.mp_state = MpState::Running;
        state.rip = KERNEL + ENTRY;
        state.rflags = 2;
        state.registers[4] = KERNEL + STACK;
        vcpu.restore(&state)?;
        let bus = Bus {
            done: AtomicBool::new(false),
            kicker: vcpu.kicker(),
        };
        Ok(Guest {
            ram,
            vcpu,
            bus,
            profile,
            initial: state,
            _partition: partition,
        })
    }

    /// What the guest's processor announces.
    pub fn profile(&self) -> &CpuProfile {
        &self.profile
    }

    /// Runs a batch, with this data to begin with. The result lists the cases
    /// that ran in circles: they were ended from outside.
    ///
    /// # Errors
    /// The engine ended the run.
    pub fn run(&mut self, cases: &[Case], data: &[u8]) -> Result<Vec<Circle>, MachineError> {
        self.ram.write(DATA_AT, data)?;
        // What jumps anywhere finds no code of another batch.
        self.ram
            .write(CODE_AT, &[INT3; (CODE_PAGES * PAGE) as usize])?;
        let mut records = Vec::with_capacity(cases.len() * RECORD as usize);
        for case in cases {
            self.ram.write(CODE_AT + (case.rip - CODE), &case.code)?;
            record(case, &mut records);
        }
        self.ram.write(RECORDS, &records)?;
        put(&self.ram, CURSOR, KERNEL + RECORDS)?;
        let end = KERNEL + RECORDS + records.len() as u64;
        put(&self.ram, CURSOR + 8, end)?;
        let mut circles = Vec::new();
        loop {
            let text = match self.go_watched() {
                Stop::Kicked if self.is_done() => return Ok(circles),
                Stop::Kicked => {
                    let case = started(&self.ram)?.saturating_sub(1);
                    let rip = self.vcpu.save()?.rip;
                    circles.push(Circle { case, rip });
                    if circles.len() <= cases.len() {
                        // On to the next case.
                        self.vcpu.restore(&self.initial)?;
                        continue;
                    }
                    format!("the batch does not go on: {circles:x?}")
                }
                Stop::Failed(text) => text,
                other => format!("the batch did not come to its end: {other:x?}"),
            };
            return Err(EngineError::Unsupported(text).into());
        }
    }

    /// As [`Guest::go`], but a case that takes too long is ended.
    fn go_watched(&mut self) -> Stop {
        let over = AtomicBool::new(false);
        let (kicker, ram) = (self.kicker(), self.ram.clone());
        thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let (mut case, mut since) = (None, Instant::now());
                while !over.load(Ordering::Acquire) {
                    thread::park_timeout(LOOK);
                    let now = started(&ram).ok();
                    if now != case {
                        (case, since) = (now, Instant::now());
                    } else if since.elapsed() >= PATIENCE {
                        kicker.kick();
                        return;
                    }
                }
            });
            let stop = self.go();
            over.store(true, Ordering::Release);
            watch.thread().unpark();
            stop
        })
    }

    /// Where the first instruction is.
    pub fn entry(&self) -> u64 {
        KERNEL + ENTRY
    }

    /// Puts a program there.
    ///
    /// # Errors
    /// It is too long.
    pub fn put_program(&self, code: &[u8]) -> Result<(), MachineError> {
        Ok(self.ram.write(ENTRY, code)?)
    }

    /// Runs, until an OUT or somebody's kick.
    pub fn go(&mut self) -> Stop {
        self.bus.done.store(false, Ordering::Relaxed);
        self.vcpu.run(&self.bus)
    }

    /// The last run came to an OUT.
    pub fn is_done(&self) -> bool {
        self.bus.done.load(Ordering::Relaxed)
    }

    /// Ends a run.
    pub fn kicker(&self) -> Kicker {
        self.vcpu.kicker()
    }
}

/// Cases of the batch that were started.
fn started(ram: &GuestRam) -> Result<usize, MemoryError> {
    let mut bytes = [0; 8];
    ram.read(CURSOR, &mut bytes)?;
    let behind = u64::from_le_bytes(bytes).wrapping_sub(KERNEL + RECORDS);
    Ok((behind / RECORD) as usize)
}

fn record(case: &Case, out: &mut Vec<u8>) {
    let at = out.len();
    let (cs, ss) = if case.user {
        (USER_CS, USER_SS)
    } else {
        (SYSTEM_CS, SYSTEM_SS)
    };
    let frame = [case.rip, cs, case.rflags, case.regs[4], ss];
    for word in case.regs.iter().chain(&frame) {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.resize(at + XSAVE as usize, 0);
    out.extend_from_slice(&case.xsave.0);
    out.resize(at + RECORD as usize, 0);
}

/// What every exception leads to.
fn program() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut next, mut none) = (a.create_label(), a.create_label());
    a.set_label(&mut next)?;
    a.mov(rbx, KERNEL + CURSOR)?;
    a.mov(rsi, qword_ptr(rbx))?;
    a.cmp(rsi, qword_ptr(rbx + 8))?;
    a.jae(none)?;
    a.lea(rax, qword_ptr(rsi + RECORD as i32))?;
    a.mov(qword_ptr(rbx), rax)?;
    a.mov(rax, GS_BASE)?;
    a.wrgsbase(rax)?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xrstor64(iced_x86::code_asm::ptr(rsi + XSAVE as i32))?;
    a.mov(rsp, KERNEL + STACK)?;
    // SS, RSP, RFLAGS, CS, RIP.
    for n in [4, 3, 2, 1, 0] {
        a.push(qword_ptr(rsi + (FRAME as i32 + 8 * n)))?;
    }
    let registers = [
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
    ];
    for (n, register) in registers.into_iter().enumerate() {
        if register != rsp && register != rsi {
            a.mov(register, qword_ptr(rsi + 8 * n as i32))?;
        }
    }
    a.mov(rsi, qword_ptr(rsi + 48))?;
    a.iretq()?;
    a.set_label(&mut none)?;
    a.xor(cl, cl)?;
    a.out(0x10, al)?;
    a.jmp(next)?;
    a.assemble(KERNEL + ENTRY)
}

/// Page tables, GDT, TSS and IDT.
fn write_tables(ram: &GuestRam) -> Result<(), MemoryError> {
    let table = |n: u64| TABLES + PAGE * n;
    let all = PRESENT | WRITABLE | USER;
    put(ram, table(0), table(1) | all)?;
    put(ram, table(0) + 8 * 256, table(2) | PRESENT | WRITABLE)?;
    put(ram, table(1), table(3) | all)?;
    put(ram, table(2), table(4) | PRESENT | WRITABLE)?;
    put(ram, table(4), PRESENT | WRITABLE | LARGE | GLOBAL)?;
    for (area, leaf) in [(CODE, table(5)), (DATA, table(6))] {
        put(ram, table(3) + 8 * (area >> 21), leaf | all)?;
    }
    for n in 0..CODE_PAGES {
        put(ram, table(5) + 8 * n, (CODE_AT + n * PAGE) | PRESENT | USER)?;
    }
    put(ram, SPARE_ENTRY, SPARE_RAM | PRESENT | WRITABLE)?;
    put(ram, SPARE_RAM + PAGE, 1)?;
    for (n, kind) in KINDS.iter().enumerate() {
        let entry = match kind {
            Page::Absent => continue,
            Page::Writable(place) => (DATA_AT + place * PAGE) | all,
            Page::ReadOnly(place) => (DATA_AT + place * PAGE) | PRESENT | USER,
            Page::Supervisor(place) => (DATA_AT + place * PAGE) | PRESENT | WRITABLE,
            Page::Mmio => MMIO | all,
        };
        put(ram, table(6) + 8 * n as u64, entry | NO_EXECUTE)?;
    }
    for (selector, descriptor) in [
        (SYSTEM_CS, 0x00AF_9B00_0000_FFFFu64),
        (SYSTEM_SS, 0x00CF_9300_0000_FFFF),
        (USER_SS & !3, 0x00CF_F300_0000_FFFF),
        (USER_CS & !3, 0x00AF_FB00_0000_FFFF),
    ] {
        put(ram, GDT + selector, descriptor)?;
    }
    // RSP0 and IST1.
    put(ram, TSS + 4, KERNEL + STACK)?;
    put(ram, TSS + 0x24, KERNEL + STACK)?;
    ram.write(TSS + 0x66, &[0x68, 0])?;
    let handler = KERNEL + ENTRY;
    for vector in 0..32 {
        // Interrupt gates on IST1, open to INT3.
        let low = handler & 0xFFFF
            | SYSTEM_CS << 16
            | 1 << 32
            | (0x8E | 3 << 5) << 40
            | (handler >> 16 & 0xFFFF) << 48;
        put(ram, IDT + 16 * vector, low)?;
        put(ram, IDT + 16 * vector + 8, handler >> 32)?;
    }
    Ok(())
}
