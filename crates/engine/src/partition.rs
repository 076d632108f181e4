//! Engine, partition, vCPU.

use std::fmt;
use std::sync::Arc;

use croft_irqchip::Msi;
use croft_memory::GuestRam;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::cpu_model::{CpuModel, CpuProfile, Missing, Topology};
use crate::debug::{DebugControl, DebugStop, Translation};
use crate::kick::Kicker;
use crate::state::{CpuState, PartitionState, StateError};

/// What executes vCPUs.
pub trait Engine: Send + Sync {
    /// `software`, `kvm`.
    fn name(&self) -> &'static str;

    /// Whether this engine can run an unmodified machine here.
    fn probe(&self) -> Fitness;

    /// What this engine and host can do at most.
    fn capabilities(&self) -> Capabilities;

    /// The CPUID leaves and MSR values with which this engine honours
    /// `model`, or everything that it cannot.
    fn profile(&self, model: CpuModel, topology: Topology) -> Result<CpuProfile, Vec<Missing>>;

    /// Makes an empty machine: RAM, interrupt controllers, no vCPU yet.
    fn partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, EngineError>;
}

/// The answer of [`Engine::probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fitness {
    /// It can; the text says with what.
    Fit(String),
    /// It cannot; the text says why and what to do about it.
    Unfit(String),
}

/// What can be asked of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Most vCPUs of one partition.
    pub max_vcpus: u32,
    /// Guest-physical address bits.
    pub physical_bits: u8,
    /// Data breakpoints ([`crate::Breakpoint::Data`]) are honoured.
    pub data_breakpoints: bool,
}

/// What a partition is made from.
#[derive(Clone, Debug)]
pub struct PartitionConfig {
    /// Guest RAM.
    pub ram: GuestRam,
    /// The processor that every vCPU is promised.
    pub profile: CpuProfile,
    /// Number of vCPUs; APIC ids are `0..vcpus`.
    pub vcpus: u32,
}

/// Why an engine refused or failed.
#[derive(Debug, Error)]
pub enum EngineError {
    /// More vCPUs than the engine can run.
    #[error("{wanted} vCPUs asked for, the {engine} engine runs at most {most}; lower --cpus")]
    TooManyVcpus {
        /// Engine name.
        engine: &'static str,
        /// vCPUs asked for.
        wanted: u32,
        /// Most it can run.
        most: u32,
    },
    /// This vCPU exists already, or its index is out of range.
    #[error("vCPU {0} does not exist or was taken already")]
    NoSuchVcpu(u32),
    /// A state cannot be restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host refused something.
    #[error("{what}: {source}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// What the host answered.
        source: std::io::Error,
    },
    /// The engine cannot do this.
    #[error("{0}")]
    Unsupported(String),
}

/// Where an event object's interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptRoute {
    /// A global system interrupt: I/O APIC pin, and PIC input below 16.
    Line(u32),
    /// A message.
    Msi(Msi),
}

/// A write that signals an event object instead of calling [`CpuIo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// Where.
    pub address: DoorbellAddress,
    /// Access size in bytes (1, 2, 4, 8); 0 matches any size.
    pub len: u8,
    /// Only this value rings, when given.
    pub value: Option<u64>,
}

/// Address space of a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoorbellAddress {
    /// Guest-physical memory.
    Memory(u64),
    /// I/O port.
    Port(u16),
}

/// A machine as an engine sees it.
///
/// All methods may be called from any thread while vCPUs run, except
/// [`save`](Partition::save) and [`restore`](Partition::restore), which need
/// every vCPU stopped.
pub trait Partition: Send + Sync {
    /// Hands out vCPU `index`, once. It starts in the architectural reset
    /// state (vCPU 0 runnable, the others waiting for INIT and start-up).
    fn vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError>;

    /// Drives the level of global system interrupt `gsi` (0–23; those below
    /// 16 reach the PIC too). Unknown lines are ignored.
    fn set_line(&self, gsi: u32, level: bool);

