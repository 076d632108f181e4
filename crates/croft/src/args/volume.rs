//! `croft volume`.

use clap::Subcommand;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use croft_host::Directories;
use croft_image::volume::Volumes;

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
        #[arg(add = ArgValueCandidates::new(names))]
        name: String,

        /// How to print it
        #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
        output: OutputFormat,
    },
    /// Delete volumes that no instance uses, with all that is in them
    #[command(visible_alias = "rm")]
    Delete {
        /// Their names
        #[arg(required = true, add = ArgValueCandidates::new(names))]
        names: Vec<String>,
    },
}

/// The volumes there are, for a shell's completion.
fn names() -> Vec<CompletionCandidate> {
    let Ok(directories) = Directories::find() else {
        return Vec::new();
    };
    let root = directories.volumes();
    // Nothing is made by a question.
    let volumes = root
        .is_dir()
        .then(|| Volumes::open(&root).ok()?.list().ok());
    let volumes = volumes.flatten().into_iter().flatten().flatten();
    volumes
        .map(|volume| CompletionCandidate::new(volume.name))
        .collect()
}
