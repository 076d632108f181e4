//! `croft doctor`.

use super::machine::Engine;
use super::output::OutputFormat;

/// What follows the help.
pub const HELP: &str = "\
Exit codes:
  0  machines can run here, on the engine that --engine names
  1  they cannot

Examples:
  croft doctor
  croft doctor --engine kvm > /dev/null && echo KVM can be used
  croft doctor -o json";

/// `croft doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorOptions {
    /// Succeed only if this engine can run machines; auto is any
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,

    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}
