//! Filters of containers: OCI `LinuxSeccomp` made into programs for the
//! kernel (seccomp(2)), and a profile for those who bring none.

mod bpf;
mod error;
mod install;
mod profile;

pub use error::Error;
pub use profile::default_profile;

use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;

use bpf::Instruction;

/// A filter, ready for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
    /// Flags of seccomp(2).
    flags: u32,
    /// Where the descriptor of a filter that asks goes (`listenerPath`).
    listener: Option<Listener>,
}

/// Who is asked about calls of the action `SCMP_ACT_NOTIFY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Path of its socket.
    pub path: PathBuf,
    /// What it is told with the descriptor.
    pub metadata: String,
}

impl Program {
    /// How many instructions it has; the kernel takes 4096.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Whether it has none, which the kernel refuses.
    pub fn is_empty(&self) -> bool {
        self.instructions.is_empty()
    }

    /// Who gets the descriptor that [`Program::install`] returns.
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }
}

/// Makes a program of a profile. Names of system calls that no architecture
/// of it has are left out, as the specification says.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, Error> {
    let _ = profile;
    Err(Error::Unfinished)
}
