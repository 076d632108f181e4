//! At a running machine's control socket, a file that its owner can connect
//! to: between a command of `croft` and the machine's monitor.
//!
//! ```text
//! croft save                     monitor
//!    │── Save + descriptor ─────────►│   the vmm writes the state
//!    │◄──── Saved or Failed ─────────│   Saved: the machine has ended
//! ```
//!
//! A machine that is being saved does not care whether whoever asked for it
//! stays: a save ends by itself.

use serde::{Deserialize, Serialize};

use crate::hello::Protocol;

/// What this build speaks.
pub const PROTOCOL: Protocol = Protocol {
    name: "croft-control",
    version: 1,
};

/// A command to the monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Save the machine to the regular file whose descriptor comes along,
    /// open for writing, and end it.
    Save,
}

impl Request {
    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Request::Save => 1,
        }
    }
}

/// The monitor to the command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// It is saved, and nothing of it runs any more.
    Saved,
    /// It was not saved.
    Failed {
        /// Why not.
        message: String,
    },
}
