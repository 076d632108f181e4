//! Containers: processes with a root, ids and a view of the host of their own.
//!
//! What a container is, is said in one form, the OCI runtime-spec's
//! (`config.md`, `config-linux.md`), whoever asks: the monitor makes a
//! [`Spec`] of an instance, `croft-oci` reads a bundle's.
//!
//! ```text
//! caller (one thread)                     init (the clone)
//!   │ create                                │
//!   ├─ plan: check the spec, open whatever  │
//!   │    of the host is needed              │
//!   ├─ clone3, all namespaces ─────────────►│
//!   ├─ id maps, limits above the host's ───►│
//!   │◄─────────────────────────── prepared ─┤ in its namespaces
//!   ├─ hooks: prestart, createRuntime ─────►│
//!   │                                       ├─ root, mounts, devices, hooks:
//!   │◄──────────────── created (terminal) ──┤    createContainer
//!   │ Created                               │ waits at its gate
//!   ├─ start ──────────────────────────────►│
//!   │                                       ├─ rights, filters, hooks:
//!   │◄──── end of file, or what is wrong ───┤    startContainer, exec
//!   ├─ hooks: poststart                     │ the container's program
//! ```
//!
//! * [`create`] makes a container that has not started, [`exec`] adds a
//!   program to one that runs.
//! * Waiting, signals and the terminal's size are the caller's, by the
//!   descriptors that it gets.
//! * What makes containers is safe from them: see `springboard.rs`, and
//!   [`needs_seal`] for what is not so.
//! * Whatever is wrong before the program is there is an [`Error`], with the
//!   exit code that it means.

#![allow(unsafe_code)]

mod aside;
mod channel;
mod create;
mod error;
mod exec;
mod groups;
pub mod hooks;
mod ids;
mod init;
mod launch;
mod memory;
mod namespaces;
pub mod oci;
mod plan;
mod root;
mod seal;
mod signal;
mod springboard;
mod sys;

pub use aside::aside;
pub use create::{
    Cover, Create, Created, Entries, Gate, OverlayRoot, Root, Stdio, create, create_with,
    start_through,
};
pub use error::{Error, Step};
pub use exec::{Exec, Joined, exec};
pub use groups::{Groups, View};
pub use ids::as_root_of;
pub use memory::{give_back_memory, share_memory};
pub use oci_spec::runtime::Spec;
pub use root::devices::allowed as allowed_devices;
pub use seal::{needs_seal, seal};
pub use signal::{SIGNAL_MAX, signal};
