//! `croft image`.

use std::path::PathBuf;

use clap::Subcommand;
use croft_image::build::Mode;
use croft_image::export::Form;
use croft_image::import::probe::Format;

use super::output::OutputFormat;

/// What follows the help of `croft image build`.
pub const BUILD_HELP: &str = "\
Packages come from the archive that this host's apt uses, or else from Debian's
own. Building wants mmdebstrap, and root or what passes for it: subordinate ids
(uidmap), or fakechroot and fakeroot for the release that this host has.

Examples:
  croft image build debian:12
  croft image build debian:13 --package nginx --name web:2026-11
  croft image build debian:12 --package cloud-init --name debian:12-cloud-init";

/// What follows the help of `croft image import`.
pub const IMPORT_HELP: &str = "\
Disks must have a kernel of their own, in a Linux system on ext4 or btrfs.
vmdk, vhdx, vpc and vdi are converted by qemu-img (qemu-utils). An archive of a
root file system gives an image for containers, and for machines too if it has a
kernel in /boot.

Examples:
  croft image import debian-12-genericcloud-amd64.qcow2 cloud:12
  croft image import rootfs.tar.xz alpine
  croft image import top.qcow2 web --backing base.qcow2";

/// `croft image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image of Debian from its packages
    #[command(after_help = BUILD_HELP)]
    Build(BuildOptions),
    /// Import a disk (qcow2, raw, vmdk, vhdx, vpc, vdi) or an archive of a root file system
    #[command(after_help = IMPORT_HELP)]
    Import(ImportOptions),
    /// List the images
    #[command(visible_alias = "ls")]
    List(ListOptions),
    /// Tell all that is known of an image
    Show(ShowOptions),
    /// Give an image another name, or one more if it is called by its id
    Rename {
        /// Its name, or the beginning of its id
        image: String,
        /// The new name
        name: String,
    },
    /// Delete images that no instance uses; of several names, only the one given
    #[command(visible_alias = "rm")]
    Delete {
        /// Their names, or the beginnings of their ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Delete the images that have no name and that no instance uses
    Prune,
    /// Write an image to a file
    Export(ExportOptions),
    /// Read all of an image and compare it with its digests
    Verify {
        /// Names, or beginnings of ids; all images when not given
        images: Vec<String>,
    },
}

/// `croft image build`.
#[derive(Debug, clap::Args)]
pub struct BuildOptions {
    /// What to build: debian:12 or debian:13
    pub release: String,

    /// The image's name; that of the release when not given
    #[arg(long)]
    pub name: Option<String>,

    /// Leave it if there is one of this name already that this Croft would build
    #[arg(long)]
    pub if_needed: bool,

    /// One more package; can be given several times
    #[arg(long = "package", value_name = "NAME")]
    pub packages: Vec<String>,

    /// Archive to take packages from: a URL, or a line of sources.list; can be given several
    /// times. The image itself uses Debian's own
    #[arg(long = "mirror", value_name = "URL|LINE")]
    pub mirrors: Vec<String>,

    /// How to be root: root, unshare or fakechroot; the first that works when not given
    #[arg(long)]
    pub mode: Option<Mode>,
}

/// `croft image import`.
#[derive(Debug, clap::Args)]
pub struct ImportOptions {
    /// The file
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub file: PathBuf,

    /// The image's name
    pub name: String,

    /// What the disk is: raw, qcow2, vmdk, vhdx, vpc or vdi; what it says it is when not given
    #[arg(long)]
    pub format: Option<Format>,

    /// The file that a qcow2 file is a layer over; several times for a chain, downwards
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub backing: Vec<PathBuf>,
}

/// `croft image list`.
#[derive(Debug, clap::Args)]
pub struct ListOptions {
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// `croft image show`.
#[derive(Debug, clap::Args)]
pub struct ShowOptions {
    /// Its name, or the beginning of its id
    pub image: String,

    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// `croft image export`.
#[derive(Debug, clap::Args)]
pub struct ExportOptions {
    /// Its name, or the beginning of its id
    pub image: String,

    /// File to make; none may be there yet
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub file: PathBuf,

    /// raw, qcow2, tar or tar.zst; what the file's name ends in when not given
    #[arg(long)]
    pub format: Option<Form>,
}
