//! What a container is asked to be, as configuration and protocols carry it.
//!
//! Paths without a leading slash are in the instance's directory. Whatever a
//! container sees is spelled as UTF-8: so are the runtime's own descriptions
//! (OCI runtime-spec, `config.md`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Ids of a container that has a user namespace of its own: as many as
/// systemd gives (its `UIDS-GIDS.md`), and 16-bit programs can use.
pub const IDS: u32 = 65_536;
/// Most processes where nobody says how many: an accident with fork does not
/// take the host's.
pub const PIDS: u64 = 4096;
/// Most arguments, variables, volumes or devices that are taken.
pub const LIST_MAX: usize = 4096;
/// Thousandths of a processor in one.
pub const CPU: u32 = 1000;

/// What is run in a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerRole {
    /// One program, as its image says.
    #[default]
    Application,
    /// An init that brings up a whole system, with logins.
    System,
}

/// A container's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Its name, for people.
    pub name: String,
    /// What is run in it.
    pub role: ContainerRole,
    /// Directories with the layers of its root, the lowest first; they are
    /// never written to. What it changes is in the instance's directory.
    pub lowers: Vec<PathBuf>,
    /// Its root cannot be written to.
    pub read_only: bool,
    /// The host's ids that are its own from 0 on; without, its ids are the
    /// host's.
    pub ids: Option<IdRange>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory; `/` if empty.
    pub cwd: String,
    /// `user`, `user:group`, names or numbers; root if empty.
    pub user: String,
    /// Its standard streams are a terminal.
    pub tty: bool,
    /// Its standard input is open for whoever attaches, else there is none.
    pub stdin: bool,
    /// Its host name; the instance's name if empty.
    pub hostname: String,
    /// What of elsewhere is in it.
    pub volumes: Vec<Volume>,
    /// Directories in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// The host's devices in it, beside those that all have.
    pub devices: Vec<Device>,
    /// What it may use.
    pub limits: ContainerLimits,
    /// Limits of its processes: soft and hard, by name (`nofile`).
    pub rlimits: BTreeMap<String, (u64, u64)>,
    /// Capabilities (`NET_ADMIN`) beside the default ones.
    pub cap_add: Vec<String>,
    /// Capabilities of the default ones, or `ALL`, that it does not have.
    pub cap_drop: Vec<String>,
    /// Kernel settings of its own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// Programs that are set-id or have capabilities gain nothing.
    pub no_new_privileges: bool,
    /// Signal that asks it to end: a number. SIGTERM if not given, and what
    /// its init understands (SIGRTMIN+3) if it is a system.
    pub stop_signal: Option<i32>,
}

/// Ids of the host's that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// Whether both have an id in common.
    pub fn overlaps(self, other: IdRange) -> bool {
        let end = |range: IdRange| u64::from(range.first) + u64::from(range.count);
        u64::from(self.first) < end(other) && u64::from(other.first) < end(self)
    }
}

/// A file or directory from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// From where.
    pub source: VolumeSource,
    /// Where in the container, absolute.
    pub destination: String,
    /// It cannot be written to.
    #[serde(default)]
    pub read_only: bool,
}

/// What is behind a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeSource {
    /// This path of the host's.
    Path(PathBuf),
    /// A volume that Croft keeps, by its name.
    Named(String),
    /// A directory of the instance's own, with what the image has there.
    Own(String),
}

/// A directory in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where in the container, absolute.
    pub destination: String,
    /// Options of mount(8), as `size=64m`.
    #[serde(default)]
    pub options: Vec<String>,
}

/// A device of the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path on the host.
    pub source: PathBuf,
    /// Its path in the container.
    pub destination: String,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// What containers need.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// As this file says, in the form of the OCI's `linux.seccomp`.
    Profile(PathBuf),
}

/// What a container may use of the host; `None` is without limit, or the
/// host's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerLimits {
    /// Processors' time, in thousandths of one.
    pub cpus: Option<u32>,
    /// Share of the processors beside others, 1 to 10000; 100 is usual.
    pub cpu_weight: Option<u16>,
    /// Processors it may run on: `0-3,6`.
    pub cpuset: Option<String>,
    /// Most memory in bytes.
    pub memory: Option<u64>,
    /// From so many bytes on it is slowed down and its memory reclaimed.
    pub memory_high: Option<u64>,
    /// Most bytes of swap, beside its memory.
    pub swap: Option<u64>,
    /// Most processes and threads.
    pub pids: Option<u64>,
    /// Share of disks' time beside others, 1 to 10000; 100 is usual.
    pub io_weight: Option<u16>,
    /// What it may do with single disks.
    pub io: Vec<IoLimit>,
}

/// What a container may do with a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimit {
    /// The disk's device.
    pub device: PathBuf,
    /// Bytes read per second.
    pub read_bytes: Option<u64>,
    /// Bytes written per second.
    pub write_bytes: Option<u64>,
    /// Reads per second.
    pub reads: Option<u64>,
    /// Writes per second.
    pub writes: Option<u64>,
}

/// A command to run in a container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables beside the container's, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory; the container's if not given.
    pub cwd: Option<String>,
    /// As in [`ContainerSpec`]; the container's if not given.
    pub user: Option<String>,
    /// It gets a terminal of this size: columns and rows.
    pub tty: Option<(u16, u16)>,
    /// With all of the container's capabilities, as its root has them.
    pub privileged: bool,
}

/// What a container uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStats {
    /// When it was measured, in nanoseconds of the host's monotonic clock.
    pub time: u64,
    /// Processor time in nanoseconds.
    pub cpu: u64,
    /// Time for which it was held back by its limit, in nanoseconds.
    pub cpu_throttled: u64,
    /// Memory in bytes, without the cache that can be dropped at once.
    pub memory: u64,
    /// Memory's limit in bytes.
    pub memory_limit: Option<u64>,
    /// Swap in bytes.
    pub swap: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Their limit.
    pub pids_limit: Option<u64>,
    /// Bytes read from disks.
    pub io_read: u64,
    /// Bytes written to disks.
    pub io_written: u64,
    /// Bytes received.
    pub net_received: u64,
    /// Bytes sent.
    pub net_sent: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_overlap_or_do_not() {
        let range = |first, count| IdRange { first, count };
        assert!(range(10, 5).overlaps(range(14, 1)));
        assert!(!range(10, 5).overlaps(range(15, 1)));
        assert!(range(0, u32::MAX).overlaps(range(u32::MAX - 1, 9)));
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        let spec: ContainerSpec = serde_json::from_str(r#"{"command":["true"]}"#).unwrap();
        assert_eq!(spec.command, ["true"]);
        assert_eq!(spec.role, ContainerRole::Application);
        assert_eq!(spec.limits, ContainerLimits::default());
    }
}
