//! The jail of a payload: what keeps a process that runs a guest from
//! everything but what it was handed.
//!
//! ```text
//! monitor                            payload
//!    │ Launch::start                    │ one thread, nothing of the guest's yet
//!    ├─ clone: own namespaces ─────────►│
//!    ├─ ids, control group              │
//!    ├─ exec ──────────────────────────►│ confine: empty root, ids, limits, no
//!    │                                  │   capabilities, no new privileges
//!    ├─ descriptors ───────────────────►│ seal: landlock, filter of role setup,
//!    │                                  │   the thread that makes threads
//!    │                                  │ threads::assume(Owner): the machine is
//!    │                                  │   made, no more executable memory
//!    │                                  │ threads::spawn(role): each thread
//!    │                                  │   narrows itself
//! ```
//!
//! * [`launch`] starts the payload, [`cgroup`] limits it from outside.
//! * [`mod@confine`] and [`mod@landlock`] take away what it could reach.
//! * [`table`] lists the system calls of each thread's [`role`]; [`filter`]
//!   makes seccomp programs of it, [`threads`] puts them on, [`trap`] names
//!   the call that was refused.
//!
//! What a host does not have is left out and named ([`report`]); the rest of
//! the jail is put on all the same. Only the filters are never left out.

#![allow(unsafe_code)]

pub mod apparmor;
pub mod capabilities;
pub mod cgroup;
pub mod cgroups;
pub mod confine;
pub mod filter;
pub mod kvm;
pub mod landlock;
pub mod launch;
pub mod report;
pub mod role;
pub mod seccomp;
pub mod table;
pub mod threads;
pub mod trap;

pub use cgroup::{ControlGroup, Limits};
pub use confine::confine;
pub use launch::{Child, Launch, LaunchError};
pub use report::{Part, Piece};
pub use role::Role;
pub use threads::{JailError, Wants, assume, seal, spawn, spawn_sized};
