//! Where programs of the system are.

use std::env;
use std::path::{Path, PathBuf};

/// Directories of system programs that are not in every user's path.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The path of a program; its name alone where it is in none of the
/// directories, which is an error when it is started.
pub fn path(program: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM.iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| Path::new(program).to_owned())
}
