//! Commands for containers that run.

use clap_complete::engine::ArgValueCandidates;
use croft_host::InstanceName;

use super::container::LimitOptions;
use super::container_values::parse_signal;
use super::instance::{NameOptions, NamesOptions, name_parser, names};
use super::output::OutputFormat;

/// What follows the help of `croft set`.
pub const SET_HELP: &str = "\
It has its new limits at once if it runs, and at its next start.

Example:
  croft set web --memory 256M --cpus 2 --unlimited pids";

/// `croft attach`.
#[derive(Debug, clap::Args)]
pub struct AttachOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Only look, and pass no signals on
    #[arg(long, visible_alias = "read-only")]
    pub no_stdin: bool,
}

/// `croft kill`.
#[derive(Debug, clap::Args)]
pub struct KillOptions {
    #[command(flatten)]
    pub names: NamesOptions,

    /// Send this signal to a container's first program instead
    #[arg(short, long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub signal: Option<i32>,
}

/// `croft top`.
#[derive(Debug, clap::Args)]
pub struct TopOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// `croft stats`.
#[derive(Debug, clap::Args)]
pub struct StatsOptions {
    /// The containers; all that run when not given
    #[arg(value_name = "NAME", value_parser = name_parser(), add = ArgValueCandidates::new(names))]
    pub names: Vec<InstanceName>,

    /// Print it once
    #[arg(long)]
    pub no_stream: bool,

    /// How to print it; JSON is one line for each container and time
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// `croft set`.
#[derive(Debug, clap::Args)]
pub struct SetOptions {
    #[command(flatten)]
    pub name: NameOptions,

    #[command(flatten)]
    pub limits: LimitOptions,

    /// Take this limit away; can be given several times
    #[arg(long, value_enum, value_name = "LIMIT")]
    pub unlimited: Vec<Limit>,
}

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Limit {
    /// Of memory
    Memory,
    /// From which on memory is reclaimed
    MemoryHigh,
    /// Of swap
    Swap,
    /// Of processors' time
    Cpus,
    /// Of processors to run on
    Cpuset,
    /// Of processes
    Pids,
}
