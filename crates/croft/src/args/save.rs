//! `croft save`.

use std::ffi::OsString;

/// What follows the help.
pub const HELP: &str = "\
A machine in the foreground must have been started with --control. What its
disks contain is not in the file: leave them alone until the machine is
restored.

Exit codes:
  0  saved; a 'croft run' in the foreground has ended with status 6
  1  not saved; the machine goes on
  2  wrong usage; nothing was done

Example:
  croft run --kernel vmlinuz --disk root.img --cpu portable-v1 --control web.sock
  croft save web.sock web.state
  croft restore web.state";

/// `croft save`.
#[derive(Debug, clap::Args)]
pub struct SaveOptions {
    /// The instance's name, or the machine's control socket
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub socket: OsString,

    /// File to make; none may be there yet
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub file: OsString,
}
