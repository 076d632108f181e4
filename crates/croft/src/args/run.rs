//! `croft run`.

use std::ffi::OsString;

use clap::ArgGroup;

use super::create::InstanceOptions;
use super::machine::{MachineOptions, PlaceOptions};
use super::values::parse_name;

/// Command lines to start from.
pub const EXAMPLES: &str = "\
Examples:
  A Debian of its own, and its console:
    croft run debian:12 --name web
  In the background, with more memory, started again when it fails:
    croft run -d debian:12 --name web --memory 2G --restart on-failure
  One command in a new Debian that is gone afterwards:
    croft run --ephemeral debian:12 -- cat /etc/os-release
  A kernel and an initramfs on this terminal, nothing kept:
    croft run --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'
  Wait for nothing, keep the output:
    croft run --kernel vmlinuz --initrd test.cpio --append 'console=ttyS0 quiet' \\
      --no-reboot < /dev/null > output.txt
  With two disks, the second one shared with other readers:
    croft run --kernel vmlinuz --append 'console=ttyS0 root=/dev/vda' \\
      --disk root.img --disk data.img,readonly
  With the kernel that is on the disk: an overlay, which takes what the guest changes,
  over an image that stays as it is:
    qemu-img create -f qcow2 -b debian.qcow2 -F qcow2 web.qcow2
    croft run --disk web.qcow2,backing=debian.qcow2
  A web server that others reach at port 8080 of this host:
    croft run -d debian:12 --name web --publish 8080:80
  With a directory of the host's, mounted by 'mount -t virtiofs src /mnt':
    croft run --kernel vmlinuz --initrd initrd.img --share ~/src:src,readonly
  With a debugger:
    croft run --kernel vmlinux --append nokaslr --gdb 1234
    gdb vmlinux -ex 'target remote localhost:1234'";

/// What the console is.
pub const CONSOLE: &str = "\
Console:
  Standard input and output are the guest's first serial port (console=ttyS0).
  On a terminal every key goes to the guest, except Ctrl-], which leaves. An
  instance (of an IMAGE, or with -d) goes on without: 'croft console NAME' comes
  back to it. A machine of --kernel without -d ends, as it does at SIGINT,
  SIGTERM, SIGHUP and SIGQUIT. Only the guest's output goes to standard output;
  what Croft has to say goes to standard error. The end of standard input is not
  the end of the machine.";

/// `croft run`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("payload").args(["image", "kernel", "disks"]).required(true).multiple(true))]
pub struct RunOptions {
    /// Image to make an instance from: a name of 'croft image list', or debian:12, debian:13
    #[arg(value_name = "IMAGE", conflicts_with = "kernel")]
    pub image: Option<String>,

    /// Run an instance in the background: print its name once it runs
    #[arg(short, long)]
    pub detach: bool,

    /// The instance's name; made from the image's when not given
    #[arg(long, value_parser = parse_name)]
    pub name: Option<String>,

    #[command(flatten)]
    pub machine: MachineOptions,

    #[command(flatten)]
    pub instance: InstanceOptions,

    #[command(flatten)]
    pub place: PlaceOptions,

    /// The guest's vsock context id
    #[arg(long, value_name = "CID", default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=0xFFFF_FFFE), requires = "vsock")]
    pub vsock_cid: u32,

    /// Command to run in the instance once it is ready, by its agent; the instance is stopped
    /// when it has ended
    #[arg(
        last = true,
        value_name = "COMMAND",
        requires = "image",
        conflicts_with = "detach"
    )]
    pub command: Vec<OsString>,
}
