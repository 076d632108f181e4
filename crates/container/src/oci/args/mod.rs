//! The command line.
//!
//! The one that runc, crun and youki share, as callers (podman, containerd,
//! conmon, the test suites) write it: global options, a command, and its
//! options, which may stand before or behind the container's name, but not
//! behind the words of a command that is to run in the container.
//!
//! `lexopt` takes the words apart. clap would print more help, and, measured
//! with the same commands, costs each of these short-lived processes 0.2 ms and
//! 0.8 MiB.

mod help;
mod parse;
mod signal;

use std::path::PathBuf;

pub use self::help::{for_command, overview};
pub use self::parse::parse;
pub use self::signal::Signal;

use crate::oci::log::Format;

/// Options before the command.
#[derive(Debug, Default)]
pub struct Globals {
    /// `--root`: where state is kept.
    pub root: Option<PathBuf>,
    /// `--log`: where messages go besides standard error.
    pub log: Option<PathBuf>,
    /// `--log-format`.
    pub format: Format,
    /// `--debug`: say more.
    pub debug: bool,
    /// `--criu`: the program for checkpoints.
    pub criu: Option<PathBuf>,
}

/// A command.
#[derive(Debug)]
pub enum Command {
    /// Makes a container whose process waits for `start`.
    Create(Create),
    /// Lets the process of a created container go.
    Start(Name),
    /// Both, and waits for the end.
    Run(Run),
    /// Another process in a container.
    Exec(Box<Exec>),
    /// Prints the state.
    State(Name),
    /// Sends a signal.
    Kill(Kill),
    /// Removes a container.
    Delete(Delete),
    /// Lists processes.
    Ps(Ps),
    /// Stops all processes.
    Pause(Name),
    /// Lets them go on.
    Resume(Name),
    /// Changes limits.
    Update(Box<Update>),
    /// Lists containers.
    List(List),
    /// Writes a configuration to begin with.
    Spec(Spec),
    /// Prints what this runtime can do.
    Features,
    /// Prints statistics and out-of-memory events.
    Events(Events),
    /// Writes a container's processes to a directory, by CRIU.
    Checkpoint(Box<Checkpoint>),
    /// Makes a container of such a directory.
    Restore(Box<Restore>),
    /// Prints a text: help or the version.
    Print(String),
}

/// The name of a container.
#[derive(Debug)]
pub struct Name {
    /// As it was given, not looked at yet.
    pub id: String,
}

/// What `create`, `run` and `restore` have in common.
#[derive(Debug, Default)]
pub struct Create {
    /// Name of the new container.
    pub id: String,
    /// `--bundle`: the directory with `config.json`; the current one if none is
    /// named.
    pub bundle: Option<PathBuf>,
    /// `--console-socket`: gets the master of the terminal.
    pub console_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--no-pivot`: `MS_MOVE` and chroot, for a root file system on a ramdisk.
    pub no_pivot: bool,
    /// `--no-new-keyring`: the caller's session keyring stays.
    pub no_new_keyring: bool,
    /// `--preserve-fds`: descriptors from 3 on that the process keeps.
    pub preserve_fds: u32,
}

/// `run`.
#[derive(Debug, Default)]
pub struct Run {
    /// What it has in common with `create`.
    pub create: Create,
    /// `--detach`: do not wait.
    pub detach: bool,
    /// `--keep`: do not delete the container at its end.
    pub keep: bool,
}

/// `exec`.
#[derive(Debug, Default)]
pub struct Exec {
    /// Name of the container.
    pub id: String,
    /// `--process`: a file with an OCI process, for all that follows.
    pub process: Option<PathBuf>,
    /// `--tty`.
    pub tty: bool,
    /// `--cwd`.
    pub cwd: Option<PathBuf>,
    /// `--env`, `NAME=VALUE` each.
    pub env: Vec<String>,
    /// `--user`: user and group id.
    pub user: Option<(u32, Option<u32>)>,
    /// `--additional-gids`.
    pub additional_gids: Vec<u32>,
    /// `--cap`.
    pub caps: Vec<String>,
    /// `--apparmor`: a profile.
    pub apparmor: Option<String>,
    /// `--process-label`: an SELinux label.
    pub process_label: Option<String>,
    /// `--no-new-privs`.
    pub no_new_privs: bool,
    /// `--detach`: do not wait.
    pub detach: bool,
    /// `--ignore-paused`: also in a paused container, where it will wait.
    pub ignore_paused: bool,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--preserve-fds`.
    pub preserve_fds: u32,
    /// `--cgroup`: groups below the container's.
    pub cgroup: Option<String>,
    /// What to run.
    pub command: Vec<String>,
}

