//! Disks and NICs that come and go under stock kernels, in the jail.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use croft_disk::{Format, create_overlay};
use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT};
use croft_tests::modules::{self, initramfs_of};
use croft_tests::{Instance, Machine, PATIENCE, Stage, eventually, succeed};
use rustix::process::{Signal, kill_process};

/// Those of disks and NICs.
const MODULES: [&str; 4] = ["virtio_blk", "failover", "net_failover", "virtio_net"];

/// An instance that runs a shell, and its console.
fn shell(stage: &Stage, kernel: Kernel) -> (Instance<'_>, Machine<'_>) {
    let initrd = initramfs_of(kernel, &MODULES);
    let more = ["--engine", "software", "--cpus", "2"];
    let instance = Instance::create_of(stage, kernel, &initrd, Act::Shell, &more);
    instance.done(&["start"]);
    let mut command = instance.croft(&["console", stage.name()]);
    command.stdin(Stdio::piped());
    let mut machine = stage.start(command);
    modules::load(&mut machine, &MODULES);
    (instance, machine)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn disk(stage: &Stage, name: &str, bytes: u64) -> PathBuf {
    let path = stage.file(name, b"");
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(bytes).unwrap();
    path
}

/// `croft` with these words, behind which the instance's name is put in.
fn ask(instance: &Instance<'_>, stage: &Stage, words: &[&str]) -> Command {
    let (command, rest) = words.split_at(2);
    let mut command = instance.croft(command);
    command.arg(stage.name()).args(rest);
    command
}

/// Types a command whose output ends so.
fn type_in(machine: &mut Machine<'_>, command: &str, answer: &str) {
    machine.type_in(&format!("{command}\n"));
    machine.expect(answer);
}

/// Waits in the guest until it has a block device, or has it no more.
fn wait_for_block(machine: &mut Machine<'_>, name: &str, there: bool, tag: u32) {
    let test = if there { "!" } else { "" };
    let command = format!(
        "while {test} [ -e /sys/block/{name} ]; do sleep 0.1; done; echo block-$((40 + {tag}))"
    );
    type_in(machine, &command, &format!("block-{}", 40 + tag));
}

/// Attach, write, detach, look, attach again: by a raw disk and by a chain of
/// images.
fn disks_come_and_go(kernel: Kernel) {
    let stage = Stage::new();
    let (instance, mut machine) = shell(&stage, kernel);
    let done = |words: &[&str]| succeed(ask(&instance, &stage, words));
    let raw = disk(&stage, "raw", 8 << 20);
    let base = disk(&stage, "base", 8 << 20);
    fs::write(&base, {
        let mut bytes = b"from the base\n".to_vec();
        bytes.resize(8 << 20, 0);
        bytes
    })
    .unwrap();
    let top = stage.file("top", b"");
    let file = File::options().read(true).write(true).open(&top).unwrap();
    create_overlay(file, 8 << 20, path(&base), Format::Raw).unwrap();
    let raw_disk = format!("{},format=raw", path(&raw));
    let chain = format!("{},backing={},format=raw", path(&top), path(&base));

    assert_eq!(done(&["disk", "attach", &raw_disk]), "disk0\n");
    wait_for_block(&mut machine, "vda", true, 1);
    let command = "cat /sys/bus/pci/devices/0000:00:02.0/vendor /sys/block/vda/serial; echo; \
                   echo written > /dev/vda; sync; echo sync-$((40 + 2))";
    type_in(&mut machine, command, "sync-42");
    let said = machine.stdout.text();
    assert!(said.contains("0x1af4") && said.contains("disk0"), "{said}");
    assert_eq!(done(&["disk", "attach", &chain]), "disk1\n");
    wait_for_block(&mut machine, "vdb", true, 3);
    let command = "head -n 1 /dev/vdb; echo over > /dev/vdb; sync; echo sync-$((40 + 4))";
    type_in(&mut machine, command, "sync-44");
    assert!(machine.stdout.text().contains("from the base"));
    let shown = instance.done(&["show"]);
    assert!(
        shown.contains("disk0") && shown.contains("disk1"),
        "{shown}"
    );

    done(&["disk", "detach", "disk0"]);
    wait_for_block(&mut machine, "vda", false, 5);
    let mut start = [0; 8];
    File::open(&raw).unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"written\n");
    // It is free, and comes back where it was.
    assert_eq!(done(&["disk", "attach", &raw_disk]), "disk0\n");
    wait_for_block(&mut machine, "vda", true, 6);
    let command = "echo again-$(head -n 1 /dev/vda)-$(head -n 1 /dev/vdb)";
    type_in(&mut machine, command, "again-written-over");
    assert!(!machine.stdout.text().contains("I/O error"));

    // Both are there after a reboot, and one goes by force.
    machine.type_in("reboot -f\n");
    modules::load(&mut machine, &MODULES);
    let command = "echo boot-$(head -n 1 /dev/vda)-$(head -n 1 /dev/vdb)";
    type_in(&mut machine, command, "boot-written-over");
    done(&["disk", "detach", "disk1", "--force"]);
    // With a disk that was attached the vmm dies: its files are free.
    kill_process(stage.wait_for("croft-vmm"), Signal::KILL).unwrap();
    instance.wait_for_state("failed");
    drop(machine);
    instance.done(&["start"]);
    instance.wait_for_log(PROMPT, 3);
    instance.done(&["stop", "--force"]);
    instance.assert_quiet();
    instance.done(&["delete"]);
}

