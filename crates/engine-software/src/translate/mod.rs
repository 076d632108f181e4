//! The translator: guest code as host code.
//!
//! Both sides speak the same instruction set, so most instructions are copied
//! with other registers ([`regs`]) and, where they touch memory, with a check
//! in front ([`emit`]). What is not worth that is left to the interpreter, op
//! by op: its blocks ([`crate::block`]) are what is translated, and its
//! handlers do whatever a check did not let pass. So every exception is
//! raised by the interpreter, at an instruction that has changed nothing.
//!
//! ```text
//!            ┌──────────── same page: jump ───────────┐
//!            ▼                                        │
//!  Rust ─► block ─► … ─► check ─miss─► refill ─miss─► interpret one op
//!    ▲       │                                        │
//!    │       ├─ other page, computed: table of jumps ─┤
//!    └───────┴──── unknown target, event, fault ──────┘
//! ```
//!
//! Code belongs to one vCPU, and is found by guest-physical address, so it
//! survives changes of address space. Blocks jump to each other directly only
//! within a page: a page's code is made invalid as a whole, so no jump into
//! it ever has to be taken back. Between pages, and for computed targets, the
//! [`tables`] say where a linear address leads.

mod asm;
mod bits;
mod classify;
mod cold;
mod control;
mod emit;
mod group;
mod hot;
mod leave;
mod liveness;
mod lockstep;
mod plain;
mod planted;
mod region;
mod regs;
mod run;
mod special;
mod strings;
mod tables;
mod thunks;
mod verify;
mod wrong;

pub use classify::Class;
pub use hot::Hot;
pub use lockstep::{Lockstep, LockstepCounts, is_outside};
#[cfg(feature = "planted")]
pub use planted::{PlantedCode, plant_code};
pub use region::{Home, Region};
pub use run::{Settings, Translator};
pub use thunks::REASONS;
pub use wrong::PlantedInCode;
pub(crate) use wrong::is_planted;
#[cfg(feature = "planted")]
pub use wrong::plant_in_code;

use crate::op::Op;

/// A place where a block is left.
#[derive(Debug)]
pub struct Exit {
    /// The instruction that leaves, for when its target turns out not to be
    /// canonical; null where it cannot.
    pub op: *const Op,
    /// What the instruction added to RSP.
    pub rsp_delta: i64,
    /// Offset in code memory of the jump's displacement, for exits within
    /// the page.
    pub site: usize,
    /// Offset in the page of the target, for exits within the page.
    pub target: u64,
    /// Guest-physical address of the page.
    pub page: u64,
}
