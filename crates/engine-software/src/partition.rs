//! The software engine behind the seam: engine, partition, vCPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use croft_engine::state::{STATE_VERSION, StateError, check_version};
use croft_engine::{
    Breakpoint, Capabilities, CpuIo, CpuModel, CpuProfile, CpuState, DebugControl, Doorbell,
    Engine, EngineError, Fitness, InterruptRoute, Kicker, Missing, Partition, PartitionConfig,
    PartitionState, Stop, Topology, Translation, Vcpu,
};
use croft_irqchip::{ChipsState, Message, Msi};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::cpu::Cpu;
use crate::irqfd::IrqFds;
use crate::shared::{Shared, VcpuShared, lock};
use crate::statistics::{Counting, Statistics};
use crate::translate::{Home, Lockstep, LockstepCounts, Settings, Translator};

/// Most vCPUs: APIC ids of one byte, 0xFF being the broadcast.
const MAX_VCPUS: u32 = 254;
/// Guest-physical address bits offered.
pub const PHYSICAL_BITS: u8 = 46;

/// Runs x86-64 machines in an ordinary process, without any help of the
/// hardware's.
#[derive(Clone, Debug)]
pub struct SoftwareEngine {
    options: SoftwareOptions,
    statistics: Option<Arc<Statistics>>,
    lockstep: Option<Arc<LockstepCounts>>,
}

/// How the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftwareOptions {
    /// Translate; else everything is interpreted.
    pub translates: bool,
    /// Room for translated code in bytes, for all vCPUs of a partition
    /// together; a vCPU has 1 MiB at least.
    pub code_size: usize,
    /// Prove that code is isolated before it runs. Builds with debug
    /// assertions always do.
    pub verifies: bool,
    /// Count what happens, see [`SoftwareEngine::statistics`]. Translated
    /// code is slower then.
    pub counts: bool,
    /// Run each block by the interpreter and as translated code; [`Vcpu::run`]
    /// ends with [`Stop::Failed`] at the first difference. For machines of one
    /// vCPU, and slow.
    pub lockstep: bool,
}

impl Default for SoftwareOptions {
    fn default() -> Self {
        SoftwareOptions {
            translates: true,
            code_size: 64 << 20,
            verifies: cfg!(debug_assertions),
            counts: false,
            lockstep: false,
        }
    }
}

impl Default for SoftwareEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl SoftwareEngine {
    /// The engine as it runs best.
    pub fn new() -> Self {
        Self::with_options(SoftwareOptions::default())
    }

    /// The engine as `options` say.
    pub fn with_options(options: SoftwareOptions) -> Self {
        SoftwareEngine {
            options,
            statistics: options.counts.then(Arc::default),
            lockstep: options.lockstep.then(Arc::default),
        }
    }

    /// What its machines counted, if they count. More is added while they
    /// run.
    pub fn statistics(&self) -> Option<Arc<Statistics>> {
        self.statistics.clone()
    }

    /// The engine, checking itself, see [`SoftwareOptions::lockstep`].
    pub fn lockstep() -> Self {
        Self::with_options(SoftwareOptions {
            lockstep: true,
            ..SoftwareOptions::default()
        })
    }

    /// What lockstep has compared so far.
    pub fn lockstep_counts(&self) -> Option<Arc<LockstepCounts>> {
        self.lockstep.clone()
    }

    /// The engine that interprets everything.
    pub fn interpreter() -> Self {
        Self::with_options(SoftwareOptions {
            translates: false,
            ..SoftwareOptions::default()
        })
    }
}

