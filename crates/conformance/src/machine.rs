//! A machine for one guest, and running it under a guard.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use croft_engine::state::{MsrState, SegmentState, TableState};
use croft_engine::{
    CpuModel, CpuProfile, CpuState, Engine, Partition, PartitionConfig, Stop, Topology, Vcpu,
};
use croft_memory::{GuestRam, Range};
use iced_x86::IcedError;

use crate::layout::*;
use crate::program::{Expected, Program};
use crate::recorder::Recorder;
use crate::{Failure, Outcome, check, handlers, tables};

/// How long a guest may take unless it says otherwise.
const LIMIT: Duration = Duration::from_secs(600);
/// How long a kicked vCPU may take.
const KICK_LIMIT: Duration = Duration::from_secs(120);

/// In what mode vCPU 0 starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode, CS base at [`CODE`].
    Real,
    /// Protected mode, flat 32-bit segments.
    Protected,
    /// Protected mode with 32-bit paging.
    Paged32,
    /// Protected mode with PAE paging.
    Pae,
    /// 64-bit mode.
    Long,
}

/// One record of the guest's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Record {
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub cr2: u64,
    pub dr6: u64,
}

/// A machine for one guest.
pub struct Machine {
    /// The partition.
    pub partition: Arc<dyn Partition>,
    /// Its RAM, [`RAM`] bytes.
    pub ram: GuestRam,
    /// What reached the outside.
    pub io: Arc<Recorder>,
    /// What every vCPU is promised.
    pub profile: CpuProfile,
    /// How long a run may take.
    pub limit: Duration,
    vcpus: Vec<Option<Box<dyn Vcpu>>>,
    expected: Vec<Expected>,
    marks: Vec<u64>,
    mode: Mode,
}

/// A segment as [`CpuState`] has it.
pub fn segment(selector: u16, base: u64, limit: u32, attributes: u32) -> SegmentState {
    SegmentState {
        selector,
        base,
        limit,
        attributes,
    }
}

/// Sets an MSR in a state.
pub fn set_msr(state: &mut CpuState, index: u32, value: u64) {
    match state.msrs.binary_search_by_key(&index, |msr| msr.index) {
        Ok(at) => state.msrs[at].value = value,
        Err(at) => state.msrs.insert(at, MsrState { index, value }),
    }
}

/// An MSR of a state.
pub fn msr(state: &CpuState, index: u32) -> Option<u64> {
    let found = state.msrs.iter().find(|msr| msr.index == index);
    found.map(|msr| msr.value)
}

/// IA32_EFER.
pub const EFER: u32 = 0xC000_0080;

fn enter(state: &mut CpuState, mode: Mode) {
    use creg::*;
    state.rflags = flag::FIXED;
    if mode == Mode::Real {
        state.rip = 0;
        let data = segment(0, 0, 0xFFFF, 0x93);
        state.segments = [data; 6];
        state.segments[1] = segment((CODE >> 4) as u16, CODE, 0xFFFF, 0x9B);
        state.segments[2] = segment(0x4000, 0x40000, 0xFFFF, 0x93);
        state.registers[4] = 0x8000;
        state.cr0 = 0x10;
        return;
    }
    let long = mode == Mode::Long;
    state.rip = CODE;
    state.registers[4] = STACK;
    state.segments = [segment(KERNEL_DS, 0, u32::MAX, 0xC093); 6];
    state.segments[1] = if long {
        segment(KERNEL_CS, 0, u32::MAX, 0xA09B)
    } else {
        segment(KERNEL_CS32, 0, u32::MAX, 0xC09B)
    };
    state.tr = segment(TSS_SELECTOR, TSS, 0x67, 0x8B);
    state.ldtr = segment(0, 0, 0, 0x1_0082);
    state.gdtr = TableState {
        base: GDT,
        limit: GDT_LIMIT,
    };
    state.idtr = TableState {
        base: if long { IDT } else { IDT32 },
        limit: if long { 0xFFF } else { 0x7FF },
    };
    state.cr0 = PE | 0x10 | NE | WP;
    match mode {
        Mode::Real | Mode::Protected => {}
        Mode::Paged32 => {
            state.cr0 |= PG;
            state.cr4 = PSE;
            state.cr3 = PD32;
        }
        Mode::Pae => {
            state.cr0 |= PG;
            state.cr4 = PAE;
            state.cr3 = PAE_PDPT;
            set_msr(state, EFER, 1 << 11);
        }
        Mode::Long => {
            state.cr0 |= PG;
            state.cr4 = PAE | PGE | OSFXSR | OSXMMEXCPT;
            state.cr3 = PML4;
            // SCE, LME, LMA, NXE.
            set_msr(state, EFER, 1 | 1 << 8 | 1 << 10 | 1 << 11);
        }
    }
}

impl Machine {
    /// One vCPU, in 64-bit mode.
    pub fn long(engine: &dyn Engine) -> Result<Self, Failure> {
        Machine::new(engine, Mode::Long, 1)
    }

