//! `croft run --container` and `croft create --container`: commands of their
//! own, as a container has little in common with a machine's hardware.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use croft_api::container::{Device, Seccomp, Tmpfs, Volume};

use super::container_values::{
    parse_cpus, parse_cpuset, parse_device, parse_env, parse_rlimit, parse_seccomp, parse_signal,
    parse_sysctl, parse_tmpfs, parse_user, parse_volume, parse_weight,
};
use super::create::Restart;
use super::net::NetOptions;
use super::values::parse_name;
use crate::size;

/// What follows the help.
pub const HELP: &str = "\
An image of one program (of a registry, or imported) is run as it says: with its
entrypoint, variables, user and directory. One of a whole system, as debian:12,
brings up its init; 'croft console' logs in, 'croft exec' runs a command in it.
With a COMMAND, that is run instead, as in an image of one program.

Without -d this command stays until the container has ended. Without -t its
output and its errors are two streams, and signals to croft go to its program;
with -t it has this terminal, which Ctrl-] leaves.

Exit codes of 'croft run --container':
  those of the program; 128 + N if signal N ended it
  125  the container was not made or started
  126  the program cannot be executed
  127  there is no such program

Examples:
  croft run --container --rm -it alpine sh
  croft run --container --rm debian:12 cat /etc/os-release
  croft run --container -d --name web -p 8080:80 --restart on-failure nginx
  croft run --container --memory 64M --cpus 0.5 -v /srv/data:/data:ro alpine ls /data
  croft run --container -d --name sys debian:12; croft console sys";

/// Whether these arguments ask for a container, which has options of its own:
/// `--container` before the image's name, or anywhere before `--`.
pub fn is_wanted(arguments: &[OsString]) -> bool {
    let command = arguments.get(1).and_then(|word| word.to_str());
    let options = arguments.iter().skip(2);
    let mut options = options.take_while(|word| *word != OsStr::new("--"));
    matches!(command, Some("run" | "create")) && options.any(|word| word == "--container")
}

/// The same arguments for the command that is meant.
pub fn rewrite(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let at = arguments.iter().position(|word| word == "--container");
    if let Some(at) = at {
        arguments.remove(at);
    }
    if let Some(command) = arguments.get_mut(1) {
        command.push("-container");
    }
    arguments
}

/// `croft run --container`.
#[derive(Debug, clap::Args)]
pub struct RunOptions {
    /// Run it in the background: print its name once it runs
    #[arg(short, long)]
    pub detach: bool,

    #[command(flatten)]
    pub container: ContainerOptions,
}

/// `croft create --container`.
#[derive(Debug, clap::Args)]
pub struct CreateOptions {
    #[command(flatten)]
    pub container: ContainerOptions,
}

/// A container.
#[derive(Debug, clap::Args)]
pub struct ContainerOptions {
    /// Image to make it from: a name of 'croft image list', debian:12, debian:13, or one of a
    /// registry
    #[arg(value_name = "IMAGE")]
    pub image: String,

    /// Program and arguments, instead of what the image says
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub command: Vec<String>,

    /// The instance's name; made from the image's when not given
    #[arg(long, value_parser = parse_name)]
    pub name: Option<String>,

    /// Give its program standard input
    #[arg(short, long)]
    pub interactive: bool,

    /// Give its program a terminal
    #[arg(short, long)]
    pub tty: bool,

    /// Delete it when it has ended
    #[arg(long, visible_alias = "ephemeral", conflicts_with = "autostart")]
    pub rm: bool,

    /// When it ends and nobody asked it to: leave it, or start it again
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = Restart::No)]
    pub restart: Restart,

    /// Start it at 'croft autostart', when the host comes up
    #[arg(long)]
    pub autostart: bool,

    #[command(flatten)]
    pub program: ProgramOptions,

    #[command(flatten)]
    pub limits: LimitOptions,

    #[command(flatten)]
    pub files: FileOptions,

    #[command(flatten)]
    pub rights: RightOptions,

    #[command(flatten)]
    pub net: NetOptions,

    #[command(flatten)]
    pub machine: MachineOnly,
}