impl Engine for SoftwareEngine {
    fn name(&self) -> &'static str {
        "software"
    }

    fn probe(&self) -> Fitness {
        match crate::stub::init() {
            Ok(()) => Fitness::Fit("translates x86-64, needs nothing of the host".to_owned()),
            Err(error) => Fitness::Unfit(format!(
                "the host does not let this process run generated code ({error}); \
                 allow memfd_create and executable mappings"
            )),
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_vcpus: MAX_VCPUS,
            physical_bits: PHYSICAL_BITS,
            data_breakpoints: true,
        }
    }

    fn profile(&self, model: CpuModel, topology: Topology) -> Result<CpuProfile, Vec<Missing>> {
        crate::cpuid::profile(model, topology)
    }

    fn partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, EngineError> {
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return Err(EngineError::TooManyVcpus {
                engine: self.name(),
                wanted: config.vcpus,
                most: MAX_VCPUS,
            });
        }
        if self.lockstep.is_some() && config.vcpus > 1 {
            return Err(EngineError::Unsupported(
                "lockstep takes stores back, which other vCPUs would see; use one vCPU".to_owned(),
            ));
        }
        crate::stub::init().map_err(host("cannot prepare host stubs"))?;
        let shared = Shared::new(config.ram, config.profile, config.vcpus)
            .map_err(host("cannot make room for the vCPUs"))?;
        Ok(Arc::new(SoftwarePartition {
            taken: (0..config.vcpus).map(|_| AtomicBool::new(false)).collect(),
            irqfds: Mutex::new(IrqFds::new(shared.clone())),
            options: self.options,
            statistics: self.statistics.clone(),
            lockstep: self.lockstep.clone(),
            shared,
        }))
    }
}

fn host(what: &'static str) -> impl Fn(std::io::Error) -> EngineError {
    move |source| EngineError::Host { what, source }
}

struct SoftwarePartition {
    shared: Arc<Shared>,
    taken: Vec<AtomicBool>,
    irqfds: Mutex<IrqFds>,
    options: SoftwareOptions,
    statistics: Option<Arc<Statistics>>,
    lockstep: Option<Arc<LockstepCounts>>,
}

impl Partition for SoftwarePartition {
    fn vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let (Some(taken), Some(own)) = (
            self.taken.get(index as usize),
            self.shared.vcpus.get(index as usize),
        ) else {
            return Err(EngineError::NoSuchVcpu(index));
        };
        if taken.swap(true, Ordering::AcqRel) {
            return Err(EngineError::NoSuchVcpu(index));
        }
        let mut cpu = Cpu::power_up(self.shared.clone(), index, own.clone());
        if let Some(statistics) = &self.statistics {
            cpu.counting = Some(Box::new(Counting::new(statistics)));
        }
        if self.options.translates {
            let settings = Settings {
                size: self.options.code_size / self.taken.len(),
                counts: self.options.counts || self.options.lockstep,
                verifies: self.options.verifies || cfg!(debug_assertions),
                lockstep: self.options.lockstep,
            };
            let translator = Translator::new(settings).map_err(host("cannot translate"))?;
            cpu.translator = Some(Box::new(translator));
            let counts = self.lockstep.clone();
            cpu.lockstep = counts.map(|counts| Box::new(Lockstep::new(counts)));
        }
        Ok(Box::new(SoftwareVcpu {
            cpu,
            own: own.clone(),
        }))
    }

    fn set_line(&self, gsi: u32, level: bool) {
        self.shared
            .with_chips(|chips, out| chips.set_line(gsi, level, out));
    }

    fn msi(&self, msi: Msi) {
        if let Some(message) = Message::from_msi(msi) {
            self.shared.deliver(&message);
        }
    }

    fn irqfd(&self, route: InterruptRoute) -> Result<EventFd, EngineError> {
        lock(&self.irqfds)
            .add(route)
            .map_err(host("cannot make an interrupt event"))
    }

    fn resample(&self, gsi: u32) -> Result<EventFd, EngineError> {
        let fail = host("cannot make an EOI event");
        let event = EventFd::new(EFD_NONBLOCK).map_err(&fail)?;
        let kept = event.try_clone().map_err(&fail)?;
        self.shared.add_resample(gsi, kept);
        Ok(event)
    }

    fn doorbell(&self, doorbell: Doorbell) -> Result<EventFd, EngineError> {
        let fail = host("cannot make a doorbell");
        let event = EventFd::new(EFD_NONBLOCK).map_err(&fail)?;
        let kept = event.try_clone().map_err(&fail)?;
        self.shared.add_doorbell(doorbell, kept);
        Ok(event)
    }

    fn remove_doorbell(&self, doorbell: Doorbell) {
        self.shared.remove_doorbell(doorbell);
    }

    fn clock_ns(&self) -> u64 {
        self.shared.clock_ns()
    }

    fn pause_clock(&self) {
        self.shared.clock.pause();
    }

    fn resume_clock(&self) {
        self.shared.clock.resume();
    }

    fn save(&self) -> Result<PartitionState, EngineError> {
        let chips = lock(&self.shared.chips).save();
        let tsc = self.shared.clock.tsc();
        Ok(PartitionState {
            version: STATE_VERSION,
            pics: chips.pics,
            pit: chips.pit,
            ioapic: chips.ioapic,
            clock_ns: self.shared.clock.ns_at(tsc),
            tsc,
            tsc_khz: self.shared.clock.tsc_khz(),
        })
    }

    fn restore(&self, state: &PartitionState) -> Result<(), EngineError> {
        check_version(state.version)?;
        if state.tsc_khz != self.shared.clock.tsc_khz() {
            return Err(StateError::Damaged(format!(
                "the TSC runs at {} kHz there and at {} kHz here",
                state.tsc_khz,
                self.shared.clock.tsc_khz()
            ))
            .into());
        }
        let chips = ChipsState {
            pics: state.pics.clone(),
            pit: state.pit.clone(),
            ioapic: state.ioapic.clone(),
        };
        lock(&self.shared.chips)
            .restore(&chips)
            .map_err(|error| StateError::Damaged(error.to_string()))?;
        self.shared.clock.set(state.clock_ns, state.tsc);
        Ok(())
    }

    fn reset(&self) {
        lock(&self.shared.chips).reset();
    }
}

