//! Delivery of exceptions and interrupts (SDM vol. 3, chapter 6).
//!
//! ```text
//!            ┌──────────────── fault while delivering ◄─────────────┐
//!            ▼                                                      │
//! event ─► class of both ─► serial: deliver the new one ────────────┤
//!                        ├► double fault: deliver #DF(0) ───────────┘
//!                        └► while delivering #DF: triple fault
//! ```
//! Nothing of the vCPU has changed when a delivery step faults (the memory
//! below the stack pointer excepted), so the next step starts from the same
//! state.

mod iret;
mod legacy;
mod long;

use crate::cpu::{Activity, Cpu, flag};
use crate::fault::{Exec, Raised, vector};

/// Something to deliver between two instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An exception; RIP stands where its frame shall point.
    Exception(Raised),
    /// An external interrupt, acknowledged.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
}

/// How delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// The handler's first instruction is next.
    Done,
    /// A fault while delivering a double fault. State is as before.
    TripleFault,
}

/// An interrupt made by an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    /// INT n.
    Int,
    /// INT3 and INTO: not subject to IOPL in virtual-8086 mode.
    Trap,
    /// INT1: no privilege check of the gate.
    Icebp,
}

/// One delivery, as the gate code needs it.
#[derive(Clone, Copy, Debug)]
struct Step {
    vector: u8,
    error: Option<u32>,
    /// Checks the gate's DPL.
    software: bool,
    /// Where the handler returns to.
    return_rip: u64,
    /// Flags to push.
    flags: u64,
    /// Bit 0 of the error codes of faults while delivering.
    ext: u32,
}

/// Contributory exceptions (SDM vol. 3, table 6-4).
fn contributory(vector: u8) -> bool {
    matches!(
        vector,
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP
    )
}

/// True when `second`, raised while delivering `first`, makes a double fault
/// (SDM vol. 3, table 6-5).
fn doubles(first: u8, second: u8) -> bool {
    match first {
        vector::PF => contributory(second) || second == vector::PF,
        _ if contributory(first) => contributory(second),
        _ => false,
    }
}

impl Cpu {
    /// Delivers an event and the faults that this causes.
    pub fn deliver(&mut self, event: Event) -> Delivery {
        self.activity = Activity::Running;
        self.shadow = false;
        self.shadow_ss = false;
        let mut exception = match event {
            Event::Exception(raised) => raised,
            Event::Interrupt(vector) => match self.deliver_external(vector) {
                Ok(()) => return Delivery::Done,
                Err(_) => self.raised,
            },
            Event::Nmi => match self.deliver_external(vector::NMI) {
                Ok(()) => {
                    self.nmi_blocked = true;
                    return Delivery::Done;
                }
                Err(_) => self.raised,
            },
        };
        loop {
            if self.deliver_exception(&exception).is_ok() {
                return Delivery::Done;
            }
            if exception.vector == vector::DF {
                return Delivery::TripleFault;
            }
            if self.raised.vector == vector::PF {
                // Also when it becomes a double fault (SDM vol. 3, 6.15, #PF).
                self.cr2 = self.raised.cr2;
            }
            if doubles(exception.vector, self.raised.vector) {
                exception = Raised {
                    vector: vector::DF,
                    error: Some(0),
                    ..Raised::default()
                };
            } else {
                exception = self.raised;
            }
        }
    }

    fn deliver_external(&mut self, vector: u8) -> Exec {
        self.deliver_step(&Step {
            vector,
            error: None,
            software: false,
            return_rip: self.rip(),
            flags: self.rflags | self.between(),
            ext: 1,
        })
    }

    /// RF, where an event comes between two iterations (SDM vol. 3, 17.3.1.1).
    fn between(&self) -> u64 {
        if self.between_iterations { flag::RF } else { 0 }
    }

    fn deliver_exception(&mut self, raised: &Raised) -> Exec {
        match raised.vector {
            vector::PF => self.cr2 = raised.cr2,
            vector::DB => {
                // B0–B3 tell about this exception only, the others collect.
                self.dr6 = self.dr6 & !0xF | raised.dr6;
                // GD is cleared so that the handler can use the registers.
                self.dr7 &= !(1 << 13);
            }
            _ => {}
        }
        // Every fault but #DB resumes behind instruction breakpoints.
        let resume = !raised.trap && raised.vector != vector::DB;
        self.deliver_step(&Step {
            vector: raised.vector,
            error: raised.error,
            software: false,
            return_rip: self.rip(),
            flags: self.rflags | if resume { flag::RF } else { self.between() },
            ext: 1,
        })
    }

    /// INT n, INT3, INTO, INT1: delivers at once; `next` is the instruction
    /// behind. A fault is the instruction's own.
    pub fn software_interrupt(&mut self, vector: u8, kind: Software, next: u64) -> Exec {
        if kind == Software::Int && self.vm86() && self.iopl() < 3 {
            return Err(self.gp(0));
        }
        self.step_cancelled = self.was_stepping;
        self.deliver_step(&Step {
            vector,
            error: None,
            software: kind != Software::Icebp,
            return_rip: next,
            flags: self.rflags,
            ext: u32::from(kind == Software::Icebp),
        })?;
        // A pending single step is taken over by the pushed TF.
        self.step_cancelled = self.was_stepping;
        if kind == Software::Icebp {
            // Debug traps that MOV SS held back join this one.
            self.dr6 |= std::mem::take(&mut self.debug_hits);
        }
        Ok(())
    }

    fn deliver_step(&mut self, step: &Step) -> Exec {
        let result = if !self.protected() {
            self.deliver_real(step)
        } else if self.long_mode {
            self.deliver_long(step)
        } else {
            self.deliver_legacy(step)
        };
        self.between_iterations = false;
        if result.is_err()
            && matches!(
                self.raised.vector,
                vector::TS | vector::NP | vector::SS | vector::GP
            )
            && let Some(error) = &mut self.raised.error
        {
            *error |= step.ext;
            // What the run loop would make of it was decided here already.
            self.raised.non_canonical = false;
        }
        result
    }

    /// What the error code of a fault says about gate `vector`: the index,
    /// and that it is one in the IDT.
    fn gate_error(vector: u8) -> u32 {
        u32::from(vector) << 3 | 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serious_pairs_double() {
        assert!(doubles(vector::GP, vector::NP));
        assert!(doubles(vector::PF, vector::PF));
        assert!(doubles(vector::PF, vector::GP));
        assert!(!doubles(vector::GP, vector::PF));
        assert!(!doubles(vector::UD, vector::GP));
        assert!(!doubles(vector::DB, vector::PF));
    }
}