    /// Delivers a message-signalled interrupt.
    fn msi(&self, msi: Msi);

    /// An event object that raises `route` when signalled; for a line, a
    /// signal is a pulse unless [`resample`](Partition::resample) was asked
    /// for that line, when it stays up until the guest's EOI.
    fn irqfd(&self, route: InterruptRoute) -> Result<EventFd, EngineError>;

    /// An event object that is signalled when the guest ends (EOI) the
    /// interrupt of line `gsi`.
    fn resample(&self, gsi: u32) -> Result<EventFd, EngineError>;

    /// An event object that is signalled by matching guest writes; they no
    /// longer reach [`CpuIo`].
    fn doorbell(&self, doorbell: Doorbell) -> Result<EventFd, EngineError>;

    /// Removes a doorbell; unknown ones are ignored.
    fn remove_doorbell(&self, doorbell: Doorbell);

    /// Guest time in nanoseconds since the machine started; stands still
    /// while the machine is paused by the engine's owner through
    /// [`pause_clock`](Partition::pause_clock).
    fn clock_ns(&self) -> u64;

    /// Stops guest time and the guest's TSC.
    fn pause_clock(&self);

    /// Lets guest time and the guest's TSC continue where they stood.
    fn resume_clock(&self);

    /// State shared by all vCPUs. Every vCPU must be stopped.
    fn save(&self) -> Result<PartitionState, EngineError>;

    /// Counterpart of [`save`](Partition::save), before the vCPUs' states.
    fn restore(&self, state: &PartitionState) -> Result<(), EngineError>;

    /// Back to the state at power-on: interrupt controllers and timers. The
    /// vCPUs are reset by [`Vcpu::reset`]. Every vCPU must be stopped.
    fn reset(&self);
}

/// One virtual processor. Owned by the thread that runs it.
pub trait Vcpu: Send {
    /// Executes guest code until there is a reason to return. Returns only on
    /// an instruction boundary: what an engine needs to complete an access
    /// stays inside. HLT and waiting for start-up sleep inside.
    fn run(&mut self, io: &dyn CpuIo) -> Stop;

    /// A handle that makes [`run`](Vcpu::run) return.
    fn kicker(&self) -> Kicker;

    /// Complete, engine-neutral state.
    fn save(&mut self) -> Result<CpuState, EngineError>;

    /// Counterpart of [`save`](Vcpu::save).
    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError>;

    /// The architectural reset state.
    fn reset(&mut self);

    /// Translates a linear address by the vCPU's current paging structures,
    /// without side effects on them.
    fn translate(&mut self, linear: u64) -> Option<Translation>;

    /// Sets what the debugger wants; replaces what it wanted before.
    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError>;
}

/// What an engine calls for accesses that are not RAM: implemented by the
/// machine's bus. `data` is 1, 2, 4 or 8 bytes (ports: 1, 2 or 4),
/// little-endian; wider or misaligned accesses arrive split.
///
/// Calls come on vCPU threads and must not block.
pub trait CpuIo: Sync {
    /// `in`: fill `data`. Unclaimed ports read as all ones.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// `out`.
    fn port_write(&self, port: u16, data: &[u8]);
    /// A read of guest-physical memory that is not RAM.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// A write to guest-physical memory that is not RAM.
    fn mmio_write(&self, address: u64, data: &[u8]);
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq)]
pub enum Stop {
    /// Somebody used the [`Kicker`].
    Kicked,
    /// The guest asked the engine itself for a reset.
    Reset,
    /// The guest asked the engine itself for power-off.
    Shutdown,
    /// The guest faulted while delivering a double fault. The state is the
    /// one at the faulting instruction.
    TripleFault(Box<CpuState>),
    /// For the debugger.
    Debug(DebugStop),
    /// The engine cannot go on; the text says why, for the log.
    Failed(String),
}

impl fmt::Display for Fitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fitness::Fit(text) | Fitness::Unfit(text) => f.write_str(text),
        }
    }
}
