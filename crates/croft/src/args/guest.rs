//! Commands that reach into a guest, by its agent.

use std::ffi::OsString;

use super::instance::NameOptions;

/// What follows the help.
pub const HELP: &str = "\
The agent in a machine's guest does it: built images have one. The guest needs no
network. A container needs nothing.

Exit codes:
  those of the command; 128 + N if signal N ended it
  125  it was not started: there is no agent, the instance does not run
  126  it cannot be executed
  127  there is no such command

Examples:
  croft exec web systemctl status
  croft exec -t web top
  tar c src | croft exec web -- tar x -C /srv
  croft shell web
  croft cp web:/var/log/syslog .
  croft cp nginx.conf web:/etc/nginx/";

/// `croft exec`.
#[derive(Debug, clap::Args)]
pub struct ExecOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Give the command this terminal
    #[arg(short, long)]
    pub tty: bool,

    /// Give the command standard input, as it has without --no-stdin
    #[arg(short, long, conflicts_with = "no_stdin")]
    pub interactive: bool,

    /// Give the command nothing to read, and leave standard input alone: in a loop that reads it
    #[arg(short, long, conflicts_with = "tty")]
    pub no_stdin: bool,

    #[command(flatten)]
    pub task: TaskOptions,

    /// The command
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `croft shell`.
#[derive(Debug, clap::Args)]
pub struct ShellOptions {
    #[command(flatten)]
    pub name: NameOptions,

    #[command(flatten)]
    pub task: TaskOptions,
}

/// As whom and where.
#[derive(Debug, Default, clap::Args)]
pub struct TaskOptions {
    /// User in the guest; root when not given, and the container's own in a container
    #[arg(short, long)]
    pub user: Option<String>,

    /// Directory in the guest; the user's home when not given
    #[arg(short = 'w', long, visible_alias = "workdir", value_name = "DIRECTORY")]
    pub cwd: Option<OsString>,

    /// Variable to set; can be given several times
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub variables: Vec<(String, String)>,
}

/// `croft cp`.
#[derive(Debug, clap::Args)]
pub struct CpOptions {
    /// File or directory: a path, or NAME:PATH of an instance, absolute
    pub from: OsString,

    /// Where to: a path, or NAME:PATH; into it if it is a directory
    pub to: OsString,

    /// Owner and group, by number, of what is copied into the guest; root when not given
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner, conflicts_with = "archive")]
    pub owner: Option<(u32, u32)>,

    /// Keep the owners and groups, by number, of what is copied into the guest
    #[arg(short, long)]
    pub archive: bool,
}

fn parse_owner(text: &str) -> Result<(u32, u32), &'static str> {
    let pair = text.split_once(':');
    pair.and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)))
        .ok_or("give two numbers, as in 1000:1000")
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("give NAME=VALUE".to_owned()),
    }
}
