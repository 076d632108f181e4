//! What `croft-vmm --engines` prints: the engines of this build, best first,
//! as a JSON array of [`EngineReport`].

use serde::{Deserialize, Serialize};

/// The argument that asks for it.
pub const ARGUMENT: &str = "--engines";

/// An engine, and whether it can run machines on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    /// Its name, as in `--engine`.
    pub engine: String,
    /// Whether it can.
    pub fit: bool,
    /// With what it can; or why not, and what to do about it.
    pub text: String,
}