    /// `vcpus` vCPUs, the first in `mode`, the others as reset leaves them.
    pub fn new(engine: &dyn Engine, mode: Mode, vcpus: u32) -> Result<Self, Failure> {
        let ram = GuestRam::new(&[Range { start: 0, len: RAM }])?;
        tables::write_descriptors(&ram)?;
        tables::write_page_tables(&ram)?;
        handlers::write(&ram)?;
        if mode != Mode::Long {
            tables::write_tss32(&ram)?;
        }
        ram.write(FIXUPS, &u64::MAX.to_le_bytes())?;
        Machine::with_ram(engine, mode, vcpus, ram)
    }

    /// A machine around RAM that has its contents already.
    pub fn with_ram(
        engine: &dyn Engine,
        mode: Mode,
        vcpus: u32,
        ram: GuestRam,
    ) -> Result<Self, Failure> {
        let profile = engine
            .profile(CpuModel::Host, Topology { vcpus })
            .or_else(|_| engine.profile(CpuModel::PortableV1, Topology { vcpus }))
            .map_err(|missing| Failure::Differs(format!("no CPU model: {missing:?}")))?;
        let partition = engine.partition(PartitionConfig {
            ram: ram.clone(),
            profile: profile.clone(),
            vcpus,
        })?;
        let mut taken = Vec::new();
        for index in 0..vcpus {
            taken.push(Some(partition.vcpu(index)?));
        }
        let io = Arc::new(Recorder::default());
        io.set_kickers(taken.iter().flatten().map(|v| v.kicker()).collect());
        let mut machine = Machine {
            partition,
            ram,
            io,
            profile,
            limit: LIMIT,
            vcpus: taken,
            expected: Vec::new(),
            marks: Vec::new(),
            mode,
        };
        machine.state(|state| enter(state, mode))?;
        Ok(machine)
    }

    /// vCPU `index`.
    pub fn vcpu(&mut self, index: usize) -> Result<&mut Box<dyn Vcpu>, Failure> {
        let vcpu = self.vcpus.get_mut(index).and_then(Option::as_mut);
        vcpu.ok_or_else(|| Failure::Differs(format!("vCPU {index} never came back")))
    }

    /// Changes vCPU 0's state.
    pub fn state(&mut self, change: impl FnOnce(&mut CpuState)) -> Outcome {
        let vcpu = self.vcpu(0)?;
        let mut state = vcpu.save()?;
        change(&mut state);
        Ok(vcpu.restore(&state)?)
    }

    /// vCPU 0's state.
    pub fn saved(&mut self) -> Result<CpuState, Failure> {
        Ok(self.vcpu(0)?.save()?)
    }

    /// Writes a 64-bit word of RAM.
    pub fn put(&self, address: u64, value: u64) -> Outcome {
        Ok(self.ram.write(address, &value.to_le_bytes())?)
    }