#[test]
fn disks_come_and_go_on_the_cloud_kernel() {
    disks_come_and_go(Kernel::Cloud);
}

#[test]
fn disks_come_and_go_on_the_generic_kernel() {
    disks_come_and_go(Kernel::Generic);
}

/// A paused guest finds what was attached, and releases what it was asked
/// for, when it goes on.
#[test]
fn a_paused_machine_finds_it_later() {
    let stage = Stage::new();
    let (instance, mut machine) = shell(&stage, Kernel::Cloud);
    let [one, two] = ["one", "two"].map(|name| disk(&stage, name, 1 << 20));
    let [one, two] = [one, two].map(|file| format!("{},format=raw", path(&file)));
    instance.done(&["pause"]);
    succeed(ask(&instance, &stage, &["disk", "attach", &one]));
    succeed(ask(&instance, &stage, &["disk", "attach", &two]));
    let words = ["disk", "detach", "disk0", "--timeout", "1"];
    let late = ask(&instance, &stage, &words).output().unwrap();
    assert_eq!(late.status.code(), Some(124), "{late:?}");
    assert!(instance.done(&["show"]).contains("asked to release"));
    instance.done(&["resume"]);
    // The first one may come and go between two looks at it.
    eventually(PATIENCE, "the guest releases it", || {
        !instance.done(&["show"]).contains("asked to release")
    });
    let command = "while ! grep -q disk1 /sys/block/vd?/serial; do sleep 0.1; done; \
                   echo left-$(cat /sys/block/vd?/serial)";
    type_in(&mut machine, command, "left-disk1");
    drop(machine);
    instance.done(&["stop", "--force"]);
    instance.done(&["delete"]);
}

/// A NIC of a user network; what carries its frames needs no right.
#[test]
fn a_nic_comes_and_goes() {
    let passt = Command::new("passt").arg("--version").output();
    if !passt.is_ok_and(|output| output.status.success()) {
        println!("skipped: passt is not there; scripts/install-deps test installs it");
        return;
    }
    let stage = Stage::new();
    let (instance, mut machine) = shell(&stage, Kernel::Cloud);
    let done = |words: &[&str]| succeed(ask(&instance, &stage, words));
    for tag in [1, 5] {
        assert_eq!(done(&["nic", "attach", "--net", "user"]), "net0\n");
        let command = format!(
            "while ! [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ifconfig eth0 up; \
             echo nic-$(cat /sys/class/net/eth0/carrier)-$((40 + {tag}))"
        );
        type_in(&mut machine, &command, &format!("nic-1-{}", 40 + tag));
        done(&["nic", "set", "net0", "--link", "down"]);
        let command = format!(
            "while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done; \
             echo cable-$((41 + {tag}))"
        );
        type_in(&mut machine, &command, &format!("cable-{}", 41 + tag));
        assert!(instance.done(&["show"]).contains("link down"));
        done(&["nic", "detach", "net0"]);
        let command = format!(
            "while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; echo gone-$((42 + {tag}))"
        );
        type_in(&mut machine, &command, &format!("gone-{}", 42 + tag));
        assert!(!instance.done(&["show"]).contains("net0"));
    }
    drop(machine);
    instance.done(&["stop", "--force"]);
    instance.assert_quiet();
    instance.done(&["delete"]);
}
