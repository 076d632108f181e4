//! The engine seam: what executes a machine's vCPUs, seen from outside.
//!
//! Engines know no device and devices know no engine. They meet in guest
//! memory ([`croft_memory::GuestRam`]), at the I/O callback ([`CpuIo`]) and on
//! interrupt lines ([`Partition::set_line`], [`Partition::msi`]). Nothing asks
//! *which* engine it has; what differs is asked for as a capability.
//!
//! ```text
//! Engine ──probe──► fit / unfit, with the reason
//!    │ profile(model)         what it can honour, or what is missing
//!    ▼ partition(config)
//! Partition ── set_line / msi / irqfd / doorbell / save / restore
//!    │ vcpu(index)            once for each vCPU; moves to its own thread
//!    ▼
//! Vcpu ── run(io) ─► Stop     on an instruction boundary
//!    └─ kicker()              sticky; wakes HLT too
//! ```

pub mod cpu_model;
pub mod debug;
mod kick;
mod partition;
pub mod state;

pub use cpu_model::{CpuModel, CpuProfile, CpuidLeaf, Missing, Topology};
pub use debug::{Access, Breakpoint, DebugControl, DebugStop, Translation};
pub use kick::{Kick, Kicker};
pub use partition::{
    Capabilities, CpuIo, Doorbell, DoorbellAddress, Engine, EngineError, Fitness, InterruptRoute,
    Partition, PartitionConfig, Stop, Vcpu,
};
pub use state::{CpuState, PartitionState};
