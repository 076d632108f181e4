//! What Croft's processes say to each other.
//!
//! ```text
//! croft ──[monitor protocol]──► croft-monitor ──[vmm protocol]──► croft-vmm
//!   ╚═════════ console ═══════════════╩═════════ console ════════════╝
//! ```
//!
//! Every arrow is a pair of connected, unnamed sockets: nothing appears in a
//! file system, and the death of either end is the other end's end of file.
//! A third protocol ([`control`]) is for commands that come later, at a socket
//! with a path, which every instance has, and a machine in the foreground if
//! asked for.
//! A fourth, [`agent`], goes into the guest.
//! The thin arrows carry framed JSON messages ([`wire`], [`mod@channel`]) and
//! descriptors; their first message, in both directions, states protocol and
//! version ([`Hello`]). The double line is a byte stream of its own for each
//! direction, so that a stalled terminal fills two socket buffers and then
//! holds back the guest's UART, while requests such as "stop" still pass.

pub mod agent;
pub mod channel;
pub mod container;
pub mod control;
pub mod disk;
pub mod engines;
pub mod hello;
pub mod instance;
pub mod jail;
pub mod machine;
pub mod monitor;
pub mod net;
pub mod outcome;
pub mod programs;
pub mod saved;
pub mod vmm;
pub mod wire;

pub use channel::{Receiver, Sender, channel, pair};
pub use container::{ContainerLimits, ContainerSpec};
pub use engines::EngineReport;
pub use hello::{Hello, Protocol};
pub use instance::{Phase, RestartPolicy, Status};
pub use machine::{CpuModel, EngineChoice, MachineSpec, SoftwareSpec};
pub use outcome::Outcome;
pub use wire::WireError;
