//! Where `passt` is.

use std::env;
use std::path::PathBuf;

use rustix::fs::{Access, access};

/// Name of the program.
pub const PROGRAM: &str = "passt";
/// Where it is looked for besides `PATH`, which of services is short.
const DIRECTORIES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// The host has no passt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the user network needs passt, and there is none on this host; \
     install it ('apt install passt'), or choose another network with --net (--net none: no NIC)"
)]
pub struct Missing;

/// Finds passt in `PATH` and the usual directories.
pub fn find() -> Result<PathBuf, Missing> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(DIRECTORIES.map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(PROGRAM))
        .find(|program| program.is_file() && access(program, Access::EXEC_OK).is_ok())
        .ok_or(Missing)
}
