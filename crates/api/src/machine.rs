//! What a machine is asked to be, as every protocol carries it.

use serde::{Deserialize, Serialize};

/// Which engine executes the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineChoice {
    /// The best one that works here.
    Auto,
    /// The software engine.
    Software,
    /// Hardware virtualization.
    Kvm,
    /// The software engine, comparing each block that it translates with its
    /// interpreter.
    Lockstep,
}

/// The processor a machine is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// Everything that host and engine have.
    Host,
    /// A fixed x86-64-v3 processor, movable between engines and hosts.
    PortableV1,
    /// The software engine's own: spares the guest the mitigations that only
    /// real silicon needs.
    SoftwareFast,
}

/// How the software engine runs a machine. Other engines have no use for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SoftwareSpec {
    /// Room for translated code in bytes.
    pub code_cache: u64,
    /// Translate nothing.
    pub interpret: bool,
    /// Prove that translated code is isolated before it runs.
    pub verify_code: bool,
    /// Count, and print the counts at the end.
    pub stats: bool,
}

impl Default for SoftwareSpec {
    fn default() -> Self {
        SoftwareSpec {
            code_cache: 64 << 20,
            interpret: false,
            verify_code: false,
            stats: false,
        }
    }
}

/// A machine's configuration, apart from the files it is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Its name, for people.
    pub name: String,
    /// What runs it.
    pub engine: EngineChoice,
    /// How, if that is the software engine.
    #[serde(default)]
    pub software: SoftwareSpec,
    /// The CPU model; the engine's default when not given.
    pub cpu: Option<CpuModel>,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Kernel command line.
    pub append: String,
    /// End instead of resetting.
    pub no_reboot: bool,
    /// Offer the devices that outside test suites need (isa-debug-exit and
    /// the test device's ports).
    pub test_devices: bool,
    /// Names of its virtio console's ports, of which the first is a terminal
    /// (the guest's `hvc0`) and the others are byte streams. No console
    /// without names.
    #[serde(default)]
    pub ports: Vec<String>,
    /// The guest's context id, 3 or more, if it has a socket device (vsock).
    #[serde(default)]
    pub vsock: Option<u32>,
}
