//! Guests that load modules of the stock kernel by hand.

use std::fs;
use std::process::{Command, Stdio};

use crate::files::{Kernel, program};
use crate::guest::{Act, PROMPT, UP, initramfs_with};
use crate::{Archive, Machine, Stage};

/// What every virtio device needs, in the order in which they can be loaded.
const VIRTIO: [&str; 5] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
];

/// The initial RAM disk of a guest in which Croft's agent runs.
///
/// # Panics
/// When the kernel was not fetched, or the agent is not built.
pub fn agent_initramfs() -> Vec<u8> {
    const VSOCK: [&str; 3] = [
        "vsock",
        "vmw_vsock_virtio_transport_common",
        "vmw_vsock_virtio_transport",
    ];
    let agent = fs::read(program("croft-agent")).expect("the agent");
    let archive = with_modules(Archive::new().directory("bin"), VIRTIO.iter().chain(&VSOCK));
    initramfs_with(archive.program("bin/croft-agent", &agent))
}

/// The initial RAM disk of a shell with virtio and `more` of `kernel` at hand.
///
/// # Panics
/// When the kernel was not fetched.
pub fn initramfs_of(kernel: Kernel, more: &[&str]) -> Vec<u8> {
    let names = VIRTIO.iter().chain(more);
    initramfs_with(with_modules_of(kernel, Archive::new(), names))
}

fn with_modules<'a>(archive: Archive, names: impl Iterator<Item = &'a &'a str>) -> Archive {
    with_modules_of(Kernel::Cloud, archive, names)
}

fn with_modules_of<'a>(
    kernel: Kernel,
    archive: Archive,
    names: impl Iterator<Item = &'a &'a str>,
) -> Archive {
    names.fold(archive, |archive, name| {
        let module = fs::read(kernel.module(name)).expect("a module");
        archive.program(&format!("{name}.ko"), &module)
    })
}

/// `croft run` of a shell with virtio and `more` at hand.
///
/// # Panics
/// When the kernel was not fetched.
pub fn shell(stage: &Stage, more: &[&str]) -> Command {
    shell_with(stage, Archive::new(), more)
}

/// As [`shell`], by a user without any privilege.
///
/// # Panics
/// As [`shell`].
pub fn unprivileged_shell(stage: &Stage, more: &[&str]) -> Command {
    let mut command = stage.unprivileged_linux(Kernel::Cloud, Act::Shell);
    let archive = with_modules(Archive::new(), VIRTIO.iter().chain(more));
    // In the place of the one without modules.
    stage.file("initrd", &initramfs_with(archive));
    command.stdin(Stdio::piped());
    command
}

/// The same, and what `archive` has already.
///
/// # Panics
/// As [`shell`].
pub fn shell_with(stage: &Stage, archive: Archive, more: &[&str]) -> Command {
    let names = VIRTIO.iter().chain(more);
    let archive = with_modules(archive, names);
    let initrd = stage.file("initrd", &initramfs_with(archive));
    let mut command = stage.run();
    command
        .arg("--kernel")
        .arg(Kernel::Cloud.path())
        .arg("--initrd")
        .arg(initrd)
        .args(["--append", &Act::Shell.command_line()])
        .stdin(Stdio::piped());
    command
}

/// Loads them after a boot. What is waited for must not be in what is typed,
/// since the terminal echoes it.
///
/// # Panics
/// When the guest does not say that it has them.
pub fn load(machine: &mut Machine<'_>, more: &[&str]) {
    machine.expect(UP);
    machine.expect(PROMPT);
    let names: Vec<&str> = VIRTIO.iter().chain(more).copied().collect();
    machine.type_in(&format!(
        "cd /; for m in {}; do insmod $m.ko; done; echo loaded-$((40 + 2))\n",
        names.join(" ")
    ));
    machine.expect("loaded-42");
}
