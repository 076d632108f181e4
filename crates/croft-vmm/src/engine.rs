//! Which engine runs the machine.

use croft_api::{EngineChoice, EngineReport};
use croft_engine::{CpuModel, Engine, Fitness, Topology};
use croft_engine_kvm::KvmEngine;
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

/// An engine of this build.
struct Candidate {
    engine: Box<dyn Engine>,
    default_model: CpuModel,
    choice: EngineChoice,
}

/// All engines of this build, best first.
fn candidates() -> Vec<Candidate> {
    vec![
        Candidate {
            engine: Box::new(KvmEngine::new()),
            default_model: CpuModel::Host,
            choice: EngineChoice::Kvm,
        },
        Candidate {
            engine: Box::new(SoftwareEngine::new()),
            default_model: CpuModel::SoftwareFast,
            choice: EngineChoice::Software,
        },
    ]
}

/// What the machine asks of its engine.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The engine.
    pub choice: EngineChoice,
    /// The CPU model, if it names one.
    pub model: Option<CpuModel>,
    /// Number of vCPUs.
    pub vcpus: u32,
}

/// Chooses, or says why there is none.
pub fn choose(wanted: Wanted) -> Result<Chosen, String> {
    pick(candidates(), wanted)
}

/// Says which engines there are and which of them are of use here.
pub fn report() -> Vec<EngineReport> {
    candidates()
        .into_iter()
        .map(|candidate| {
            let (fit, text) = match candidate.engine.probe() {
                Fitness::Fit(text) => (true, text),
                Fitness::Unfit(text) => (false, text),
            };
            EngineReport {
                engine: candidate.engine.name().to_owned(),
                fit,
                text,
            }
        })
        .collect()
}

/// The first that can; those before it are part of the reason.
fn pick(candidates: Vec<Candidate>, wanted: Wanted) -> Result<Chosen, String> {
    let auto = wanted.choice == EngineChoice::Auto;
    let mut refused = Vec::new();
    for candidate in candidates {
        if !auto && candidate.choice != wanted.choice {
            continue;
        }
        let name = candidate.engine.name();
        let fit = match candidate.engine.probe() {
            Fitness::Fit(text) => text,
            Fitness::Unfit(text) => {
                refused.push(format!("engine {name}: {text}"));
                continue;
            }
        };
        // An engine that was asked for is taken, and says in its own words
        // what of the machine it cannot honour.
        if let (true, Err(text)) = (auto, candidate.honours(wanted)) {
            refused.push(format!("engine {name}: {text}"));
            continue;
        }
        let reason = std::iter::once(fit)
            .chain(refused)
            .collect::<Vec<_>>()
            .join("; not ");
        return Ok(Chosen {
            engine: candidate.engine,
            reason,
            default_model: candidate.default_model,
        });
    }
    Err(refused.join("; "))
}

impl Candidate {
    fn honours(&self, wanted: Wanted) -> Result<(), String> {
        let most = self.engine.capabilities().max_vcpus;
        if wanted.vcpus > most {
            return Err(format!("runs at most {most} vCPUs"));
        }
        let model = wanted.model.unwrap_or(self.default_model);
        let topology = Topology {
            vcpus: wanted.vcpus,
        };
        self.engine
            .profile(model, topology)
            .map(drop)
            .map_err(|missing| {
                let names: Vec<&str> = missing.iter().map(|one| one.feature).collect();
                format!("CPU model {model} needs {}", names.join(", "))
            })
    }
}
