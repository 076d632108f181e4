//! Where `passt` and `pasta` are.

use std::env;
use std::fmt;
use std::path::PathBuf;

use rustix::fs::{Access, access};

/// Where they are looked for besides `PATH`, which of services is short.
const DIRECTORIES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// One program with two names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// For machines.
    Passt,
    /// For containers.
    Pasta,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Program::Passt => "passt",
            Program::Pasta => "pasta",
        })
    }
}

/// The host does not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the user network needs {0}, and there is none on this host; \
     install it ('apt install passt'), or choose another network with --net (--net none: no NIC)"
)]
pub struct Missing(Program);

/// Finds it in `PATH` and the usual directories.
pub fn find(program: Program) -> Result<PathBuf, Missing> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(DIRECTORIES.map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program.to_string()))
        .find(|program| program.is_file() && access(program, Access::EXEC_OK).is_ok())
        .ok_or(Missing(program))
}
