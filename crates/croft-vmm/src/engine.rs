//! Which engine runs the machine.

use std::sync::Arc;

use croft_api::{EngineChoice, EngineReport, SoftwareSpec};
use croft_engine::{CpuModel, Engine, Fitness, Topology};
use croft_engine_kvm::KvmEngine;
use croft_engine_software::{LockstepCounts, SoftwareEngine, SoftwareOptions, Statistics};

/// An engine, and why it.
pub struct Chosen {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// Why, for people.
    pub reason: String,
    /// The CPU model of machines that do not name one.
    pub default_model: CpuModel,
    /// What it counts, if it counts.
    pub statistics: Option<Arc<Statistics>>,
    /// What lockstep compares, where it was asked for.
    pub lockstep: Option<Arc<LockstepCounts>>,
}

/// An engine of this build.
struct Candidate {
    engine: Box<dyn Engine>,
    default_model: CpuModel,
    choice: EngineChoice,
    statistics: Option<Arc<Statistics>>,
}

/// All engines of this build, best first.
fn candidates(spec: SoftwareSpec, kvm: KvmEngine) -> Vec<Candidate> {
    let software = SoftwareEngine::with_options(software_options(spec));
    vec![
        Candidate {
            engine: Box::new(kvm),
            default_model: CpuModel::Host,
            choice: EngineChoice::Kvm,
            statistics: None,
        },
        Candidate {
            statistics: software.statistics(),
            engine: Box::new(software),
            default_model: CpuModel::SoftwareFast,
            choice: EngineChoice::Software,
        },
    ]
}

/// Most room for translated code: jumps across it have 32 bits.
const CODE_MAX: u64 = 1 << 30;

fn software_options(spec: SoftwareSpec) -> SoftwareOptions {
    let defaults = SoftwareOptions::default();
    SoftwareOptions {
        translates: !spec.interpret,
        code_size: spec.code_cache.min(CODE_MAX) as usize,
        verifies: spec.verify_code || defaults.verifies,
        counts: spec.stats,
        lockstep: false,
    }
}

/// What the machine asks of its engine.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The engine.
    pub choice: EngineChoice,
    /// How, if it is the software engine.
    pub software: SoftwareSpec,
    /// The CPU model, if it names one.
    pub model: Option<CpuModel>,
    /// Number of vCPUs.
    pub vcpus: u32,
}

/// Chooses, or says why there is none.
pub fn choose(wanted: Wanted, kvm: KvmEngine) -> Result<Chosen, String> {
    if wanted.choice == EngineChoice::Lockstep {
        return Ok(lockstep());
    }
    pick(candidates(wanted.software, kvm), wanted)
}

fn lockstep() -> Chosen {
    let engine = SoftwareEngine::lockstep();
    Chosen {
        statistics: None,
        lockstep: engine.lockstep_counts(),
        engine: Box::new(engine),
        reason: "each block is run twice and compared".to_owned(),
        default_model: CpuModel::SoftwareFast,
    }
}

