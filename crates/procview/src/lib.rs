//! Files of `/proc` as a container should see them: with its own limits.
//!
//! The kernel shows a container the host's memory, processors and uptime.
//! Programs that size themselves by those take too much, and end for want of
//! memory. Where lxcfs(1) is installed and runs, its files are used; else
//! those of our own file system:
//!
//! ```text
//! whoever starts a container          croft-procview            croft-procview worker
//!   │ mounts(): connect ────────────► │ of its own mount          │ answers the kernel's
//!   │                                 │ namespace, with           │ requests (FUSE): who reads?
//!   │ ◄── a descriptor for each file ─┤ the file system mounted   │ in which group? what
//!   ▼     (a detached mount)          │ respawns the worker ─────►│ bounds that?
//! the container's mount namespace     ▼
//! ```
//!
//! One pair of processes serves all containers of a host. It is started by the
//! first that needs it and stays. No mount of it is in the host's table: its
//! own namespace has it, and what a container gets is detached.
//!
//! The worker has no capabilities. It keeps no state but what it can make
//! again, so that another one takes over on the same descriptor when it dies;
//! containers notice nothing. When the server dies the worker goes on for the
//! containers that have the files, and the next container starts another
//! server. Only who kills both in one moment takes the files away from them.

pub mod client;
pub mod content;
pub mod fuse;
pub mod load;
pub mod reader;
pub mod serve;

pub use client::{Error, View, mounts, mounts_of};

/// A file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name here and in lxcfs's directory.
    pub name: &'static str,
    /// What it is mounted on in a container.
    pub destination: &'static str,
    /// Its path in lxcfs.
    pub lxcfs: &'static str,
}

const fn file(name: &'static str, destination: &'static str, lxcfs: &'static str) -> File {
    File {
        name,
        destination,
        lxcfs,
    }
}

/// All of them. The kernel knows each by its place in this list.
pub const FILES: [File; 8] = [
    file("meminfo", "/proc/meminfo", "proc/meminfo"),
    file("cpuinfo", "/proc/cpuinfo", "proc/cpuinfo"),
    file("stat", "/proc/stat", "proc/stat"),
    file("uptime", "/proc/uptime", "proc/uptime"),
    file("loadavg", "/proc/loadavg", "proc/loadavg"),
    file("swaps", "/proc/swaps", "proc/swaps"),
    file("diskstats", "/proc/diskstats", "proc/diskstats"),
    file(
        "online",
        "/sys/devices/system/cpu/online",
        "sys/devices/system/cpu/online",
    ),
];
