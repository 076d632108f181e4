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
kernel in /boot. An OCI image layout, as a directory or an archive, and what docker
save writes give an image for application containers; of several images in one
--ref names which.

Examples:
  croft image import debian-12-genericcloud-amd64.qcow2 cloud:12
  croft image import rootfs.tar.xz alpine
  croft image import saved.tar web:2 --ref team/web:2
  croft image import top.qcow2 web --backing base.qcow2";

/// What follows the help of `croft image pull`.
pub const PULL_HELP: &str = "\
Without a registry the name means docker.io, and without a tag latest. The image
keeps its whole name, and is found by the short one too where no other image has
it. Passwords are those of 'croft image login', or of ~/.docker/config.json with
its credential helpers. What a broken pull has left is taken up by the next one.

Examples:
  croft image pull debian
  croft image pull registry.example:5000/team/web:2 --ca-file ca.pem
  croft image pull quay.io/team/web@sha256:...";

/// `croft image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image of Debian from its packages
    #[command(after_help = BUILD_HELP)]
    Build(BuildOptions),
    /// Import a disk (qcow2, raw, vmdk, vhdx, vpc, vdi), an archive of a root file system, or an
    /// image of the OCI's or of docker save
    #[command(after_help = IMPORT_HELP)]
    Import(ImportOptions),
    /// Get an image for application containers from a registry
    #[command(after_help = PULL_HELP)]
    Pull(PullOptions),
    /// Keep a password for a registry
    Login(LoginOptions),
    /// Forget the password for a registry
    Logout {
        /// Its host, and its port if it is not the usual one; docker.io for Docker's own
        registry: String,
    },
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
    /// Give an image one more name
    Tag {
        /// Its name, or the beginning of its id
        image: String,
        /// The further name
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
    /// The file, or the directory of a layout
    #[arg(value_hint = clap::ValueHint::AnyPath)]
    pub file: PathBuf,

    /// The image's name
    pub name: String,

    /// What the disk is: raw, qcow2, vmdk, vhdx, vpc or vdi; what it says it is when not given
    #[arg(long)]
    pub format: Option<Format>,

    /// The file that a qcow2 file is a layer over; several times for a chain, downwards
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub backing: Vec<PathBuf>,

    /// Which image of a layout or archive with several: its name there, or the end of it
    #[arg(long = "ref", value_name = "NAME")]
    pub wanted: Option<String>,
}

/// How a registry is reached.
#[derive(Debug, clap::Args)]
pub struct AccessOptions {
    /// Who asks
    #[arg(long)]
    pub username: Option<String>,

    /// Take the password from standard input
    #[arg(long)]
    pub password_stdin: bool,

    /// Certificates, in PEM, to trust beside the system's
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub ca_file: Option<PathBuf>,

    /// HTTP without TLS: everybody on the way can read and change what is sent
    #[arg(long)]
    pub insecure: bool,
}

/// `croft image pull`.
#[derive(Debug, clap::Args)]
pub struct PullOptions {
    /// The image: `[REGISTRY/]NAME[:TAG|@DIGEST]`
    pub image: String,

    #[command(flatten)]
    pub access: AccessOptions,
}

/// `croft image login`.
#[derive(Debug, clap::Args)]
pub struct LoginOptions {
    /// Its host, and its port if it is not the usual one; docker.io for Docker's own
    pub registry: String,

    #[command(flatten)]
    pub access: AccessOptions,
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

    /// raw, qcow2, tar, tar.zst or oci; what the file's name ends in when not given
    #[arg(long)]
    pub format: Option<Form>,
}
