//! `croft volume`.

use clap::Subcommand;

use super::output::OutputFormat;

/// `croft volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create {
        /// Its name
        name: String,
    },
    /// List the volumes
    #[command(visible_alias = "ls")]
    List {
        /// How to print it
        #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
        output: OutputFormat,
    },
    /// Tell all that is known of a volume
    Show {
        /// Its name
        name: String,

        /// How to print it
        #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
        output: OutputFormat,
    },
    /// Delete volumes that no instance uses, with all that is in them
    #[command(visible_alias = "rm")]
    Delete {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}
