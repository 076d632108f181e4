//! What a machine is made from, and how it may end.

use std::fmt;

use croft_devices::virtio::console::PortConfig;
use croft_devices::virtio::net::NicOptions;
use croft_engine::CpuModel;

use crate::loader::Payload;
use crate::virtio::{DiskConfig, ShareConfig, VsockConfig};

/// What a machine is made from.
#[derive(Debug)]
pub struct MachineConfig {
    /// For messages.
    pub name: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// The processor it is promised.
    pub model: CpuModel,
    /// Kernel, initrd and command line.
    pub payload: Payload,
    /// Its disks, at most [`DISKS_MAX`](crate::DISKS_MAX).
    pub disks: Vec<DiskConfig>,
    /// Its NICs, at most [`NICS_MAX`](crate::NICS_MAX).
    pub nics: Vec<NicOptions>,
    /// The ports of its virtio console: a terminal first, then byte streams
    /// with names. No console without ports.
    pub ports: Vec<PortConfig>,
    /// Directories of the host's, at most
    /// [`SHARES_MAX`](crate::SHARES_MAX).
    pub shares: Vec<ShareConfig>,
    /// Its socket device, if it has one.
    pub vsock: Option<VsockConfig>,
    /// End instead of resetting.
    pub no_reboot: bool,
    /// Offer the devices that outside test suites need.
    pub test_devices: bool,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset under `no_reboot`.
    Reset,
    /// The guest faulted while delivering a double fault: its registers.
    TripleFault(String),
    /// A test suite ended with this exit status.
    DebugExit(u32),
    /// Somebody asked for it.
    Requested,
    /// It was saved, and goes on elsewhere.
    Saved,
    /// Croft could not go on: why.
    Failed(String),
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Its vCPUs execute.
    Running,
    /// Its vCPUs and its time stand still.
    Paused,
    /// It ended.
    Stopped,
}

/// The machine has ended, so that nothing can be asked of it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine has ended")]
pub struct Ended;

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
        })
    }
}
