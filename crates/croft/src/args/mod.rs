//! The command line: a file for each command, and what they share.

pub mod doctor;
pub mod image;
pub mod machine;
pub mod output;
pub mod restore;
pub mod run;
pub mod save;
pub mod values;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::exit::HELP as EXIT_CODES;

/// Virtual servers, with or without hardware virtualization.
#[derive(Debug, Parser)]
#[command(name = "croft", version, propagate_version = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `croft` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a machine in the foreground, with its serial console on this terminal
    #[command(after_help = "See 'croft run --help' for examples and exit codes.",
              after_long_help = format!("{}\n\n{}\n\n{EXIT_CODES}", run::EXAMPLES, run::CONSOLE))]
    Run(Box<run::RunOptions>),
    /// Build, import, list and export the images that instances are made from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Save a running machine, with its memory, to a file, and end it
    #[command(after_help = save::HELP)]
    Save(save::SaveOptions),
    /// Let a saved machine go on in the foreground, as 'croft run' would run it
    #[command(after_help = restore::HELP)]
    Restore(Box<restore::RestoreOptions>),
    /// Say what of this host Croft can use, what is missing, and what to do
    #[command(after_help = doctor::HELP)]
    Doctor(doctor::DoctorOptions),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  croft completion bash > ~/.local/share/bash-completion/completions/croft"
    )]
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