    /// Reads a 64-bit word of RAM.
    pub fn get(&self, address: u64) -> Result<u64, Failure> {
        let mut bytes = [0; 8];
        self.ram.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A result slot.
    pub fn slot(&self, n: u64) -> Result<u64, Failure> {
        self.get(SLOTS + 8 * n)
    }

    /// Sets a descriptor of the GDT.
    pub fn descriptor(&self, selector: u16, value: u64) -> Outcome {
        self.put(GDT + u64::from(selector & !7), value)
    }

    /// Where the entry of the 4 KiB page at `linear` (below 4 MiB) lies.
    pub fn pte(linear: u64) -> u64 {
        PT + 8 * (linear >> 12)
    }

    /// Maps the page at `linear` (below 4 MiB, long mode).
    pub fn map(&self, linear: u64, entry: u64) -> Outcome {
        // PT and PT_ALIAS are neighbours.
        self.put(Machine::pte(linear), entry)
    }

    /// Assembles the program that vCPU 0 starts with.
    pub fn program(
        &mut self,
        build: impl FnOnce(&mut Program) -> Result<(), IcedError>,
    ) -> Outcome {
        let (bits, ip) = match self.mode {
            Mode::Real => (16, 0),
            Mode::Long => (64, CODE),
            _ => (32, CODE),
        };
        self.code(bits, CODE, ip, build)
    }

    /// Assembles code for `load`, to be executed at offset `ip`.
    pub fn code(
        &mut self,
        bits: u32,
        load: u64,
        ip: u64,
        build: impl FnOnce(&mut Program) -> Result<(), IcedError>,
    ) -> Outcome {
        let mut program = Program::new(bits)?;
        build(&mut program)?;
        let done = program.assemble(ip)?;
        self.ram.write(load, &done.bytes)?;
        let table: Vec<u8> = done
            .fixups
            .iter()
            .flatten()
            .chain(&[u64::MAX])
            .flat_map(|word| word.to_le_bytes())
            .collect();
        check!(table.len() as u64 <= FIXUPS_SIZE, "too many fix-ups");
        if !done.fixups.is_empty() {
            self.ram.write(FIXUPS, &table)?;
        }
        self.expected.extend(done.expected);
        self.marks.extend(done.marks);
        Ok(())
    }

    /// Address of a mark.
    pub fn mark(&self, n: usize) -> u64 {
        self.marks.get(n).copied().unwrap_or_default()
    }

    /// Address in the frame of the `n`th expected exception.
    pub fn due(&self, n: usize) -> u64 {
        let due = self.expected.get(n).and_then(|due| due.rip);
        due.unwrap_or_default()
    }

    /// Starts vCPU 0 at the program again, in the starting mode.
    pub fn rewind(&mut self) -> Outcome {
        let mode = self.mode;
        self.put(LOG, 0)?;
        self.io.rearm();
        self.state(|state| enter(state, mode))
    }

    /// The guest's log.
    pub fn log(&self) -> Result<Vec<Record>, Failure> {
        let count = self.get(LOG)?.min(u64::from(MAX_RECORDS));
        (0..count)
            .map(|n| {
                let at = |word: u64| self.get(RECORDS + n * RECORD + 8 * word);
                Ok(Record {
                    vector: at(0)?,
                    error: at(1)?,
                    rip: at(2)?,
                    cs: at(3)?,
                    rflags: at(4)?,
                    rsp: at(5)?,
                    ss: at(6)?,
                    cr2: at(7)?,
                    dr6: at(8)?,
                })
            })
            .collect()
    }

    /// Runs all vCPUs until the guest is done; the log must have what the
    /// program expects.
    pub fn run(&mut self) -> Outcome {
        let outcome = self.run_to_end();
        match (self.compare(), outcome) {
            (Err(Failure::Differs(log)), Err(Failure::Differs(end))) => {
                Err(Failure::Differs(format!("{end}; {log}")))
            }
            (log, end) => end.and(log),
        }
    }

    /// Runs all vCPUs until the guest is done.
    pub fn run_to_end(&mut self) -> Outcome {
        let stop = self.run_once()?;
        check!(!self.io.is_full(), "the guest's log is full");
        match stop {
            Stop::Kicked if self.io.is_done() => Ok(()),
            Stop::TripleFault(state) => Err(Failure::Differs(format!(
                "triple fault at {:#x}:{:#x}, CR2 {:#x}",
                state.segments[1].selector, state.rip, state.cr2
            ))),
            stop => Err(Failure::Differs(format!("stopped by {stop:?}"))),
        }
    }

    /// Lets every vCPU run once; gives the first one's reason to stop.
    pub fn run_once(&mut self) -> Result<Stop, Failure> {
        self.run_while(|_| Ok(()))
    }

    /// As [`run_once`](Machine::run_once), with something to do meanwhile.
    pub fn run_while(
        &mut self,
        meanwhile: impl FnOnce(&Machine) -> Outcome,
    ) -> Result<Stop, Failure> {
        let (sender, receiver) = channel();
        let count = self.vcpus.len();
        for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
            let Some(mut vcpu) = vcpu.take() else {
                continue;
            };
            let (sender, io) = (sender.clone(), self.io.clone());
            std::thread::Builder::new().spawn(move || {
                let stop = vcpu.run(&*io);
                // The receiver is gone when a guest was given up.
                let _ = sender.send((index, vcpu, stop));
            })?;
        }
        drop(sender);
        let meanwhile = meanwhile(self);
        let mut first = None;
        let mut late = false;
        let mut until = Instant::now() + self.limit;
        for _ in 0..count {
            loop {
                let left = until.saturating_duration_since(Instant::now());
                match receiver.recv_timeout(left) {
                    Ok((index, vcpu, stop)) => {
                        self.vcpus[index] = Some(vcpu);
                        if index == 0 {
                            first = Some(stop);
                            // The others sleep, as far as anybody knows.
                            self.io.kick_others();
                        }
                        break;
                    }
                    Err(RecvTimeoutError::Timeout) if !late => {
                        late = true;
                        until = Instant::now() + KICK_LIMIT;
                        self.io.kick();
                    }
                    Err(_) => {
                        let text = "a vCPU ignores its kick or has panicked";
                        return Err(Failure::Differs(text.to_owned()));
                    }
                }
            }
        }
        meanwhile?;
        if late {
            let state = self.saved()?;
            return Err(Failure::Differs(format!(
                "hangs at {:#x}:{:#x} ({:?}), flags {:#x}",
                state.segments[1].selector, state.rip, state.mp_state, state.rflags
            )));
        }
        first.ok_or_else(|| Failure::Differs("vCPU 0 did not run".to_owned()))
    }

    /// Compares the log with what the programs expect.
    pub fn compare(&self) -> Outcome {
        let log = self.log()?;
        for (n, (record, due)) in log.iter().zip(&self.expected).enumerate() {
            let alias = |rip| record.rip == rip || record.rip == rip + ALIAS;
            let same = record.vector == u64::from(due.vector)
                && due.error.is_none_or(|error| record.error == error)
                && due.cr2.is_none_or(|cr2| record.cr2 == cr2)
                && due.rip.is_none_or(alias);
            check!(same, "exception {n}: {record:x?} instead of {due:x?}");
        }
        check!(
            log.len() == self.expected.len(),
            "{} exceptions instead of {}, next {:x?} / {:x?}",
            log.len(),
            self.expected.len(),
            log.get(self.expected.len()),
            self.expected.get(log.len())
        );
        Ok(())
    }
}
