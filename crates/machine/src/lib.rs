//! A machine: assembles, boots and runs a virtual server on an engine.
//!
//! ```text
//!                 Machine::new                        run
//! MachineConfig ───────────────► created ───────────────► running
//!        │                                      pause │      ▲ resume
//!        │ MachineError                               ▼      │
//!        ▼                                            paused ┘
//!     nothing is left                       power-off, reset under
//!                                           no_reboot, triple fault,
//!                                           stop, failure, from either:
//!                                                    stopped (an Outcome)
//! ```
//!
//! # Contract
//!
//! * [`Machine::new`] finds everything that can be wrong with a
//!   configuration, before any thread exists.
//! * [`Machine::run`] blocks until the machine has ended. One thread, the
//!   caller's, owns the machine's life; requests reach it by one queue and
//!   are done one after the other, in order.
//! * Running: every vCPU thread (`cpu0`, `cpu1`, …) executes, guest time
//!   passes, device timers expire on the thread `timers`, output leaves on
//!   the thread `console`.
//! * Paused: no guest instruction executes and guest time stands still.
//!   Devices were told ([`croft_devices::Device::pause`]) after the last
//!   vCPU had stopped; they are told before the first one continues.
//! * A machine is saved ([`MachineHandle::save`]) while it stands still, with
//!   all requests to its disks done. It then ends, since two that continue
//!   would write to the same disks; if it could not be saved it goes on.
//!   [`Machine::restore`] makes one that continues there ([`saved`]).
//! * A reset, by the guest or by [`MachineHandle::reset`], stops all vCPUs,
//!   resets interrupt controllers, devices and vCPUs in this order, loads
//!   the kernel again from the same open file, and goes on. RAM that nothing
//!   is loaded to keeps its contents. Under `no_reboot` the guest's own reset
//!   ends the machine.
//! * A triple fault always ends the machine, with a register report: a guest
//!   that crashes at once would otherwise do so for ever.
//! * When `run` returns, all threads have ended and all output has been
//!   handed over, but for a machine that was told to stop while its console
//!   was blocked.

pub mod acpi;
pub mod boot;
mod chipset;
mod config;
mod console;
mod error;
mod events;
mod fault;
pub mod gdb;
mod handle;
mod hotplug;
pub mod loader;
mod machine;
pub mod memory_map;
mod owner;
mod power;
pub mod report;
pub mod saved;
mod sync;
mod timers;
mod vcpus;
mod virtio;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::{Ended, MachineConfig, Outcome, State};
pub use console::{ConsoleBackend, DiskFault};
pub use croft_devices::virtio::blk::{Limits as DiskLimits, OnError as OnDiskError};
pub use croft_devices::virtio::console::{PORTS_MAX, PortConfig};
pub use croft_devices::virtio::net::{
    Limits as NicLimits, NicHandle, NicOptions as NicConfig, Rate as NicRate,
};
pub use croft_devices::virtio::vsock::{VsockHandle, VsockHost};
pub use error::MachineError;
pub use gdb::GdbListener;
pub use handle::{MachineHandle, ResizeError, SaveError};
pub use hotplug::{AttachError, DetachError};
pub use loader::{BootFrom, NamedFile, Payload};
pub use machine::Machine;
pub use saved::{SavedError, SavedMachine};
pub use virtio::{DISKS_MAX, DiskConfig, NICS_MAX, SHARES_MAX, ShareConfig, VsockConfig};
