//! An engine whose processor is a closure: each call is one instruction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use croft_engine::state::{CpuState, PartitionState, STATE_VERSION};
use croft_engine::{
    Breakpoint, Capabilities, CpuIo, CpuModel, CpuProfile, CpuidLeaf, DebugControl, DebugStop,
    Doorbell, Engine, EngineError, Fitness, InterruptRoute, Kick, Kicker, Missing, Partition,
    PartitionConfig, Stop, Topology, Translation, Vcpu,
};
use croft_irqchip::Msi;
use croft_memory::GuestRam;
use vmm_sys_util::eventfd::EventFd;

use crate::sync::{Signal, lock};

/// What an instruction of the fake processor does.
pub enum Act {
    /// It ends; the next one follows 4 bytes on.
    Next,
    /// It sleeps until somebody kicks, then comes again.
    Halt,
    /// The run ends.
    Stop(Stop),
}

/// What the closure sees.
pub struct Cpu<'a> {
    pub index: u32,
    pub state: &'a mut CpuState,
    pub ram: &'a GuestRam,
    pub io: &'a dyn CpuIo,
}

pub type Program = Arc<dyn Fn(&mut Cpu<'_>) -> Act + Send + Sync>;

/// Events that tests look at.
#[derive(Default)]
pub struct Log {
    pub lines: Mutex<Vec<(u32, bool)>>,
    pub resets: AtomicU64,
}

pub struct FakeEngine {
    pub program: Program,
    pub log: Arc<Log>,
    pub tsc_khz: u32,
    /// The only feature of its processors.
    pub leaf: u32,
}

impl FakeEngine {
    pub fn new(program: impl Fn(&mut Cpu<'_>) -> Act + Send + Sync + 'static) -> Self {
        FakeEngine {
            program: Arc::new(program),
            log: Arc::new(Log::default()),
            tsc_khz: 1_000_000,
            leaf: 1,
        }
    }
}

impl Engine for FakeEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn probe(&self) -> Fitness {
        Fitness::Fit(String::new())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_vcpus: 8,
            physical_bits: 40,
            data_breakpoints: true,
        }
    }

    fn profile(&self, model: CpuModel, _: Topology) -> Result<CpuProfile, Vec<Missing>> {
        if model == CpuModel::Host {
            return Err(vec![
                Missing {
                    feature: "avx2",
                    lacking: "host",
                },
                Missing {
                    feature: "fma",
                    lacking: "fake",
                },
            ]);
        }
        Ok(CpuProfile {
            model,
            leaves: vec![CpuidLeaf {
                ecx: self.leaf,
                ..CpuidLeaf::default()
            }],
            xcr0: 1,
            arch_capabilities: 0,
            tsc_khz: self.tsc_khz,
            physical_bits: 40,
        })
    }

    fn partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, EngineError> {
        Ok(Arc::new(FakePartition {
            program: self.program.clone(),
            log: self.log.clone(),
            ram: config.ram,
            tsc_khz: config.profile.tsc_khz,
            clock: Mutex::new((0, Some(Instant::now()))),
        }))
    }
}

struct FakePartition {
    program: Program,
    log: Arc<Log>,
    ram: GuestRam,
    tsc_khz: u32,
    clock: Mutex<(u64, Option<Instant>)>,
}

fn unsupported<T>() -> Result<T, EngineError> {
    Err(EngineError::Unsupported("the fake engine cannot".into()))
}

