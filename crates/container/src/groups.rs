//! The control groups of a container, as whoever makes it hands them over.

use croft_isolate::cgroups::{Group, Hierarchies};

/// A group that is made and has its limits, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    /// The container's.
    pub group: &'a Group,
    /// The host's hierarchies: mounts of type `cgroup` show them.
    pub hierarchies: &'a Hierarchies,
}
