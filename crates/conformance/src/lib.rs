//! Small guests that every engine must run alike.
//!
//! Each guest is a function that makes a machine on the engine it is given,
//! runs a few instructions, and says what differs from the processor's manual
//! (Intel SDM, AMD APM). They know the engine by its seam only, so the same
//! ones run on every engine.
//!
//! ```text
//! Guest::run ─► Machine (RAM, tables, handlers) ─► Program (instructions and
//!        the exceptions each must cause) ─► run under a wall-clock guard ─►
//!        log and result slots in guest memory compared with what is due
//! ```

mod failure;
pub mod guests;
pub mod handlers;
pub mod host;
pub mod layout;
pub mod machine;
pub mod program;
pub mod recorder;
pub mod tables;

pub use failure::{Failure, Outcome};
pub use machine::Machine;
pub use program::Program;

use croft_engine::Engine;

/// What a guest needs beyond plain instructions, and not every engine on every
/// host has: there, guests that need it are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Takes exceptions or interrupts, whose handlers end by IRET.
    Iret,
    /// INT3.
    Int3,
    /// SSE or AVX instructions.
    Vector,
    /// Data breakpoints set by the debugger.
    DataBreakpoints,
    /// More than one vCPU.
    Smp,
    /// Breakpoints of the guest's on ports that the machine's devices serve.
    PortBreakpoints,
    /// #GP for reserved bits in the local APIC's registers.
    ApicReservedBits,
    /// Single steps of the debugger's that RFLAGS in memory do not show.
    HiddenSteps,
    /// PAE paging's pointers in registers that CR3 loads; AMD's nested paging
    /// has none (APM vol. 2, 15.25.10).
    PaePointers,
    /// The state at the fault with a triple fault; AMD's processors lose it.
    TripleFaultState,
}

/// One guest.
#[derive(Clone, Copy)]
pub struct Guest {
    /// Subject and what must hold, `subject::property`.
    pub name: &'static str,
    /// What it needs.
    pub needs: &'static [Need],
    /// Runs it.
    pub run: fn(&dyn Engine) -> Outcome,
}

impl Guest {
    /// True when the guest does without everything in `lacking`.
    pub fn avoids(&self, lacking: &[Need]) -> bool {
        self.needs.iter().all(|need| !lacking.contains(need))
    }
}

/// Runs every guest whose name contains `filter`, and gives the names of those
/// that ran and the failures among them.
pub fn run_all(engine: &dyn Engine, filter: &str, lacking: &[Need]) -> Report {
    run_where(engine, filter, |guest| guest.avoids(lacking))
}

/// As [`run_all`], leaving out the guests that are not `wanted`.
pub fn run_where(engine: &dyn Engine, filter: &str, wanted: impl Fn(&Guest) -> bool) -> Report {
    let mut report = Report::default();
    for guest in guests::all() {
        if !guest.name.contains(filter) {
            continue;
        }
        if !wanted(guest) {
            report.skipped.push(guest.name);
            continue;
        }
        match (guest.run)(engine) {
            Ok(()) => report.passed.push(guest.name),
            Err(failure) => report.failed.push((guest.name, failure)),
        }
    }
    report
}

/// What [`run_all`] found.
#[derive(Debug, Default)]
pub struct Report {
    /// Guests that behaved.
    pub passed: Vec<&'static str>,
    /// Guests that did not, and how.
    pub failed: Vec<(&'static str, Failure)>,
    /// Guests left out for what they need.
    pub skipped: Vec<&'static str>,
}
