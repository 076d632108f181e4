//! Why a machine was not made.

use std::io;

use croft_devices::BusError;
use croft_devices::pci::PciError;
use croft_devices::virtio::fs::ShareError;
use croft_disk::OpenError;
use croft_engine::{CpuModel, EngineError, Missing};
use croft_memory::MemoryError;
use thiserror::Error;

use crate::loader::LoadError;
use crate::memory_map::SizeError;
use crate::saved::SavedError;
use crate::virtio::{DISKS_MAX, NICS_MAX, SHARES_MAX};
use croft_devices::virtio::console::{NAME_MAX, PORTS_MAX};

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
    /// A saved machine's CPU model is not to be had here.
    #[error(
        "the machine was saved with CPU model {model}, which the {engine} engine does not honour here: {}; \
         restore it on the engine it ran on, and run machines that shall move with --cpu portable-v1",
        list(missing)
    )]
    SavedModel {
        /// Its model.
        model: CpuModel,
        /// The engine that was to run it.
        engine: &'static str,
        /// Everything that is missing.
        missing: Vec<Missing>,
    },
    /// A saved machine's processor is another one here.
    #[error(
        "the machine was saved with CPU model {model}, which is another processor on the {engine} engine of this host: {differs}; \
         restore it on the engine and host it ran on, and run machines that shall move with --cpu portable-v1"
    )]
    Moved {
        /// Its model.
        model: CpuModel,
        /// The engine that was to run it.
        engine: &'static str,
        /// What differs.
        differs: String,
    },
    /// A saved machine's state cannot be used.
    #[error("the saved machine: {0}")]
    Saved(#[from] SavedError),
    /// Guest memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Two devices at one place.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A slot that cannot take a device.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// More disks than slots.
    #[error("{0} disks asked for, at most {DISKS_MAX} are possible; leave out some --disk")]
    Disks(usize),
    /// A place that is none.
    #[error("there is no place for disk{0}; they are disk0 to disk{last}", last = DISKS_MAX - 1)]
    DiskPlace(u8),
    /// Two disks in one place.
    #[error("two disks are to be disk{0}; give each a place of its own")]
    DiskTwice(u8),
    /// A file that cannot be a disk.
    #[error("disk {name} {source}")]
    Disk {
        /// As the user wrote it.
        name: String,
        /// Why not.
        source: OpenError,
    },
    /// More NICs than slots.
    #[error("{0} NICs asked for, at most {NICS_MAX} are possible; leave out some --net")]
    Nics(usize),
    /// Two NICs of one name.
    #[error("two NICs have the name '{0}'; give each a name of its own")]
    NicTwice(String),
    /// More ports than a console can have.
    #[error("{0} console ports asked for, at most {PORTS_MAX} are possible; leave out some --port")]
    Ports(usize),
    /// A port's name that is too long.
    #[error("port '{0}' has a name of more than {NAME_MAX} bytes; shorten it")]
    PortName(String),
    /// More shares than slots.
    #[error("{0} shares asked for, at most {SHARES_MAX} are possible; leave out some --share")]
    Shares(usize),
    /// Two shares of one tag.
    #[error("two shares have the tag '{0}'; give each a tag of its own")]
    ShareTwice(String),
    /// A directory that cannot be shared.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The host refused what a device needs.
    #[error("device {name} cannot be made: {source}")]
    Device {
        /// Its name on the bus.
        name: String,
        /// What the host answered.
        source: io::Error,
    },
}

impl MachineError {
    /// True when another configuration would have done; false when the host
    /// failed.
    pub fn is_configuration(&self) -> bool {
        match self {
            MachineError::Bus(_) | MachineError::Pci(_) | MachineError::Device { .. } => false,
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
