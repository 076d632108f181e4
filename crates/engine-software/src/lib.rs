//! The software engine: x86-64 machines without hardware virtualization.
//!
//! The interpreter is complete and exact. Instruction bytes become ops
//! (`decode`), cached in blocks by guest-physical address (`block`); the
//! run loop (`run`) executes them. Guest and host speak the same
//! instruction set, so arithmetic is done by the host's own instructions:
//! integer ones inline (`integer`), the others by generated stubs
//! (`stub`).
//!
//! Guest memory is reached by translations in a TLB (`tlb`, `mem`,
//! `walk`); every access is checked, and that is the isolation boundary.
#![allow(unsafe_code)]

mod address;
mod block;
mod clock;
mod cpu;
mod cpuid;
mod decode;
mod dual;
mod fault;
mod integer;
mod interrupt;
mod irqfd;
mod mem;
mod msr;
mod op;
mod partition;
mod physical;
mod pv;
mod rest;
mod run;
mod segment;
mod shared;
mod statistics;
mod stub;
mod system;
mod ticker;
mod tlb;
mod translate;
mod vector;
mod walk;
mod word;

pub use partition::{SoftwareEngine, SoftwareOptions};
pub use statistics::Statistics;
#[cfg(feature = "planted")]
pub use stub::{Planted, plant};
pub use translate::LockstepCounts;
#[cfg(feature = "planted")]
pub use translate::{PlantedCode, PlantedInCode, plant_code, plant_in_code};
