//! Control groups: what a container or a payload may take of the host, and
//! what it has taken.
//!
//! ```text
//! Hierarchies::find      one read of mountinfo: version 2, version 1, both
//!      │
//!      ▼
//! Group::create ── Group::open         a directory in each hierarchy, kept open
//!      │ apply      limits: OCI LinuxResources → files; again for an update
//!      │ entry ───► clone3(CLONE_INTO_CGROUP) and Entry::enter in the child
//!      │ delegate   a part of it belongs to the container's own ids
//!      │ freeze, thaw, processes, stats, events
//!      │ kill
//!      ▼
//! Group::delete          with the groups that were made beneath it
//! ```
//!
//! A controller is in version 2 or in a hierarchy of version 1, never in both
//! (cgroups(7)); each part of this module knows the files of either. What a
//! host lacks, or what was not delegated to a user, is left out and named
//! ([`LeftOut`]): whoever asked for it decides whether that is an error.

mod bounds;
mod controllers;
mod create;
mod delegate;
mod dir;
mod entry;
mod error;
mod events;
mod find;
mod freeze;
mod group;
pub mod limits;
mod stats;
mod tree;

pub use bounds::Bounds;
pub use controllers::Controllers;
pub use entry::Entry;
pub use error::{Error, LeftOut};
pub use events::{Event, Events};
pub use find::{Hierarchies, Hierarchy, Version};
pub use group::Group;
pub use stats::{Cpu, HugePages, Io, Memory, Pids, Pressure, Stats};
