//! The command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use croft_api::monitor::{GdbAddress, RunDisk};

use crate::exit::HELP as EXIT_CODES;
use crate::size;

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
              after_long_help = format!("{EXAMPLES}\n\n{CONSOLE}\n\n{EXIT_CODES}"))]
    Run(Box<RunOptions>),
    /// Save a running machine, with its memory, to a file, and end it
    #[command(after_help = SAVE)]
    Save(SaveOptions),
    /// Let a saved machine go on in the foreground, as 'croft run' would run it
    #[command(after_help = RESTORE)]
    Restore(Box<RestoreOptions>),
    /// Say what of this host Croft can use, what is missing, and what to do
    #[command(after_help = DOCTOR)]
    Doctor(DoctorOptions),
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

const EXAMPLES: &str = "\
Examples:
  A Debian kernel and an initramfs, on this terminal:
    croft run --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'
  More memory, the portable processor, and the console also in a file:
    croft run --kernel vmlinuz --memory 2G --cpu portable-v1 --log console.log
  Wait for nothing, keep the output:
    croft run --kernel vmlinuz --initrd test.cpio --append 'console=ttyS0 quiet' \\
      --no-reboot < /dev/null > output.txt
  With two disks, the second one shared with other readers:
    croft run --kernel vmlinuz --append 'console=ttyS0 root=/dev/vda' \\
      --disk root.img --disk data.img,readonly
  With the kernel that is on the disk:
    croft run --disk debian.img
  With a debugger:
    croft run --kernel vmlinux --append nokaslr --gdb 1234
    gdb vmlinux -ex 'target remote localhost:1234'";

const CONSOLE: &str = "\
Console:
  Standard input and output are the guest's first serial port (console=ttyS0).
  On a terminal every key goes to the guest, except Ctrl-], which leaves and
  ends the machine. Only the guest's output goes to standard output; what
  Croft has to say goes to standard error. The end of standard input is not
  the end of the machine. SIGINT, SIGTERM, SIGHUP and SIGQUIT end the machine.";

const SAVE: &str = "\
The machine must have been started with --control. What its disks contain is
not in the file: leave them alone until the machine is restored.

Exit codes:
  0  saved; 'croft run' has ended with status 6
  1  not saved; the machine goes on
  2  wrong usage; nothing was done

Example:
  croft run --kernel vmlinuz --disk root.img --cpu portable-v1 --control web.sock
  croft save web.sock web.state
  croft restore web.state";

const RESTORE: &str = "\
The machine goes on where it was saved, with the files it was run with, which
can be named anew where they have moved. On another engine or host it must
have been run with --cpu portable-v1. Exit codes are those of 'croft run'.

Examples:
  croft restore web.state
  croft restore web.state --engine kvm --disk /new/root.img";

const DOCTOR: &str = "\
Exit codes:
  0  machines can run here, on the engine that --engine names
  1  they cannot

Examples:
  croft doctor
  croft doctor --engine kvm > /dev/null && echo KVM can be used
  croft doctor -o json";

/// `croft doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorOptions {
    /// Succeed only if this engine can run machines; auto is any
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,

    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

/// `croft save`.
#[derive(Debug, clap::Args)]
pub struct SaveOptions {
    /// The machine's control socket
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub socket: OsString,

    /// File to make; none may be there yet
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub file: OsString,
}

/// `croft restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreOptions {
    /// File that 'croft save' wrote
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub file: OsString,

    /// What executes the machine's processors
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,

    /// Where the disks are now: all of them, in order, each with ',readonly' if it was
    #[arg(long = "disk", value_name = "FILE[,readonly]", value_hint = clap::ValueHint::FilePath, value_parser = OsStringValueParser::new().try_map(parse_disk))]
    pub disks: Vec<RunDisk>,

    /// Where the kernel is now, for the machine's next reset
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub kernel: Option<OsString>,

    /// Where the initial RAM disk is now
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub initrd: Option<OsString>,

    /// Another name for the machine
    #[arg(long, value_parser = parse_name)]
    pub name: Option<String>,

    #[command(flatten)]
    pub place: PlaceOptions,

    #[command(flatten)]
    pub software: SoftwareOptions,
}

/// How the software engine runs; other engines have no use for it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Software engine")]
pub struct SoftwareOptions {
    /// Room for translated code, 1M to 1G; what does not fit is translated again when it is needed
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_code_cache)]
    pub code_cache: u64,

    /// Interpret everything: slow, and free of whatever the translator may do wrong
    #[arg(long, conflicts_with_all = ["verify_code", "code_cache"])]
    pub interpret: bool,

    /// Prove that all translated code is isolated before it runs; end if it is not
    #[arg(long)]
    pub verify_code: bool,

    /// Count what the engine does, and print it at the end and when croft-vmm gets SIGUSR1
    #[arg(long)]
    pub stats: bool,
}

/// Where people and programs meet a machine.
#[derive(Debug, clap::Args)]
pub struct PlaceOptions {
    /// Append the guest's console output to this file too
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub log: Option<OsString>,

    /// Let gdb connect: a port on the loopback interface, or the path of a socket to make
    #[arg(long, value_name = "PORT|SOCKET", value_parser = parse_gdb)]
    pub gdb: Option<GdbAddress>,

    /// Make a socket by which 'croft save' finds the machine
    #[arg(long, value_name = "SOCKET", value_hint = clap::ValueHint::FilePath)]
    pub control: Option<OsString>,
}

/// `croft run`.
#[derive(Debug, clap::Args)]
pub struct RunOptions {
    /// What executes the machine's processors
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,

