//! Disks for guests, and guests that use them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::files::Kernel;
use crate::guest::{Act, PROMPT, UP, initramfs_with};
use crate::{Archive, Machine, Stage};

/// In the order in which they can be loaded.
const MODULES: [&str; 7] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio-rng",
];

/// A program that is not in the path of everybody.
fn tool(name: &str) -> Command {
    let sbin = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(name));
    let found = sbin.into_iter().find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| PathBuf::from(name)))
}

/// An ext4 image of 32 MiB with one file in it.
///
/// # Panics
/// Without mke2fs, which `make test` installs.
pub fn image(stage: &Stage) -> PathBuf {
    let tree = stage.path("tree");
    fs::create_dir(&tree).expect("a directory");
    fs::write(tree.join("hello"), "hello from the host\n").expect("a file");
    image_of(stage, &tree, 32 << 20)
}

/// An ext4 image of `size` bytes with everything below `tree`.
///
/// # Panics
/// As [`image`].
pub fn image_of(stage: &Stage, tree: &Path, size: u64) -> PathBuf {
    let image = stage.file("disk", b"");
    File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(size))
        .expect("an image");
    let status = tool("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([tree, &image])
        .status()
        .expect("mke2fs; scripts/install-deps test installs it");
    assert!(status.success());
    image
}

/// The initial RAM disk of a shell with the modules at hand.
///
/// # Panics
/// When the kernel was not fetched.
pub fn initramfs() -> Vec<u8> {
    let archive = MODULES.iter().fold(Archive::new(), |archive, name| {
        let module = fs::read(Kernel::Cloud.module(name)).expect("a module");
        archive.program(&format!("{name}.ko"), &module)
    });
    initramfs_with(archive)
}

/// Asserts that the host's fsck has nothing to say about `image`.
///
/// # Panics
/// When it has.
pub fn check(image: &Path) {
    let fsck = tool("e2fsck")
        .arg("-fn")
        .arg(image)
        .output()
        .expect("e2fsck");
    assert!(fsck.status.success(), "{fsck:?}");
}

/// `croft run` of a shell with the modules at hand.
///
/// # Panics
/// When the kernel was not fetched.
pub fn shell(stage: &Stage, disk: &str) -> Command {
    let initrd = stage.file("initrd", &initramfs());
    let mut command = stage.run();
    command
        .arg("--kernel")
        .arg(Kernel::Cloud.path())
        .arg("--initrd")
        .arg(initrd)
        .args(["--append", &Act::Shell.command_line()])
        .args(["--cpus", "2", "--disk", disk])
        .stdin(Stdio::piped());
    command
}

/// Loads the modules after a boot. What is waited for must not be in what is
/// typed, since the terminal echoes it.
///
/// # Panics
/// When the guest does not say that it has them.
pub fn load(machine: &mut Machine<'_>) {
    machine.expect(UP);
    machine.expect(PROMPT);
    machine.type_in(&format!(
        "cd /; for m in {}; do insmod $m.ko; done; echo loaded-$((40 + 2))\n",
        MODULES.join(" ")
    ));
    machine.expect("loaded-42");
}
