//! The engine under test, on whatever KVM this host has.

use std::sync::Arc;

use croft_engine::{
    Capabilities, CpuModel, CpuProfile, Engine, EngineError, Fitness, Missing, Partition,
    PartitionConfig, Topology,
};
use croft_engine_kvm::KvmEngine;
use croft_engine_software::SoftwareEngine;

/// A KVM that emulates kernel code (PVM) announces too little for any model,
/// but makes machines of every model. This lets it, so that what it can do is
/// tested where nothing better is there.
#[derive(Default)]
pub struct Tested(KvmEngine);

impl Engine for Tested {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn probe(&self) -> Fitness {
        self.0.probe()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn profile(&self, model: CpuModel, topology: Topology) -> Result<CpuProfile, Vec<Missing>> {
        self.0.profile(model, topology).or_else(|missing| {
            let emulates = model == CpuModel::PortableV1 && is_emulating(&self.probe());
            match SoftwareEngine::new().profile(model, topology) {
                Ok(profile) if emulates => Ok(profile),
                _ => Err(missing),
            }
        })
    }

    fn partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, EngineError> {
        self.0.partition(config)
    }
}

/// Whether this is a KVM that emulates.
pub fn is_emulating(fitness: &Fitness) -> bool {
    matches!(fitness, Fitness::Unfit(text) if text.contains("PVM"))
}

/// The engine, or why tests that need one cannot run.
pub fn engine() -> Option<Tested> {
    let engine = Tested::default();
    match engine.profile(CpuModel::PortableV1, Topology { vcpus: 1 }) {
        Ok(_) => Some(engine),
        Err(missing) => {
            println!("skipped: {}; missing: {missing:?}", engine.probe());
            None
        }
    }
}
