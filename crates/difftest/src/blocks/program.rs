//! A program for the supervisor of the guest, in place of cases.

use croft_engine::{CpuModel, Engine, EngineError, Kicker, Stop};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al};

use super::guest::{Guest, SPARE_ENTRY};
use super::layout::{KERNEL, SPARE_AT};
use crate::machine::MachineError;

/// A page that a program may map elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Spare {
    /// Its linear address.
    pub linear: u64,
    /// The linear address of its page-table entry.
    pub entry: u64,
}

/// The page, which holds zeroes. The one beside it in RAM begins with 1.
pub const SPARE: Spare = Spare {
    linear: SPARE_AT,
    entry: KERNEL + SPARE_ENTRY,
};

/// A program that runs once, at CPL 0 with a stack.
pub struct Program(Guest);

impl Program {
    /// A guest of `engine` with this program.
    ///
    /// # Errors
    /// There can be no such guest, or no such program.
    pub fn new(
        engine: &dyn Engine,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, MachineError> {
        let guest = Guest::new(engine, CpuModel::SoftwareFast)?;
        let bytes = assemble(code, guest.entry());
        let bytes = bytes.map_err(|error| EngineError::Unsupported(error.to_string()))?;
        guest.put_program(&bytes)?;
        Ok(Program(guest))
    }

    /// Ends the run from another thread.
    pub fn kicker(&self) -> Kicker {
        self.0.kicker()
    }

    /// Runs it, after `starts`, to its end or until somebody kicks.
    pub fn run(&mut self, starts: impl FnOnce()) -> Stop {
        starts();
        self.0.go()
    }

    /// It has come to its end.
    pub fn is_over(&self) -> bool {
        self.0.is_done()
    }
}

fn assemble(
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    at: u64,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    code(&mut a)?;
    let mut end = a.create_label();
    a.set_label(&mut end)?;
    a.out(0x10, al)?;
    a.jmp(end)?;
    a.assemble(at)
}
