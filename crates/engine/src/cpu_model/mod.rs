//! CPU models: the processor a machine is promised.
//!
//! A model belongs to the machine, not to the engine. An engine turns it into
//! a [`CpuProfile`], or refuses with the list of what it cannot honour.

mod build;
pub mod features;
mod host;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use build::{EngineOffer, build};
pub use features::{Feature, Features, feature};
pub use host::HostFeatures;

/// The named models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// Everything this host and engine have; not movable.
    Host,
    /// A fixed, honest x86-64-v3 processor, movable between engines and hosts.
    PortableV1,
    /// For the software engine only: says that it needs none of the
    /// mitigations that only real silicon needs. Never restored on hardware.
    SoftwareFast,
}

/// An unknown model name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unknown CPU model '{0}'; known are host, portable-v1, software-fast")]
pub struct UnknownModel(String);

impl FromStr for CpuModel {
    type Err = UnknownModel;

    fn from_str(name: &str) -> Result<Self, UnknownModel> {
        match name {
            "host" => Ok(CpuModel::Host),
            "portable-v1" => Ok(CpuModel::PortableV1),
            "software-fast" => Ok(CpuModel::SoftwareFast),
            _ => Err(UnknownModel(name.to_owned())),
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CpuModel::Host => "host",
            CpuModel::PortableV1 => "portable-v1",
            CpuModel::SoftwareFast => "software-fast",
        })
    }
}

/// Something a model promises that an engine or host does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Feature name as in `/proc/cpuinfo`.
    pub feature: &'static str,
    /// Who lacks it: `host` or the engine's name.
    pub lacking: &'static str,
}

/// How vCPUs are presented: one package, one thread a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
}

/// One CPUID leaf. Values that differ between vCPUs (APIC ids) or with the
/// guest's state (OSXSAVE, XSAVE size) are filled in by the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// Input EAX.
    pub function: u32,
    /// Input ECX, where the leaf has sub-leaves.
    pub index: Option<u32>,
    /// Outputs.
    pub eax: u32,
    /// Output EBX.
    pub ebx: u32,
    /// Output ECX.
    pub ecx: u32,
    /// Output EDX.
    pub edx: u32,
}

/// A model made concrete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuProfile {
    /// Which model this is.
    pub model: CpuModel,
    /// CPUID leaves, ordered.
    pub leaves: Vec<CpuidLeaf>,
    /// Bits that XCR0 may have.
    pub xcr0: u64,
    /// IA32_ARCH_CAPABILITIES, when CPUID announces it.
    pub arch_capabilities: u64,
    /// Guest TSC frequency in kHz.
    pub tsc_khz: u32,
    /// Guest-physical address bits.
    pub physical_bits: u8,
}

impl CpuProfile {
    /// The leaf for `function` and `index`, if the model has it.
    pub fn leaf(&self, function: u32, index: u32) -> Option<&CpuidLeaf> {
        self.leaves
            .iter()
            .find(|leaf| leaf.function == function && leaf.index.is_none_or(|i| i == index))
    }
}
