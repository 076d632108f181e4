//! Random code of many instructions, on an engine that checks itself.
//!
//! A case (`draw`) is some instructions in a row, of any kind, with
//! registers, flags and vector state to start from. It ends with an exception
//! of its own or with INT3. A guest (`guest`) runs a batch of cases without
//! coming back; on the software engine in lockstep each block that they are
//! made of is run by the interpreter and as translated code.
//!
//! `CROFT_BLOCKS` says how many blocks to compare at least, `CROFT_DIFF_SEED`
//! chooses others than the usual ones, `CROFT_BLOCKS_FIRST` begins at a batch.

mod draw;
mod guest;
mod layout;
pub mod program;

use croft_engine::{CpuModel, Engine};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub use draw::{Case, Draw};
pub use guest::{Circle, Guest};

use crate::machine::MachineError;

/// Cases in a batch.
pub const BATCH: usize = 64;

/// Runs cases.
pub struct Blocks {
    rng: SmallRng,
    draw: Draw,
    guest: Guest,
}

impl Blocks {
    /// Random cases from `seed`, for a guest of `engine`.
    ///
    /// # Errors
    /// There can be no such guest.
    pub fn new(engine: &dyn Engine, seed: u64) -> Result<Self, MachineError> {
        let guest = Guest::new(engine, CpuModel::SoftwareFast)?;
        Ok(Blocks {
            rng: SmallRng::seed_from_u64(seed),
            draw: Draw::new(guest.profile()),
            guest,
        })
    }

    /// Runs a batch; the cases of it that ran in circles.
    ///
    /// # Errors
    /// The engine ended the run; the text has its reason.
    pub fn batch(&mut self) -> Result<Vec<Circle>, MachineError> {
        let (cases, data) = self.draw();
        self.guest.run(&cases, &data)
    }

    /// Leaves batches out: the next is what it would be behind them.
    pub fn skip(&mut self, batches: u64) {
        for _ in 0..batches {
            self.draw();
        }
    }

    fn draw(&mut self) -> (Vec<Case>, Vec<u8>) {
        let cases = (0..BATCH)
            .map(|slot| self.draw.case(&mut self.rng, slot))
            .collect();
        let mut data = vec![0; layout::DATA_RAM as usize];
        self.rng.fill(&mut data[..]);
        (cases, data)
    }
}
