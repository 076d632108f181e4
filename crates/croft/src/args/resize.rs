//! `croft disk`.

use clap::Subcommand;

use super::instance::NameOptions;
use crate::size;

/// What follows the help of `croft disk resize`.
pub const HELP: &str = "\
The disk is that which the instance has of its own. A guest that runs sees the
new size at once; one that is stopped has it from its next start on. Images that
Croft builds grow their root file system at every boot; in others that is the
guest's affair.

Exit codes:
  0  done
  1  it could not be done
  2  wrong usage, or there is no such instance; nothing was done

Example:
  croft disk resize web 20G";

/// What can be done to disks of instances.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Make the instance's own disk larger
    #[command(after_help = HELP)]
    Resize(ResizeOptions),
}

/// `croft disk resize`.
#[derive(Debug, clap::Args)]
pub struct ResizeOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Its new size, not less than it is
    #[arg(value_parser = size::parse)]
    pub size: u64,
}
