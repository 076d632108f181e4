//! How an instance ended.

use serde::{Deserialize, Serialize};

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset and the machine was told not to.
    Reset,
    /// The guest faulted while delivering a double fault.
    TripleFault {
        /// Its registers, as text.
        report: String,
    },
    /// The guest wrote to the debug-exit port of the test devices.
    DebugExit {
        /// The exit status it asks for, `(value << 1) | 1`; a process can
        /// pass on the low eight bits.
        status: u32,
    },
    /// A container's init exited.
    Exited {
        /// With this status.
        status: u8,
    },
    /// A container's init was killed.
    Killed {
        /// By this signal.
        signal: u8,
        /// For want of memory.
        out_of_memory: bool,
    },
    /// A container's program is not there (127), or cannot be executed (126).
    NotExecuted {
        /// Which of the two.
        status: u8,
        /// What was tried, and why it failed.
        message: String,
    },
    /// Somebody asked for it.
    Requested,
    /// It was saved, and can be restored.
    Saved,
    /// It never started: something in the configuration is wrong.
    Invalid {
        /// What, and the remedy.
        message: String,
    },
    /// Croft could not go on.
    Failed {
        /// Why.
        message: String,
    },
}