/// What its program is given.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Program")]
pub struct ProgramOptions {
    /// Variable to set, or one of croft's own to pass on; can be given several times
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = parse_env)]
    pub env: Vec<String>,

    /// File with such variables, one on a line
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub env_file: Vec<PathBuf>,

    /// Its working directory
    #[arg(short, long, value_name = "DIRECTORY")]
    pub workdir: Option<String>,

    /// As whom it runs, names or numbers of the container's
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parse_user)]
    pub user: Option<String>,

    /// Program that COMMAND is given to, instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,

    /// Its host name; the instance's name when not given
    #[arg(long, value_name = "NAME", value_parser = super::container_values::parse_hostname)]
    pub hostname: Option<String>,

    /// Signal that asks it to end
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub stop_signal: Option<i32>,
}

/// What it may use of the host.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitOptions {
    /// Most memory: a number with K, M, G or T
    #[arg(short, long, value_name = "SIZE", value_parser = size::parse)]
    pub memory: Option<u64>,

    /// From so much memory on it is slowed down, and gives back what it can
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub memory_high: Option<u64>,

    /// Most swap, beside its memory
    #[arg(long, value_name = "SIZE", value_parser = super::container_values::parse_swap)]
    pub swap: Option<u64>,

    /// Processors' time: 1.5 is one and a half
    #[arg(long, value_name = "COUNT", value_parser = parse_cpus)]
    pub cpus: Option<u32>,

    /// Its share of busy processors: 1 to 10000, usually 100
    #[arg(long, value_name = "WEIGHT", value_parser = parse_weight)]
    pub cpu_weight: Option<u16>,

    /// Processors it may run on: 0-3,6
    #[arg(long, value_name = "LIST", visible_alias = "cpuset-cpus", value_parser = parse_cpuset)]
    pub cpuset: Option<String>,

    /// Most processes and threads
    #[arg(long, value_name = "COUNT", visible_alias = "pids-limit", value_parser = clap::value_parser!(u64).range(1..=4_194_304))]
    pub pids: Option<u64>,

    /// Its share of busy disks: 1 to 10000, usually 100
    #[arg(long, value_name = "WEIGHT", value_parser = parse_weight)]
    pub io_weight: Option<u16>,
}

/// What it has of files.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Files")]
pub struct FileOptions {
    /// Directory or file of the host's, or a named volume, in the container; can be given several
    /// times
    #[arg(short, long = "volume", value_name = "SOURCE:PATH[:ro]", value_parser = parse_volume)]
    pub volumes: Vec<Volume>,

    /// Directory in memory; can be given several times
    #[arg(long, value_name = "PATH[:OPTION,...]", value_parser = parse_tmpfs)]
    pub tmpfs: Vec<Tmpfs>,

    /// Device of the host's; can be given several times
    #[arg(long = "device", value_name = "SOURCE[:PATH[:rwm]]", value_parser = parse_device)]
    pub devices: Vec<Device>,

    /// Its root cannot be written to
    #[arg(long)]
    pub read_only: bool,
}

/// What it may do.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Rights")]
pub struct RightOptions {
    /// Capability beside the usual ones, as NET_ADMIN; can be given several times
    #[arg(long, value_name = "NAME", value_parser = super::container_values::parse_capability)]
    pub cap_add: Vec<String>,

    /// Capability that it does not have, or ALL; can be given several times
    #[arg(long, value_name = "NAME", value_parser = super::container_values::parse_capability)]
    pub cap_drop: Vec<String>,

    /// Which system calls it may make: the usual ones, or as a file of the OCI's form says
    #[arg(long, value_name = "default|unconfined|FILE", default_value = "default", value_parser = parse_seccomp)]
    pub seccomp: Seccomp,

    /// Programs that are set-id gain nothing
    #[arg(long)]
    pub no_new_privileges: bool,

    /// Limit of its processes, as nofile=1024:4096; can be given several times
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse_rlimit)]
    pub ulimit: Vec<(String, (u64, u64))>,

    /// Kernel setting of its own namespaces; can be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_sysctl)]
    pub sysctl: Vec<(String, String)>,
}

/// Options of machines, which are refused with a reason.
#[derive(Debug, Default, clap::Args)]
pub struct MachineOnly {
    #[arg(long, hide = true)]
    kernel: Option<OsString>,
    #[arg(long, hide = true)]
    initrd: Option<OsString>,
    #[arg(long, hide = true)]
    append: Option<OsString>,
    #[arg(long, hide = true)]
    cpu: Option<OsString>,
    #[arg(long, hide = true)]
    engine: Option<OsString>,
    #[arg(long, hide = true)]
    disk: Vec<OsString>,
    #[arg(long, hide = true)]
    disk_size: Option<OsString>,
    #[arg(long, hide = true)]
    share: Vec<OsString>,
    #[arg(long, hide = true)]
    cloud_init: Option<OsString>,
    #[arg(long, hide = true)]
    gdb: Option<OsString>,
    #[arg(long, hide = true)]
    no_reboot: bool,
    #[arg(long, hide = true)]
    privileged: bool,
}