    /// Kernel: a Linux bzImage (vmlinuz), an ELF file with a PVH note, or a multiboot file;
    /// without it the machine boots, now and after each reset, with what is on its first disk
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, required_unless_present = "disks")]
    pub kernel: Option<OsString>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "kernel")]
    pub initrd: Option<OsString>,

    /// Disk: a raw image or block device, writable unless ',readonly' follows; can be given
    /// several times, and the guest sees /dev/vda, vdb and so on
    #[arg(long = "disk", value_name = "FILE[,readonly]", value_hint = clap::ValueHint::FilePath, value_parser = OsStringValueParser::new().try_map(parse_disk))]
    pub disks: Vec<RunDisk>,

    /// Kernel command line, for example 'console=ttyS0 quiet'; without --kernel it is added to
    /// that of the disk
    #[arg(long, value_name = "STR", default_value = "", hide_default_value = true, allow_hyphen_values = true, value_parser = parse_append)]
    pub append: String,

    /// Processor model; the engine's own default when not given
    #[arg(long, value_enum, value_name = "MODEL")]
    pub cpu: Option<Cpu>,

    /// Guest memory: a number with K, M, G or T (powers of 1024; MiB and so on mean the same)
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    pub memory: u64,

    /// Number of processors
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = parse_cpus)]
    pub cpus: u32,

    /// The machine's name
    #[arg(long, default_value = "machine", value_parser = parse_name)]
    pub name: String,

    /// End (status 3) when the guest asks for a reset
    #[arg(long)]
    pub no_reboot: bool,

    #[command(flatten)]
    pub place: PlaceOptions,

    /// Compare each block that the software engine translates with its interpreter, to find
    /// errors in the engine; slow, and for one processor
    #[arg(long, hide = true, conflicts_with = "engine")]
    pub lockstep: bool,

    /// Offer the isa-debug-exit and test-device ports that outside test suites use
    #[arg(long)]
    pub test_devices: bool,

    #[command(flatten)]
    pub software: SoftwareOptions,
}

/// `--engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The best one that works here; says which and why
    Auto,
    /// The software engine: needs no hardware virtualization and no privilege
    Software,
    /// Hardware virtualization, by the host's KVM
    Kvm,
}

/// `--cpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cpu {
    /// All that host and engine have
    Host,
    /// A fixed x86-64-v3 processor, movable between engines and hosts
    PortableV1,
    /// Spares the guest mitigations that only real silicon needs (software engine's default)
    SoftwareFast,
}

/// Longest command line that the boot protocols in use can carry is far
/// above Linux's own limit of 2048 on x86 (COMMAND_LINE_SIZE).
const APPEND_MAX: usize = 2047;
/// Most vCPUs that can be asked for; APIC ids are 8 bits wide and 255 is the
/// broadcast. Engines may allow fewer.
const CPUS_MAX: u32 = 254;

fn parse_append(text: &str) -> Result<String, String> {
    if text.len() > APPEND_MAX {
        Err(format!(
            "{} bytes, Linux takes at most {APPEND_MAX}; shorten it",
            text.len()
        ))
    } else if text.chars().any(char::is_control) {
        Err("it has control characters; remove them".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn parse_code_cache(text: &str) -> Result<u64, String> {
    size::parse(text).and_then(|size| {
        let fits = (1 << 20..=1 << 30).contains(&size);
        fits.then_some(size)
            .ok_or_else(|| "give 1M to 1G".to_owned())
    })
}

fn parse_cpus(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=CPUS_MAX).contains(count))
        .ok_or_else(|| format!("give a number from 1 to {CPUS_MAX}"))
}

fn parse_disk(text: OsString) -> Result<RunDisk, String> {
    let bytes = text.as_bytes();
    let (path, read_only) = match bytes.strip_suffix(b",readonly") {
        Some(path) => (path, true),
        None => (bytes, false),
    };
    if path.is_empty() {
        return Err("name an image file or block device".to_owned());
    }
    Ok(RunDisk {
        path: OsStr::from_bytes(path).to_owned(),
        read_only,
    })
}

fn parse_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && text.len() <= 63 && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("use 1 to 63 letters, digits, '-', '_' and '.', a letter or digit first".to_owned())
    }
}

fn parse_gdb(text: &str) -> Result<GdbAddress, String> {
    if text.is_empty() {
        Err("give a port or the path of a socket".to_owned())
    } else if text.chars().all(|c| c.is_ascii_digit()) {
        text.parse()
            .map(GdbAddress::Port)
            .map_err(|_| "give a port from 0 to 65535".to_owned())
    } else {
        Ok(GdbAddress::Socket(text.into()))
    }
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
    fn values_are_checked() {
        assert!(parse_cpus("1").is_ok());
        for bad in ["0", "-1", "255", "4294967297", "x", ""] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_code_cache("2M"), Ok(2 << 20));
        for bad in ["0M", "1023K", "1025M", "64", ""] {
            assert!(parse_code_cache(bad).is_err(), "{bad}");
        }
        assert!(parse_name("web-1.test").is_ok());
        for bad in ["", "-x", "a b", "a/b", "ü"] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_gdb("1234"), Ok(GdbAddress::Port(1234)));
        assert_eq!(parse_gdb("./gdb"), Ok(GdbAddress::Socket("./gdb".into())));
        assert!(parse_gdb("70000").is_err());
        let disk = |text: &str| parse_disk(text.into());
        assert!(!disk("a,b").unwrap().read_only);
        let read_only = disk("a,b,readonly").unwrap();
        assert!(read_only.read_only && read_only.path == "a,b");
        for bad in ["", ",readonly"] {
            assert!(disk(bad).is_err(), "{bad}");
        }
        assert!(parse_append(&"x".repeat(2048)).is_err());
        assert!(parse_append("a\nb").is_err());
    }
}