impl Partition for FakePartition {
    fn vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let mut vcpu = FakeVcpu {
            index,
            program: self.program.clone(),
            ram: self.ram.clone(),
            kick: Arc::new(FakeKick::default()),
            state: CpuState::default(),
            debug: DebugControl::default(),
            passed: None,
        };
        vcpu.reset();
        Ok(Box::new(vcpu))
    }

    fn set_line(&self, gsi: u32, level: bool) {
        lock(&self.log.lines).push((gsi, level));
    }

    fn msi(&self, _: Msi) {}

    fn irqfd(&self, _: InterruptRoute) -> Result<EventFd, EngineError> {
        unsupported()
    }

    fn resample(&self, _: u32) -> Result<EventFd, EngineError> {
        unsupported()
    }

    fn doorbell(&self, _: Doorbell) -> Result<EventFd, EngineError> {
        unsupported()
    }

    fn remove_doorbell(&self, _: Doorbell) {}

    fn clock_ns(&self) -> u64 {
        let (past, since) = *lock(&self.clock);
        past + since.map_or(0, |since| since.elapsed().as_nanos() as u64)
    }

    fn pause_clock(&self) {
        let now = self.clock_ns();
        *lock(&self.clock) = (now, None);
    }

    fn resume_clock(&self) {
        let mut clock = lock(&self.clock);
        assert!(clock.1.is_none(), "time runs already");
        clock.1 = Some(Instant::now());
    }

    fn save(&self) -> Result<PartitionState, EngineError> {
        let clock_ns = self.clock_ns();
        Ok(PartitionState {
            version: STATE_VERSION,
            clock_ns,
            tsc: clock_ns * u64::from(self.tsc_khz) / 1_000_000,
            tsc_khz: self.tsc_khz,
            ..PartitionState::default()
        })
    }

    fn restore(&self, state: &PartitionState) -> Result<(), EngineError> {
        assert_eq!(state.tsc_khz, self.tsc_khz);
        *lock(&self.clock) = (state.clock_ns, None);
        Ok(())
    }

    fn reset(&self) {
        self.log.resets.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct FakeKick(Signal<bool>);

impl Kick for FakeKick {
    fn kick(&self) {
        self.0.change(|kicked| *kicked = true);
    }
}

struct FakeVcpu {
    index: u32,
    program: Program,
    ram: GuestRam,
    kick: Arc<FakeKick>,
    state: CpuState,
    debug: DebugControl,
    /// The breakpoint at which the last run stopped.
    passed: Option<u64>,
}

impl Vcpu for FakeVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Stop {
        let taken = |kicked: &mut bool| std::mem::take(kicked).then_some(());
        loop {
            if self
                .kick
                .0
                .wait_for(std::time::Duration::ZERO, taken)
                .is_some()
            {
                return Stop::Kicked;
            }
            let here = Breakpoint::Code(self.state.rip);
            let hit = self.debug.breakpoints.contains(&here);
            if hit && !self.debug.single_step && self.passed != Some(self.state.rip) {
                self.passed = Some(self.state.rip);
                return Stop::Debug(DebugStop::Breakpoint(here));
            }
            self.passed = None;
            let mut cpu = Cpu {
                index: self.index,
                state: &mut self.state,
                ram: &self.ram,
                io,
            };
            match (self.program)(&mut cpu) {
                Act::Next => self.state.rip += 4,
                Act::Halt => {
                    self.kick.0.wait(taken);
                    return Stop::Kicked;
                }
                Act::Stop(stop) => return stop,
            }
            if self.debug.single_step {
                return Stop::Debug(DebugStop::Step);
            }
        }
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.kick.clone())
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.state = state.clone();
        Ok(())
    }

    fn reset(&mut self) {
        self.state = CpuState {
            rip: 0xFFF0,
            xsave: vec![0; 576],
            ..CpuState::default()
        };
    }

    fn translate(&mut self, linear: u64) -> Option<Translation> {
        // The upper half mirrors the lower one, so that it is not identity.
        let physical = linear & 0x7FFF_FFFF_FFFF_FFFF;
        self.ram.page(physical).map(|_| Translation {
            physical,
            writable: true,
            executable: true,
            user: false,
        })
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        if control.breakpoints.len() > 4 {
            return unsupported();
        }
        self.debug = control.clone();
        Ok(())
    }
}
