//! Why a machine was not made.

use croft_devices::BusError;
use croft_engine::{CpuModel, EngineError, Missing};
use croft_memory::MemoryError;
use thiserror::Error;

use crate::loader::LoadError;
use crate::memory_map::SizeError;

/// Why a machine was not made. Nothing of it is left.
#[derive(Debug, Error)]
pub enum MachineError {
    /// No vCPU, or more than there can be.
    #[error("{wanted} vCPUs asked for, from 1 to {most} are possible here; change --cpus")]
    Vcpus {
        /// Asked for.
        wanted: u32,
        /// Most that engine and ACPI tables allow.
        most: u32,
    },
    /// A memory size that cannot be had.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Something is wrong with kernel, initrd or command line.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The engine and this host do not have what the CPU model promises.
    #[error(
        "CPU model {model} needs what is not there: {}; choose another with --cpu",
        list(missing)
    )]
    Model {
        /// The model asked for.
        model: CpuModel,
        /// Everything that is missing.
        missing: Vec<Missing>,
    },
    /// Guest memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Two devices at one place.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl MachineError {
    /// True when another configuration would have done; false when the host
    /// failed.
    pub fn is_configuration(&self) -> bool {
        match self {
            MachineError::Bus(_) => false,
            MachineError::Engine(error) => !matches!(error, EngineError::Host { .. }),
            _ => true,
        }
    }
}

fn list(missing: &[Missing]) -> String {
    let mut text = String::new();
    for (index, missing) in missing.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        text.push_str(missing.feature);
        text.push_str(" (");
        text.push_str(missing.lacking);
        text.push(')');
    }
    text
}