/// `kill`.
#[derive(Debug)]
pub struct Kill {
    /// Name of the container.
    pub id: String,
    /// The signal; SIGTERM if none is named.
    pub signal: Signal,
    /// `--all`: to all processes, not only the first.
    pub all: bool,
}

/// `delete`.
#[derive(Debug)]
pub struct Delete {
    /// Name of the container.
    pub id: String,
    /// `--force`: kill it first; and nothing to remove is no error.
    pub force: bool,
}

/// `ps`.
#[derive(Debug)]
pub struct Ps {
    /// Name of the container.
    pub id: String,
    /// `--format`.
    pub format: Listing,
    /// Words for ps(1).
    pub options: Vec<String>,
}

/// `--format` of lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listing {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// `list`.
#[derive(Debug, Default)]
pub struct List {
    /// `--format`.
    pub format: Listing,
    /// `--quiet`: names alone.
    pub quiet: bool,
}

/// `spec`.
#[derive(Debug, Default)]
pub struct Spec {
    /// `--bundle`: where to write; the current directory if none is named.
    pub bundle: Option<PathBuf>,
    /// `--rootless`: for a user without privilege.
    pub rootless: bool,
}

/// `update`: what is not named stays.
#[derive(Debug, Default)]
pub struct Update {
    /// Name of the container.
    pub id: String,
    /// `--resources`: a file with OCI resources, `-` for standard input; then
    /// the options that follow do not count.
    pub resources: Option<PathBuf>,
    /// `--blkio-weight`, 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// `--cpu-period`, microseconds.
    pub cpu_period: Option<u64>,
    /// `--cpu-quota`, microseconds in a period; -1 for none.
    pub cpu_quota: Option<i64>,
    /// `--cpu-burst`, microseconds.
    pub cpu_burst: Option<u64>,
    /// `--cpu-share`, relative to others.
    pub cpu_share: Option<u64>,
    /// `--cpu-idle`: 1 for SCHED_IDLE.
    pub cpu_idle: Option<i64>,
    /// `--cpu-rt-period`, microseconds.
    pub cpu_rt_period: Option<u64>,
    /// `--cpu-rt-runtime`, microseconds.
    pub cpu_rt_runtime: Option<i64>,
    /// `--cpuset-cpus`, a list.
    pub cpuset_cpus: Option<String>,
    /// `--cpuset-mems`, a list.
    pub cpuset_mems: Option<String>,
    /// `--memory`, bytes; -1 for no bound.
    pub memory: Option<i64>,
    /// `--memory-reservation`, bytes.
    pub memory_reservation: Option<i64>,
    /// `--memory-swap`, bytes with the memory's; -1 for no bound.
    pub memory_swap: Option<i64>,
    /// `--pids-limit`; -1 for no bound.
    pub pids_limit: Option<i64>,
}

/// `events`.
#[derive(Debug)]
pub struct Events {
    /// Name of the container.
    pub id: String,
    /// `--interval` between statistics, seconds.
    pub interval: u64,
    /// `--stats`: once, then end.
    pub stats: bool,
}

/// What CRIU does with control groups, in its own words.
pub const CGROUP_MODES: [&str; 6] = ["ignore", "none", "props", "soft", "full", "strict"];

/// What `checkpoint` and `restore` pass on to CRIU.
#[derive(Debug, Default)]
pub struct Images {
    /// `--image-path`: the directory of images; `checkpoint` in the current
    /// directory if none is named.
    pub image_path: Option<PathBuf>,
    /// `--work-path`: for logs; the directory of images if none is named.
    pub work_path: Option<PathBuf>,
    /// `--tcp-established`.
    pub tcp_established: bool,
    /// `--ext-unix-sk`.
    pub ext_unix_sk: bool,
    /// `--shell-job`.
    pub shell_job: bool,
    /// `--file-locks`.
    pub file_locks: bool,
    /// `--link-remap`.
    pub link_remap: bool,
    /// `--manage-cgroups-mode`, one of [`CGROUP_MODES`].
    pub manage_cgroups: Option<&'static str>,
}

/// `checkpoint`.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// Name of the container.
    pub id: String,
    /// For CRIU.
    pub images: Images,
    /// `--leave-running`.
    pub leave_running: bool,
    /// `--tcp-skip-in-flight`.
    pub skip_in_flight: bool,
}

/// `restore`.
#[derive(Debug, Default)]
pub struct Restore {
    /// What it has in common with `create`.
    pub run: Run,
    /// For CRIU.
    pub images: Images,
}
