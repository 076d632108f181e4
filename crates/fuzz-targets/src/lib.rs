//! What the fuzzers call.
//!
//! Each target is a function of some bytes that panics when Croft does not
//! keep its promise about what those bytes stand for: guest code and state, a
//! kernel file, a guest's accesses to devices, a peer's messages. `fuzz/`
//! hands them libFuzzer's inputs; `tests/smoke.rs` the same number of
//! pseudo-random ones ([`corpus`]) at every `make test`.

pub mod bootdisk;
pub mod corpus;
pub mod devices;
pub mod execute;
mod fence;
pub mod image;
mod input;
pub mod layer;
mod layout;
pub mod loader;
pub mod nic;
pub mod protocol;
pub mod qcow2;
pub mod saved;
pub mod seccomp;
pub mod share;
pub mod sockets;
pub mod virtio;
mod watchdog;
