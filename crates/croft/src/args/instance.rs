//! Commands that have an instance's name and little else.

use clap::builder::{StyledStr, ValueParser};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use croft_host::{Directories, InstanceName, Instances};

use super::output::OutputFormat;

/// What follows the help of commands that change an instance's state.
pub const HELP: &str = "\
Exit codes:
  0    done
  1    it could not be done
  2    wrong usage, or there is no such instance; nothing was done
  124  it was not done in time";

/// What follows the help of `croft wait`.
pub const WAIT_HELP: &str = "\
Ready is what the agent in a machine's guest says it is: the guest has come up
and can be used. A machine without an agent never says so. Of a container its end
is waited for, and its exit code printed.

Exit codes:
  0    it is ready; or the container has ended
  1    the machine has ended, or will
  2    wrong usage, or there is no such instance
  124  it was not ready in time";

/// What follows the help of `croft autostart`.
pub const AUTOSTART_HELP: &str = "\
To be run when the host comes up, by a unit such as 'croft autostart --unit'
prints:
  croft autostart --unit > /etc/systemd/system/croft.service
  systemctl enable croft.service

Exit codes:
  0  all that are marked run
  1  some could not be started";

/// An instance.
#[derive(Debug, clap::Args)]
pub struct NameOptions {
    /// The instance
    #[arg(value_parser = name_parser(), add = ArgValueCandidates::new(names))]
    pub name: InstanceName,
}

/// One or more instances.
#[derive(Debug, clap::Args)]
pub struct NamesOptions {
    /// The instances
    #[arg(required = true, value_name = "NAME", value_parser = name_parser(), add = ArgValueCandidates::new(names))]
    pub names: Vec<InstanceName>,
}

/// `croft start`.
#[derive(Debug, clap::Args)]
pub struct StartOptions {
    #[command(flatten)]
    pub names: NamesOptions,

    /// Show the console on this terminal, as 'croft console' does
    #[arg(short, long)]
    pub attach: bool,
}

/// `croft stop`.
#[derive(Debug, clap::Args)]
pub struct StopOptions {
    /// The instances
    #[arg(required_unless_present = "all", value_name = "NAME", value_parser = name_parser(), add = ArgValueCandidates::new(names))]
    pub names: Vec<InstanceName>,

    /// All instances that run
    #[arg(long, conflicts_with = "names")]
    pub all: bool,

    /// Seconds that it has to end by itself before its plug is pulled: 60, and 10 for a
    /// container of one program, when not given
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub timeout: Option<u64>,

    /// Pull the plug at once: what the guest has not written to its disk is lost
    #[arg(short, long, conflicts_with = "timeout")]
    pub force: bool,
}

/// `croft delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteOptions {
    #[command(flatten)]
    pub names: NamesOptions,

    /// End it first if it runs, by force
    #[arg(short, long)]
    pub force: bool,
}

/// `croft list`.
#[derive(Debug, clap::Args)]
pub struct ListOptions {
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// `croft show`.
#[derive(Debug, clap::Args)]
pub struct ShowOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// `croft logs`.
#[derive(Debug, clap::Args)]
pub struct LogsOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Go on with what is printed from now on, until the instance ends
    #[arg(short, long)]
    pub follow: bool,

    /// Only the last lines
    #[arg(short = 'n', long, visible_alias = "tail", value_name = "COUNT")]
    pub lines: Option<usize>,

    /// Say when each line was printed; of containers
    #[arg(short, long, conflicts_with = "monitor")]
    pub timestamps: bool,

    /// What Croft has to say of it, instead of what the guest printed
    #[arg(long, conflicts_with = "follow")]
    pub monitor: bool,
}

/// `croft console`.
#[derive(Debug, clap::Args)]
pub struct ConsoleOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Only look
    #[arg(short, long)]
    pub read_only: bool,

    /// Write to it even if somebody else does, who from now on only looks
    #[arg(long, conflicts_with = "read_only")]
    pub take: bool,

    /// Which console: 0 is the first serial port
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub port: u32,
}

/// `croft wait`.
#[derive(Debug, clap::Args)]
pub struct WaitOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Seconds to wait at most: 300, and as long as it takes for a container, when not given
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub timeout: Option<u64>,
}

/// `croft autostart`.
#[derive(Debug, clap::Args)]
pub struct AutostartOptions {
    /// Print a systemd unit that runs it
    #[arg(long)]
    pub unit: bool,
}

/// A name, checked.
pub fn name_parser() -> ValueParser {
    ValueParser::new(|text: &str| text.parse::<InstanceName>())
}

/// The instances there are, for a shell's completion.
pub fn names() -> Vec<CompletionCandidate> {
    let Ok(directories) = Directories::find() else {
        return Vec::new();
    };
    let instances = Instances::new(directories);
    let names = instances.names().unwrap_or_default().into_iter();
    names
        .map(|name| {
            let help = instances.status(&name).ok();
            let help = help.map(|status| StyledStr::from(status.phase.to_string()));
            CompletionCandidate::new(name.as_str()).help(help)
        })
        .collect()
}
