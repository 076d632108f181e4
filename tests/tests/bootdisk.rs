//! Machines that boot with what is on their disk.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use croft_tests::Stage;
use croft_tests::disk::{check, image_of, initramfs, load};
use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT, UP};

fn boot(stage: &Stage, disk: &Path) -> Command {
    let mut command = stage.run();
    command.arg("--disk").arg(disk).stdin(Stdio::piped());
    command
}

/// The guest installs another kernel and reboots without unmounting: the next
/// kernel is found in a file system whose journal has not been replayed.
#[test]
fn the_kernel_that_a_guest_installs_boots_next() {
    let stage = Stage::new();
    let tree = stage.path("tree");
    for directory in ["boot", "etc/default", "next"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    let (cloud, generic) = (Kernel::Cloud, Kernel::Generic);
    let initrd = initramfs();
    fs::copy(cloud.path(), tree.join("boot/vmlinuz-6.1.0-9-cloud-amd64")).unwrap();
    fs::write(tree.join("boot/initrd.img-6.1.0-9-cloud-amd64"), &initrd).unwrap();
    fs::copy(generic.path(), tree.join("next/vmlinuz")).unwrap();
    let words = Act::Shell.command_line().replace("console=ttyS0 ", "");
    let configuration = format!("GRUB_CMDLINE_LINUX_DEFAULT=\"{words}\"\n");
    fs::write(tree.join("etc/default/grub"), configuration).unwrap();
    let disk = image_of(&stage, &tree, 128 << 20);

    let mut machine = stage.start(boot(&stage, &disk));
    load(&mut machine);
    machine.type_in("echo runs-$(uname -r); cat /proc/cmdline\n");
    machine.expect(&format!("runs-{}", cloud.release()));
    machine.expect("root=/dev/vda ");
    machine.type_in(concat!(
        "mkdir m; mount -t ext4 /dev/vda m; cd m/boot; ",
        "cp ../next/vmlinuz vmlinuz-6.1.0-10-amd64; ",
        "cp initrd.img-6.1.0-9-cloud-amd64 initrd.img-6.1.0-10-amd64; ",
        // A kernel that was not written to the end, and one without initrd.
        "> vmlinuz-6.1.0-11-amd64; > initrd.img-6.1.0-11-amd64; cp ../next/vmlinuz vmlinuz-6.2; ",
        "sync; reboot -f\n"
    ));
    machine.expect(UP);
    machine.expect(PROMPT);
    machine.type_in("echo runs-$(uname -r); poweroff -f\n");
    machine.expect(&format!("runs-{}", generic.release()));
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    // Nobody but the guest's kernel may replay the journal for good.
    let fsck = Command::new("/sbin/e2fsck")
        .args(["-fp"])
        .arg(&disk)
        .status();
    assert!(fsck.is_ok_and(|status| status.code().is_some_and(|code| code <= 1)));
    check(&disk);
}

#[test]
fn a_disk_without_a_system_is_refused() {
    let stage = Stage::new();
    let disk = stage.file("disk", &[0; 1 << 20]);
    let ended = stage.start(boot(&stage, &disk)).wait();
    assert_eq!(ended.code, Some(2), "{ended:#?}");
    for said in [
        "nothing known",
        "firmware boot is not there yet",
        "--kernel",
    ] {
        assert!(ended.stderr.contains(said), "{ended:#?}");
    }
    let ended = stage.start(stage.run()).wait();
    assert_eq!(ended.code, Some(2), "{ended:#?}");
}
