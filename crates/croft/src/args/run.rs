//! `croft run`.

use std::ffi::OsString;

use clap::builder::{OsStringValueParser, TypedValueParser};
use croft_api::monitor::{RunDisk, RunShare};

use super::machine::{Cpu, Engine, PlaceOptions, SoftwareOptions};
use super::values::{parse_append, parse_cpus, parse_disk, parse_name, parse_share};
use crate::size;

/// Command lines to start from.
pub const EXAMPLES: &str = "\
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
  With a directory of the host's, mounted by 'mount -t virtiofs src /mnt':
    croft run --kernel vmlinuz --initrd initrd.img --share ~/src:src,readonly
  With a debugger:
    croft run --kernel vmlinux --append nokaslr --gdb 1234
    gdb vmlinux -ex 'target remote localhost:1234'";

/// What the console is.
pub const CONSOLE: &str = "\
Console:
  Standard input and output are the guest's first serial port (console=ttyS0).
  On a terminal every key goes to the guest, except Ctrl-], which leaves and
  ends the machine. Only the guest's output goes to standard output; what
  Croft has to say goes to standard error. The end of standard input is not
  the end of the machine. SIGINT, SIGTERM, SIGHUP and SIGQUIT end the machine.";

/// `croft run`.
#[derive(Debug, clap::Args)]
pub struct RunOptions {
    /// What executes the machine's processors
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,

    /// Kernel: a Linux bzImage (vmlinuz), an ELF file with a PVH note, or a multiboot file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub kernel: OsString,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub initrd: Option<OsString>,

    /// Disk: a raw image or block device, writable unless ',readonly' follows; can be given
    /// several times, and the guest sees /dev/vda, vdb and so on
    #[arg(long = "disk", value_name = "FILE[,readonly]", value_hint = clap::ValueHint::FilePath, value_parser = OsStringValueParser::new().try_map(parse_disk))]
    pub disks: Vec<RunDisk>,

    /// Directory of the host's for the guest, which mounts it by 'mount -t virtiofs TAG /mnt';
    /// can be given up to four times
    #[arg(long = "share", value_name = "HOST:TAG[,readonly]", value_hint = clap::ValueHint::DirPath, value_parser = OsStringValueParser::new().try_map(parse_share))]
    pub shares: Vec<RunShare>,

    /// Kernel command line, for example 'console=ttyS0 quiet'
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

    /// The guest's vsock context id
    #[arg(long, value_name = "CID", default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=0xFFFF_FFFE), requires = "vsock")]
    pub vsock_cid: u32,

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
