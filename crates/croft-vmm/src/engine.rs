//! Which engine runs the machine.

use croft_api::EngineChoice;
use croft_engine::{CpuModel, Engine, Fitness};
use croft_engine_software::SoftwareEngine;

/// An engine, and why it.
pub struct Chosen {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// Why, for people.
    pub reason: String,
    /// The CPU model of machines that do not name one.
    pub default_model: CpuModel,
}

/// Chooses, or says why there is none.
pub fn choose(choice: EngineChoice) -> Result<Chosen, String> {
    let engine = SoftwareEngine::new();
    let fit = match engine.probe() {
        Fitness::Fit(text) => text,
        Fitness::Unfit(text) => return Err(format!("engine {}: {text}", engine.name())),
    };
    let reason = match choice {
        EngineChoice::Auto => format!("the only one in this version; {fit}"),
        EngineChoice::Software => format!("as asked; {fit}"),
    };
    Ok(Chosen {
        engine: Box::new(engine),
        reason,
        default_model: CpuModel::SoftwareFast,
    })
}