struct SoftwareVcpu {
    cpu: Home,
    own: Arc<VcpuShared>,
}

// SAFETY: the raw pointers inside (TLB entries, decoded blocks) lead to guest
// RAM and to memory the vCPU owns; both move with it, and `io` is null outside
// `run`.
unsafe impl Send for SoftwareVcpu {}

impl Vcpu for SoftwareVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Stop {
        self.cpu.run(io)
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.own.clone())
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        Ok(self.cpu.save_state())
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.cpu.restore_state(state)?;
        self.cpu.flush_code();
        self.cpu.lapic_changed();
        Ok(())
    }

    fn reset(&mut self) {
        lock(&self.own.lapic).reset();
        self.cpu.power_on();
        self.cpu.flush_tlb();
        self.cpu.retranslate();
        self.cpu.lapic_changed();
    }

    fn translate(&mut self, linear: u64) -> Option<Translation> {
        if !self.cpu.canonical(linear) {
            return None;
        }
        let mapping = self.cpu.walk_quietly(linear)?;
        Some(Translation {
            physical: mapping.gpa,
            writable: mapping.writable,
            executable: !mapping.no_execute,
            user: mapping.user,
        })
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        self.cpu.watchpoints = control
            .breakpoints
            .iter()
            .filter_map(|breakpoint| match *breakpoint {
                Breakpoint::Data {
                    address,
                    len,
                    reads,
                } => Some((address, len, reads)),
                Breakpoint::Code(_) => None,
            })
            .collect();
        self.cpu.debug = DebugControl {
            single_step: control.single_step,
            breakpoints: control
                .breakpoints
                .iter()
                .copied()
                .filter(|breakpoint| matches!(breakpoint, Breakpoint::Code(_)))
                .collect(),
        };
        self.cpu.debug_resume = None;
        self.cpu.update_mode();
        Ok(())
    }
}