/// Says which engines there are and which of them are of use here.
pub fn report() -> Vec<EngineReport> {
    candidates(SoftwareSpec::default(), KvmEngine::new())
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
            statistics: candidate.statistics,
            lockstep: None,
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

#[cfg(test)]
mod tests {
    use croft_engine::{
        Capabilities, CpuProfile, EngineError, Missing, Partition, PartitionConfig,
    };

    use super::*;

    /// An engine that is only asked.
    struct Fake {
        name: &'static str,
        unfit: Option<&'static str>,
        max_vcpus: u32,
        refuses: Option<CpuModel>,
    }

    impl Engine for Fake {
        fn name(&self) -> &'static str {
            self.name
        }

        fn probe(&self) -> Fitness {
            match self.unfit {
                None => Fitness::Fit(format!("{} is here", self.name)),
                Some(why) => Fitness::Unfit(why.to_owned()),
            }
        }

        fn capabilities(&self) -> Capabilities {
            Capabilities {
                max_vcpus: self.max_vcpus,
                physical_bits: 40,
                data_breakpoints: true,
            }
        }

        fn profile(&self, model: CpuModel, _: Topology) -> Result<CpuProfile, Vec<Missing>> {
            if self.refuses == Some(model) {
                return Err(vec![Missing {
                    feature: "a feature",
                    lacking: "host",
                }]);
            }
            Ok(CpuProfile {
                model,
                leaves: Vec::new(),
                xcr0: 1,
                arch_capabilities: 0,
                tsc_khz: 1_000_000,
                physical_bits: 40,
            })
        }

        fn partition(&self, _: PartitionConfig) -> Result<Arc<dyn Partition>, EngineError> {
            Err(EngineError::Unsupported("only asked".to_owned()))
        }
    }

    fn kvm() -> Fake {
        Fake {
            name: "kvm",
            unfit: None,
            max_vcpus: 4,
            refuses: Some(CpuModel::SoftwareFast),
        }
    }

    /// What is picked with this KVM beside a software engine that can all.
    fn with_kvm(kvm: Fake, wanted: Wanted) -> Result<(&'static str, String), String> {
        let software = Fake {
            name: "software",
            max_vcpus: 254,
            refuses: None,
            ..self::kvm()
        };
        let candidate = |engine: Fake, default_model, choice| Candidate {
            engine: Box::new(engine),
            default_model,
            choice,
            statistics: None,
        };
        let candidates = vec![
            candidate(kvm, CpuModel::Host, EngineChoice::Kvm),
            candidate(software, CpuModel::SoftwareFast, EngineChoice::Software),
        ];
        pick(candidates, wanted).map(|chosen| (chosen.engine.name(), chosen.reason))
    }

    const AUTO: Wanted = Wanted {
        choice: EngineChoice::Auto,
        software: SoftwareSpec {
            code_cache: 1 << 20,
            interpret: false,
            verify_code: false,
            stats: false,
        },
        model: None,
        vcpus: 1,
    };

    #[test]
    fn auto_takes_kvm_where_it_is_fit() {
        let (name, reason) = with_kvm(kvm(), AUTO).unwrap();
        assert_eq!((name, reason.as_str()), ("kvm", "kvm is here"));
    }

    /// A PVM device, no permission, no device: software, and the reason why
    /// it is not KVM.
    #[test]
    fn auto_takes_software_where_kvm_is_unfit() {
        for why in [
            "it emulates kernel code (PVM)",
            "no permission",
            "no /dev/kvm",
        ] {
            let unfit = || Fake {
                unfit: Some(why),
                ..kvm()
            };
            let (name, reason) = with_kvm(unfit(), AUTO).unwrap();
            assert_eq!(name, "software");
            let expected = format!("software is here; not engine kvm: {why}");
            assert_eq!(reason, expected);
            let asked = Wanted {
                choice: EngineChoice::Kvm,
                ..AUTO
            };
            assert_eq!(with_kvm(unfit(), asked), Err(format!("engine kvm: {why}")));
        }
    }

    #[test]
    fn auto_takes_the_engine_that_honours_the_machine() {
        let many = Wanted { vcpus: 5, ..AUTO };
        let (name, reason) = with_kvm(kvm(), many).unwrap();
        assert_eq!(name, "software");
        assert!(reason.contains("at most 4 vCPUs"), "{reason}");
        let fast = Wanted {
            model: Some(CpuModel::SoftwareFast),
            ..AUTO
        };
        let (name, reason) = with_kvm(kvm(), fast).unwrap();
        assert_eq!(name, "software");
        assert!(reason.contains("software-fast needs a feature"), "{reason}");
        let too_many = Wanted { vcpus: 255, ..AUTO };
        let text = with_kvm(kvm(), too_many).unwrap_err();
        assert!(text.contains("kvm") && text.contains("software"), "{text}");
    }

    #[test]
    fn an_engine_that_was_asked_for_is_taken() {
        for (choice, expected) in [
            (EngineChoice::Kvm, "kvm"),
            (EngineChoice::Software, "software"),
        ] {
            let wanted = Wanted { choice, ..AUTO };
            assert_eq!(with_kvm(kvm(), wanted).unwrap().0, expected);
        }
        // It says itself what it cannot do.
        let wanted = Wanted {
            choice: EngineChoice::Kvm,
            vcpus: 5,
            ..AUTO
        };
        assert_eq!(with_kvm(kvm(), wanted).unwrap().0, "kvm");
    }
}
