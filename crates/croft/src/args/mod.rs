//! The command line: a file for each command, and what they share.

pub mod container;
pub mod container_values;
pub mod create;
pub mod disk;
pub mod doctor;
pub mod guest;
pub mod image;
pub mod instance;
pub mod machine;
pub mod net;
pub mod network;
pub mod nic;
pub mod output;
pub mod resize;
pub mod restore;
pub mod run;
pub mod running;
pub mod save;
pub mod ssh;
pub mod values;
pub mod volume;

use std::ffi::OsString;

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
    /// Make an instance from an image and run it; or run a kernel in the foreground. Containers
    /// have options of their own: 'croft run --container --help'
    #[command(after_help = "See 'croft run --help' for examples and exit codes.",
              after_long_help = format!("{}\n\n{}\n\n{}\n\n{}\n\n{EXIT_CODES}", run::EXAMPLES, disk::HELP, net::HELP, run::CONSOLE))]
    Run(Box<run::RunOptions>),
    /// Make an instance, and leave it. Containers have options of their own: 'croft create
    /// --container --help'
    #[command(after_help = "See 'croft create --help' for the options of disks and NICs, and examples.",
              after_long_help = format!("{}\n\n{}\n\n{}", disk::HELP, net::HELP, create::HELP))]
    Create(Box<create::CreateOptions>),
    /// Make a container from an image and run it
    #[command(hide = true, name = "run-container", bin_name = "croft run --container",
              override_usage = "croft run --container [OPTIONS] IMAGE [COMMAND]...",
              after_help = "See 'croft run --container --help' for examples and exit codes.",
              after_long_help = format!("{}\n\n{}", container::HELP, net::HELP))]
    RunContainer(Box<container::RunOptions>),
    /// Make a container from an image, and leave it
    #[command(hide = true, name = "create-container", bin_name = "croft create --container",
              override_usage = "croft create --container [OPTIONS] IMAGE [COMMAND]...",
              after_long_help = format!("{}\n\n{}", container::HELP, net::HELP))]
    CreateContainer(Box<container::CreateOptions>),
    /// Start instances
    #[command(after_help = instance::HELP)]
    Start(instance::StartOptions),
    /// Stop instances: press the power button, and after a time pull the plug
    #[command(after_help = instance::HELP)]
    Stop(instance::StopOptions),
    /// Stop instances and start them again
    #[command(after_help = instance::HELP)]
    Restart(instance::StopOptions),
    /// Hold instances: nothing in them executes and their time stands still
    #[command(after_help = instance::HELP)]
    Pause(instance::NamesOptions),
    /// Let held instances continue
    #[command(after_help = instance::HELP)]
    Resume(instance::NamesOptions),
    /// Delete instances with their disks
    #[command(after_help = instance::HELP)]
    Delete(instance::DeleteOptions),
    /// List the instances
    #[command(visible_alias = "ls")]
    List(instance::ListOptions),
    /// Tell all that is known of an instance
    Show(instance::ShowOptions),
    /// End instances at once, or send a container's first program a signal
    #[command(after_help = instance::HELP)]
    Kill(running::KillOptions),
    /// Change what a container may use, while it runs too
    #[command(after_help = running::SET_HELP)]
    Set(running::SetOptions),
    /// List a container's processes
    Top(running::TopOptions),
    /// Show what containers use
    Stats(running::StatsOptions),
    /// Print what an instance's console, or a container's program, has printed
    Logs(instance::LogsOptions),
    /// Look at an instance's console, and type; Ctrl-] leaves
    Console(instance::ConsoleOptions),
    /// Take part in a container's standard streams; Ctrl-] leaves
    Attach(running::AttachOptions),
    /// Run a command in an instance
    #[command(after_help = guest::HELP)]
    Exec(guest::ExecOptions),
    /// Run a login shell in an instance
    #[command(after_help = guest::HELP)]
    Shell(guest::ShellOptions),
    /// Copy a file or directory into an instance or out of one
    #[command(after_help = guest::HELP)]
    Cp(guest::CpOptions),
    /// Log in to an instance by ssh, without a network
    #[command(after_help = ssh::HELP)]
    Ssh(ssh::SshOptions),
    /// Wait until a machine is ready, or a container has ended
    #[command(after_help = instance::WAIT_HELP)]
    Wait(instance::WaitOptions),
    /// Start all instances that were created with --autostart
    #[command(after_help = instance::AUTOSTART_HELP)]
    Autostart(instance::AutostartOptions),
    /// Give an instance disks, take them away, make its own larger
    #[command(subcommand)]
    Disk(resize::DiskCommand),
    /// Give an instance NICs, take them away, pull and plug their cables
    #[command(subcommand)]
    Nic(nic::NicCommand),
    /// Build, pull, import, list and export the images that instances are made from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Make, list and delete the volumes of containers
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Make and change networks of instances: addresses, names, a firewall (for root)
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Save a running machine, with its memory, to a file, and end it
    #[command(after_help = save::HELP)]
    Save(save::SaveOptions),
    /// Let a saved machine go on in the foreground, as 'croft run' would run it
    #[command(after_help = restore::HELP)]
    Restore(Box<restore::RestoreOptions>),
    /// Say what of this host Croft can use, what is missing, and what to do
    #[command(after_help = doctor::HELP)]
    Doctor(doctor::DoctorOptions),
    /// Run containers that OCI bundles describe: the command line of an OCI runtime, croft-oci
    #[command(disable_help_flag = true)]
    Oci {
        /// What croft-oci is to do; 'croft oci --help' tells
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
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

    #[test]
    fn words_of_the_oci_runtime_are_its_own() {
        let words = [
            "croft", "oci", "--root", "/r", "kill", "--all", "box", "--help",
        ];
        let Command::Oci { words: passed } = Args::parse_from(words).command else {
            panic!("another command");
        };
        assert_eq!(passed, words[2..]);
    }
}
