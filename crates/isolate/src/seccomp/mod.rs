//! Filters of containers: OCI `LinuxSeccomp` made into programs for the
//! kernel (seccomp(2)), and a profile for those who bring none.
//!
//! ```text
//! LinuxSeccomp ──► rules, by number ──► ranges ──► tree ──► Program::install
//!  (a profile)      names, libseccomp's    classic BPF       in the child
//!                   meaning of them
//! ```

mod bpf;
mod error;
mod install;
#[cfg(any(test, feature = "oracle"))]
pub mod interpret;
mod names;
mod profile;
mod rules;
#[cfg(test)]
mod tests;
mod tree;

pub use error::Error;
pub use profile::default_profile;

use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use bpf::Instruction;
use rules::Rules;

/// A filter, ready for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
    /// Flags of seccomp(2).
    flags: u32,
    /// Where the descriptor of a filter that asks goes.
    listener: Option<Listener>,
}

/// Who is asked about calls of the action `SCMP_ACT_NOTIFY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Path of its socket (`listenerPath`).
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

    /// What it answers to a call: the value of `SECCOMP_RET_*`, `None` if the
    /// kernel would not take the program.
    #[cfg(any(test, feature = "oracle"))]
    pub fn answer(&self, call: &interpret::Call) -> Option<u32> {
        interpret::run(&self.instructions, call)
    }
}

/// Makes a program of a profile. Names of system calls that no architecture
/// of it has are left out, as the specification says.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, Error> {
    let rules = Rules::new(profile)?;
    let metadata = profile.listener_metadata().clone().unwrap_or_default();
    let listener = match profile.listener_path() {
        Some(path) => Some(Listener {
            path: path.clone(),
            metadata,
        }),
        None if rules.asks => return Err(Error::NoListener),
        None if !metadata.is_empty() => return Err(Error::NoListenerForMetadata),
        None => None,
    };
    let instructions = tree::program(&rules);
    if instructions.len() > bpf::MOST {
        return Err(Error::TooLong(instructions.len()));
    }
    Ok(Program {
        instructions,
        flags: flags(profile, rules.asks),
        listener: listener.filter(|_| rules.asks),
    })
}

/// Flags of seccomp(2) (`linux/seccomp.h`).
fn flags(profile: &LinuxSeccomp, asks: bool) -> u32 {
    const TSYNC: u32 = 1;
    const LOG: u32 = 1 << 1;
    const SPEC_ALLOW: u32 = 1 << 2;
    const NEW_LISTENER: u32 = 1 << 3;
    const WAIT_KILLABLE_RECV: u32 = 1 << 5;
    let Some(said) = profile.flags() else {
        // Linux 5.16's own default, which costs nothing: before it, a filter
        // switched two mitigations on that slow everything down.
        return SPEC_ALLOW | if asks { NEW_LISTENER } else { 0 };
    };
    let flag = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
        // The kernel refuses it together with a listener, and there is one
        // thread when a container's filter is put on.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync if !asks => TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if asks => WAIT_KILLABLE_RECV,
        _ => 0,
    };
    let all = said.iter().map(flag).fold(0, |all, one| all | one);
    all | if asks { NEW_LISTENER } else { 0 }
}
