//! `croft disk`.
//!
//! What is done to disks of instances; how a disk is written is in
//! [`disk`](super::disk).

use std::ffi::OsString;

use clap::Subcommand;
use clap::builder::{OsStringValueParser, TypedValueParser};

use croft_api::disk::RunDisk;

use super::disk::{VALUE, parse_disk};
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

/// What follows the help of `croft disk attach`.
pub const ATTACH_HELP: &str = "\
A guest that runs finds the disk at once, as /dev/vdb or what comes next; its
serial number is the name that is printed: disk1. The instance keeps it, unless
--live-only is said. One that is stopped has it from its next start on.

Exit codes:
  0    done
  1    it could not be done
  2    wrong usage, or there is no such instance; nothing was done
  124  it was not done in time

Example:
  croft disk attach web /srv/data.img,format=raw";

/// What follows the help of `croft disk detach`.
pub const DETACH_HELP: &str = "\
The guest is asked to release the disk; unmount it there first. When it has, the
disk's file is closed and free. A guest that does not answer within the time
stays asked: the disk goes when it answers, or with its next reset. --force takes
the disk away as a pulled cable would; what the guest has not written to it by
then is lost to it. 'croft show' lists the disks there are.

Exit codes:
  0    the disk is gone
  1    it could not be done
  2    wrong usage, or there is no such instance; nothing was done
  124  the guest has not released it in time

Example:
  croft disk detach web disk1";

/// What can be done to disks of instances.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Make the instance's own disk larger
    #[command(after_help = HELP)]
    Resize(ResizeOptions),
    /// Give an instance one more disk, also while it runs
    #[command(after_help = ATTACH_HELP, after_long_help = format!("{}\n\n{ATTACH_HELP}", super::disk::HELP))]
    Attach(AttachOptions),
    /// Take a disk from an instance, also while it runs
    #[command(after_help = DETACH_HELP)]
    Detach(DetachOptions),
}

/// `croft disk attach`.
#[derive(Debug, clap::Args)]
pub struct AttachOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Its file, and how it is served
    #[arg(value_name = VALUE, value_parser = OsStringValueParser::new().try_map(|text: OsString| parse_disk(text)))]
    pub disk: RunDisk,

    /// Until the instance's next start only
    #[arg(long)]
    pub live_only: bool,
}

/// `croft disk detach`, `croft nic detach`.
#[derive(Debug, clap::Args)]
pub struct DetachOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Its name, as 'croft show' has it
    pub device: String,

    /// Take it away whatever the guest says
    #[arg(short, long)]
    pub force: bool,

    /// It is there again at the instance's next start
    #[arg(long)]
    pub live_only: bool,

    /// Seconds that the guest has for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
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