impl MachineOnly {
    /// Why what was asked for cannot be, and what can.
    pub fn refusal(&self) -> Option<String> {
        let own_kernel = [
            (self.kernel.is_some(), "--kernel"),
            (self.initrd.is_some(), "--initrd"),
            (self.append.is_some(), "--append"),
            (self.gdb.is_some(), "--gdb"),
            (self.no_reboot, "--no-reboot"),
        ];
        let hardware = [
            (self.cpu.is_some(), "--cpu"),
            (self.engine.is_some(), "--engine"),
            (!self.disk.is_empty(), "--disk"),
            (self.disk_size.is_some(), "--disk-size"),
            (self.cloud_init.is_some(), "--cloud-init"),
        ];
        let given = |options: &[(bool, &'static str)]| {
            let mut options = options.iter();
            options.find_map(|(given, option)| given.then_some(*option))
        };
        if let Some(option) = given(&own_kernel) {
            return Some(format!(
                "{option}: a container runs on this host's kernel, and has none of its own; a machine has: \
                 croft run {option} … without --container"
            ));
        }
        if let Some(option) = given(&hardware) {
            return Some(format!(
                "{option}: a container has no virtual hardware; a machine has: \
                 croft run {option} … without --container"
            ));
        }
        if !self.share.is_empty() {
            return Some("--share is for machines; a container has --volume HOST:PATH".to_owned());
        }
        if self.privileged {
            return Some(
                "--privileged: there are no containers with the host's own rights; give single \
                 ones by --cap-add and --device, or make a machine: croft run without --container"
                    .to_owned(),
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn parse(line: &str) -> Result<RunOptions, String> {
        assert!(is_wanted(&words(line)), "{line}");
        let args = Args::try_parse_from(rewrite(words(line))).map_err(|error| error.to_string())?;
        match args.command {
            Command::RunContainer(options) => Ok(*options),
            _ => Err("another command".to_owned()),
        }
    }

    #[test]
    fn a_container_is_asked_for_before_its_command() {
        assert!(is_wanted(&words("croft run --rm --container alpine")));
        assert!(is_wanted(&words("croft create --container alpine")));
        assert!(!is_wanted(&words(
            "croft run debian:12 -- podman --container"
        )));
        assert!(!is_wanted(&words("croft exec web --container")));
        assert!(!is_wanted(&words("croft run --kernel x")));
    }

    #[test]
    fn the_rest_of_the_line_is_the_command() {
        let options =
            parse("croft run --container --rm -it -e A=b alpine ls -l --rm -- x").unwrap();
        let container = options.container;
        assert!(container.rm && container.interactive && container.tty && !options.detach);
        assert_eq!(container.image, "alpine");
        assert_eq!(container.command, ["ls", "-l", "--rm", "--", "x"]);
        assert_eq!(container.program.env, ["A=b"]);
        assert_eq!(container.machine.refusal(), None);
    }

    #[test]
    fn limits_are_a_containers() {
        let options =
            parse("croft run --container -d --memory 64M --cpus 1.5 --pids-limit 10 alpine")
                .unwrap();
        let limits = options.container.limits;
        assert_eq!(limits.memory, Some(64 << 20));
        assert_eq!((limits.cpus, limits.pids), (Some(1500), Some(10)));
        for bad in [
            "--cpus 0",
            "--memory x",
            "--cpu-weight 0",
            "--cpuset a",
            "--pids 0",
        ] {
            assert!(
                parse(&format!("croft run --container {bad} alpine")).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_only_a_machine_has_is_refused_with_the_command_to_use() {
        for (option, names) in [
            ("--kernel vmlinuz", "this host's kernel"),
            ("--cpu host", "hardware"),
            ("--disk a.img", "croft run --disk"),
            ("--share /a:b", "--volume"),
            ("--privileged", "--cap-add"),
        ] {
            let options = parse(&format!("croft run --container {option} alpine")).unwrap();
            let refusal = options.container.machine.refusal().unwrap();
            assert!(refusal.contains(names), "{refusal}");
        }
    }
}
