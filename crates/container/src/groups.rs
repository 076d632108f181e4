//! The control groups that a container's processes are put into, as open
//! descriptors: who makes them and sets their limits is `croft-isolate`.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Groups to be in. Without any a container stays in its maker's.
#[derive(Debug, Default)]
pub struct Groups {
    /// Directory of the group of version 2: the clone begins in it.
    pub unified: Option<OwnedFd>,
    /// `tasks` files of version 1, open for writing: the clone writes itself
    /// into each.
    pub tasks: Vec<OwnedFd>,
    /// What a mount of type `cgroup` shows, one for each hierarchy.
    pub views: Vec<View>,
}

/// One hierarchy, as a container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its directory in the container's `/sys/fs/cgroup`: `memory`,
    /// `cpu,cpuacct`, `systemd`, `unified`; empty for a host that has version 2
    /// alone.
    pub name: String,
    /// Options of its mount (`memory`, `none,name=systemd`); none for version 2.
    pub options: Option<String>,
    /// The container's own group in it, on the host.
    pub path: PathBuf,
}
