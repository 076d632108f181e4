//! Options that several commands share: what a machine is, what runs it, and how.

use std::ffi::OsString;

use clap::ValueEnum;
use clap::builder::{OsStringValueParser, TypedValueParser};
use croft_api::disk::RunDisk;
use croft_api::monitor::{GdbAddress, RunShare};

use super::disk;
use super::net::NetOptions;
use super::values::{
    parse_append, parse_code_cache, parse_cpus, parse_gdb, parse_port, parse_share,
};
use crate::size;

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

    /// Make a socket for the guest's second terminal, hvc0 (virtio-console); one program at a
    /// time can connect
    #[arg(long, value_name = "SOCKET", value_hint = clap::ValueHint::FilePath)]
    pub terminal: Option<OsString>,

    /// Make a socket for a byte stream that the guest finds as /dev/virtio-ports/NAME; can be
    /// given several times
    #[arg(long = "port", value_name = "NAME=SOCKET", value_parser = OsStringValueParser::new().try_map(parse_port))]
    pub ports: Vec<(String, OsString)>,

    /// Make a socket by which programs connect to the guest's vsock ports; the guest connects
    /// to port P of the host at the same path with '_P' behind
    #[arg(long, value_name = "SOCKET", value_hint = clap::ValueHint::FilePath)]
    pub vsock: Option<OsString>,

    /// Leave croft-vmm without its jail, so that a debugger can be attached to it
    #[arg(long, hide = true)]
    pub no_jail: bool,
}

impl PlaceOptions {
    /// An option that was given: an instance has its own places.
    pub fn given(&self) -> Option<&'static str> {
        let all = [
            (self.log.is_some(), "--log"),
            (self.gdb.is_some(), "--gdb"),
            (self.control.is_some(), "--control"),
            (self.terminal.is_some(), "--terminal"),
            (!self.ports.is_empty(), "--port"),
            (self.vsock.is_some(), "--vsock"),
            (self.no_jail, "--no-jail"),
        ];
        all.into_iter()
            .find_map(|(given, name)| given.then_some(name))
    }

    /// The console's ports: their names, and the paths of their sockets. The
    /// terminal comes first.
    pub fn ports(&self) -> (Vec<String>, Vec<Option<OsString>>) {
        if self.terminal.is_none() && self.ports.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let first = ("terminal".to_owned(), self.terminal.clone());
        let others = self.ports.iter().cloned();
        let others = others.map(|(name, path)| (name, Some(path)));
        std::iter::once(first).chain(others).unzip()
    }
}

/// What a machine is.
#[derive(Debug, clap::Args)]
pub struct MachineOptions {
    /// What executes the machine's processors
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,

    /// Kernel: a Linux bzImage (vmlinuz), an ELF file with a PVH note, or a multiboot file;
    /// without it the machine boots, now and after each reset, with what is on its first disk
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub kernel: Option<OsString>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "kernel")]
    pub initrd: Option<OsString>,

    /// Disk: a raw or qcow2 image or block device, with options (below); can be given several
    /// times, and the guest sees /dev/vda, vdb and so on, after the image's own disk
    #[arg(long = "disk", value_name = disk::VALUE, value_hint = clap::ValueHint::FilePath, value_parser = OsStringValueParser::new().try_map(disk::parse_disk))]
    pub disks: Vec<RunDisk>,

    /// Directory of the host's for the guest, which mounts it by 'mount -t virtiofs TAG /mnt';
    /// can be given up to four times
    #[arg(long = "share", value_name = "HOST:TAG[,readonly]", value_hint = clap::ValueHint::DirPath, value_parser = OsStringValueParser::new().try_map(parse_share))]
    pub shares: Vec<RunShare>,

    #[command(flatten)]
    pub net: NetOptions,

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

    /// End (status 3) when the guest asks for a reset
    #[arg(long)]
    pub no_reboot: bool,

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
