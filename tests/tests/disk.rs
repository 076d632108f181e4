//! Disks: a stock kernel's file system on virtio-blk, and what is refused.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT, UP, initramfs_with};
use croft_tests::{Archive, END, Machine, Stage};

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
fn image(stage: &Stage) -> PathBuf {
    let tree = stage.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("hello"), "hello from the host\n").unwrap();
    let image = stage.file("disk", b"");
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(32 << 20)
        .unwrap();
    let status = tool("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([&tree, &image])
        .status()
        .expect("mke2fs; scripts/install-deps test installs it");
    assert!(status.success());
    image
}

/// A shell with the modules at hand.
fn shell(stage: &Stage, disk: &str) -> Command {
    let archive = MODULES.iter().fold(Archive::new(), |archive, name| {
        let module = fs::read(Kernel::Cloud.module(name)).unwrap();
        archive.program(&format!("{name}.ko"), &module)
    });
    let initrd = stage.file("initrd", &initramfs_with(archive));
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

/// Loads the modules after a boot. What is waited for must not be in what is typed, since
/// the terminal echoes it.
fn load(machine: &mut Machine<'_>) {
    machine.expect(UP);
    machine.expect(PROMPT);
    machine.type_in(&format!(
        "cd /; for m in {}; do insmod $m.ko; done; echo loaded-$((40 + 2))\n",
        MODULES.join(" ")
    ));
    machine.expect("loaded-42");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The scenario: mount, write, reboot, read back; the host's fsck has
/// nothing to say.
#[test]
fn an_ext4_disk_survives_a_reboot() {
    let stage = Stage::new();
    let image = image(&stage);
    let mut machine = stage.start(shell(&stage, path(&image)));
    load(&mut machine);
    machine.type_in(concat!(
        "mkdir m; mount -t ext4 /dev/vda m; cat m/hello; ",
        "echo rng-$(cat /sys/class/misc/hw_random/rng_current); ",
        "echo serial-$(cat /sys/block/vda/serial)\n"
    ));
    machine.expect("\nhello from the host");
    machine.expect("rng-virtio_rng");
    machine.expect("serial-disk0");
    machine.type_in(concat!(
        "dd if=/dev/hwrng of=m/big bs=4k count=64 2>/dev/null; ",
        "dd if=m/big of=m/copy bs=1k 2>/dev/null; ",
        "md5sum m/big m/copy > m/sums; sync; umount m; reboot -f\n"
    ));
    load(&mut machine);
    machine.type_in(concat!(
        "mkdir m; mount -t ext4 /dev/vda m; md5sum -c m/sums; ",
        "rm m/copy; fstrim m && echo trim-$((40 + 2)); umount m; poweroff -f\n"
    ));
    machine.expect("m/big: OK");
    machine.expect("m/copy: OK");
    machine.expect("trim-42");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for bad in ["I/O error", "BUG", "WARNING: CPU", "EXT4-fs error"] {
        assert!(!ended.stdout.contains(bad), "{ended:#?}");
    }
    let fsck = tool("e2fsck").arg("-fn").arg(&image).output().unwrap();
    assert!(fsck.status.success(), "{fsck:?}");
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let stage = Stage::new();
    let image = image(&stage);
    let before = fs::read(&image).unwrap();
    let disk = format!("{},readonly", path(&image));
    let mut machine = stage.start(shell(&stage, &disk));
    load(&mut machine);
    machine.type_in(concat!(
        "echo ro-$(cat /sys/block/vda/ro); mkdir m; mount -o ro -t ext4 /dev/vda m && cat m/hello; ",
        "dd if=/dev/zero of=/dev/vda count=8 2>/dev/null || echo refused-$((40 + 2)); poweroff -f\n"
    ));
    machine.expect("ro-1");
    machine.expect("\nhello from the host");
    machine.expect("refused-42");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(fs::read(&image).unwrap() == before);
}

/// What must be refused, with these words.
fn refused(stage: &Stage, disks: &[&str], words: &[&str]) {
    let mut command = stage.tiny(&[0xF4]);
    for disk in disks {
        command.args(["--disk", disk]);
    }
    let ended = stage.start(command).wait_at_most(END);
    let text = format!("{disks:?}\n{ended:#?}");
    assert_eq!(ended.code, Some(2), "{text}");
    assert!((1..=3).contains(&ended.stderr.lines().count()), "{text}");
    for word in words {
        assert!(ended.stderr.contains(word), "'{word}' is missing: {text}");
    }
}

#[test]
fn disks_that_are_none() {
    let stage = Stage::new();
    refused(
        &stage,
        &["none"],
        &["disk 'none'", "no such file", "--disk"],
    );
    for way in ["", ",readonly"] {
        let directory = format!("{}{way}", path(&stage.path("run")));
        refused(&stage, &[&directory], &["run'", "is a directory"]);
    }
    refused(&stage, &["/dev/null"], &["/dev/null", "character device"]);
    let empty = stage.file("empty", b"");
    refused(&stage, &[path(&empty)], &["empty'", "is empty", "truncate"]);
    let odd = stage.file("odd", &[0; 1000]);
    refused(&stage, &[path(&odd)], &["odd'", "1000 bytes", "512"]);
    refused(&stage, &[""], &["name an image"]);
    let image = stage.file("image", &[0; 4096]);
    let twice = [path(&image), path(&image)];
    refused(&stage, &twice, &["image'", "once more"]);
    let many: Vec<String> = (0..31)
        .map(|n| path(&stage.file(&format!("d{n}"), &[0; 512])).to_owned())
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(&stage, &many, &["31 disks", "at most 30"]);
}

#[test]
fn a_running_machines_disk_is_its_own() {
    let stage = Stage::new();
    let image = stage.file("image", &[0; 4096]);
    // hlt, and again should something wake it.
    let mut command = stage.tiny(&[0xF4, 0xEB, 0xFD]);
    command.args(["--disk", path(&image)]);
    let machine = stage.start(command);
    stage.wait_for("croft-vmm");
    let other = Stage::new();
    for way in ["", ",readonly"] {
        let disk = format!("{}{way}", path(&image));
        refused(&other, &[&disk], &["image'", "in use by another process"]);
    }
    let copy = stage.path("copy");
    let qemu = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "raw"])
        .args([&image, &copy])
        .output();
    match qemu {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains("lock"), "{said}");
        }
        Err(_) => eprintln!("qemu-img is not installed: not tried"),
    }
    machine.signal("croft", rustix::process::Signal::TERM);
    machine.wait();
    refused(&other, &["none"], &["no such file"]);
    let mut again = other.tiny(&[0xF4, 0xEB, 0xFD]);
    again.args(["--disk", path(&image)]);
    let machine = other.start(again);
    other.wait_for("croft-vmm");
    machine.signal("croft", rustix::process::Signal::TERM);
    machine.wait();
}
