//! `croft oci`: the OCI runtime under another name.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use croft_api::programs;

use crate::exit::Exit;
use crate::say;

/// Becomes `croft-oci`; comes back only if that cannot be.
pub fn run(words: &[OsString]) -> Exit {
    let why = match programs::find("croft-oci") {
        Ok(program) => {
            let error = Command::new(&program).args(words).exec();
            format!("cannot run {}: {error}", program.display())
        }
        Err(missing) => missing,
    };
    say::line(&format!("croft: {why}"));
    Exit::Failed
}
