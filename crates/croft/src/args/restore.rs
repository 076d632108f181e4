//! `croft restore`.

use std::ffi::OsString;

use clap::builder::{OsStringValueParser, TypedValueParser};
use croft_api::disk::RunDisk;

use super::disk;
use super::machine::{Engine, PlaceOptions, SoftwareOptions};
use super::net::NetOptions;
use super::values::parse_name;

/// What follows the help.
pub const HELP: &str = "\
The machine goes on where it was saved, with the files it was run with, which
can be named anew where they have moved. On another engine or host it must
have been run with --cpu portable-v1. Exit codes are those of 'croft run'.

--net says of all NICs, in their order, where they lead to now: other networks
or bridges, or, of the user network, other published ports. What else they are
stays as it was.

Examples:
  croft restore web.state
  croft restore web.state --engine kvm --disk /new/root.img
  croft restore web.state --net user --publish 8081:80";

/// `croft restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreOptions {
    /// File that 'croft save' wrote
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub file: OsString,

    /// What executes the machine's processors
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,

    /// Where the disks are now: all of them, in order, each with its options as it was
    #[arg(long = "disk", value_name = disk::VALUE, value_hint = clap::ValueHint::FilePath, value_parser = OsStringValueParser::new().try_map(disk::parse_disk))]
    pub disks: Vec<RunDisk>,

    /// Where the kernel is now, for the machine's next reset
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub kernel: Option<OsString>,

    /// Where the initial RAM disk is now
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub initrd: Option<OsString>,

    #[command(flatten)]
    pub net: NetOptions,

    /// Another name for the machine
    #[arg(long, value_parser = parse_name)]
    pub name: Option<String>,

    #[command(flatten)]
    pub place: PlaceOptions,

    #[command(flatten)]
    pub software: SoftwareOptions,
}
