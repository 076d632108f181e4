//! `croft create`, and what `croft run` shares with it.

use std::path::PathBuf;

use clap::{ArgGroup, ValueEnum};
use croft_api::disk::OnIoError;

use super::disk::parse_on_io_error;
use super::machine::MachineOptions;
use super::values::parse_name;
use crate::size;

/// What follows the help.
pub const HELP: &str = "\
An instance of an image has a disk of its own, which takes what the guest
changes. Files that are named by --kernel, --initrd, --disk and --share are used
where they are; they must stay there.

Examples:
  croft create debian:12 --name web --memory 2G --restart on-failure --autostart
  croft create --kernel vmlinuz --disk root.img --append 'console=ttyS0 root=/dev/vda' \\
    --name own";

/// `croft create`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("payload").args(["image", "kernel", "disks"]).required(true).multiple(true))]
pub struct CreateOptions {
    /// Image to make it from: a name of 'croft image list', or debian:12, debian:13
    #[arg(value_name = "IMAGE", conflicts_with = "kernel")]
    pub image: Option<String>,

    /// The instance's name; made from the image's when not given
    #[arg(long, value_parser = parse_name)]
    pub name: Option<String>,

    #[command(flatten)]
    pub machine: MachineOptions,

    #[command(flatten)]
    pub instance: InstanceOptions,
}

/// What is kept with an instance, beside its machine.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Instance")]
pub struct InstanceOptions {
    /// When it ends and nobody asked it to: leave it, or start it again
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = Restart::No)]
    pub restart: Restart,

    /// Delete it when it has ended
    #[arg(long, conflicts_with = "autostart")]
    pub ephemeral: bool,

    /// Start it at 'croft autostart', when the host comes up
    #[arg(long)]
    pub autostart: bool,

    /// Size of its own disk, at least that of the image's; the guest's root file system grows
    /// when it starts
    #[arg(long, value_name = "SIZE", value_parser = size::parse, requires = "image")]
    pub disk_size: Option<u64>,

    /// When the host cannot read or write its own disk: pause it, or report the failure to the
    /// guest; if not given only a full host pauses it
    #[arg(long, value_name = "stop|report", value_parser = parse_on_io_error, requires = "image")]
    pub on_io_error: Option<OnIoError>,

    /// Public key that may log in by ssh, or a file of such keys; can be given several times
    #[arg(long = "ssh-key", value_name = "KEY|FILE", value_hint = clap::ValueHint::FilePath, requires = "image")]
    pub ssh_keys: Vec<String>,

    /// User to make, who may become root by sudo and to whom the keys belong
    #[arg(long, value_name = "NAME", requires = "image")]
    pub user: Option<String>,

    /// File for cloud-init in the guest (user data)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "image")]
    pub cloud_init: Option<PathBuf>,
}

/// `--restart`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Restart {
    /// Leave it
    No,
    /// Start it again if it failed
    OnFailure,
    /// Start it again, unless 'croft stop' ended it
    Always,
}
