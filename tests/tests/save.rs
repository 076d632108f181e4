//! Machines that are saved and restored, on the software engine; the moves
//! between engines are with the nested machine's checks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use croft_tests::disk::{check, image, load, shell};
use croft_tests::files::{Kernel, program};
use croft_tests::guest::{Act, result};
use croft_tests::{END, Machine, Stage, tiny};
use rustix::process::Signal;

/// Steps of the computation: some seconds, so that it is moved in its middle
/// unless the host is very slow to do so.
const STEPS: u32 = 120;

/// Saves `machine`, whose control socket is `control`, and waits for its end.
fn save(stage: &Stage, machine: Machine<'_>, name: &str) -> PathBuf {
    let file = stage.path(name);
    let saved = stage.save(&stage.path("control"), &file);
    assert_eq!((saved.code, saved.stderr.as_str()), (Some(0), ""));
    let ended = machine.wait_at_most(END);
    assert_eq!(ended.code, Some(6), "{ended:#?}");
    assert!(ended.stderr.contains("the machine was saved"), "{ended:#?}");
    assert!(!stage.path("control").exists());
    file
}

/// The kernel of a distribution, on two processors, is saved at some points
/// of a long computation and comes to the same result.
#[test]
fn a_computation_goes_on_where_it_was_saved() {
    let stage = Stage::new();
    let control = stage.path("control");
    let mut command = stage.linux(Kernel::Cloud, Act::Compute(STEPS));
    command
        .args([
            "--engine",
            "software",
            "--cpu",
            "portable-v1",
            "--cpus",
            "2",
        ])
        .args(["--memory", "256M", "--control"])
        .arg(&control);
    let mut machine = stage.start(command);
    machine.expect("one at 10");
    // Anywhere between two lines.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let pause = |n: u32| Duration::from_millis((now.subsec_millis() % 150 * n).into());
    for n in 1..=3 {
        std::thread::sleep(pause(n));
        let file = save(&stage, machine, &format!("state{n}"));
        // Sparse: most of the 256 MiB was never touched.
        assert!(fs::metadata(&file).unwrap().len() < 200 << 20);
        let mut command = stage.restore(&file);
        command.arg("--control").arg(&control);
        command.stdin(Stdio::piped());
        machine = stage.start(command);
        // Before it runs, its monitor listens.
        stage.wait_for("croft-vmm");
    }
    machine.type_in("go on\n");
    machine.expect(&result(STEPS));
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for bad in ["BUG", "WARNING: CPU", "rcu:", "stall"] {
        assert!(!ended.stdout.contains(bad), "{ended:#?}");
    }
}

/// A disk that is written to is saved with all its requests done.
#[test]
fn a_disk_in_use_stays_whole() {
    let stage = Stage::new();
    let image = image(&stage);
    let control = stage.path("control");
    let mut command = shell(&stage, image.to_str().unwrap());
    command.arg("--control").arg(&control);
    let mut machine = stage.start(command);
    load(&mut machine);
    machine.type_in(concat!(
        "mkdir m; mount -t ext4 /dev/vda m; n=0; while [ $n -lt 100 ]; do n=$((n + 1)); ",
        "dd if=/dev/hwrng of=m/f$((n % 9)) bs=4k count=16 conv=fsync 2>/dev/null; ",
        "md5sum m/f$((n % 9)) >m/s$((n % 9)); echo round-$n; done; ",
        "sync; cat m/s* | md5sum -c | grep -c OK; umount m; reboot -f\n"
    ));
    machine.expect("round-9");
    machine.close_input();
    let file = save(&stage, machine, "state");
    // Its own file system is not what the host would call clean.
    let mut command = stage.restore(&file);
    command.stdin(Stdio::piped());
    let mut machine = stage.start(command);
    machine.expect("round-100");
    machine.expect("\n9");
    // The reset loads the kernel again.
    load(&mut machine);
    machine.type_in(concat!(
        "mkdir m; mount -t ext4 /dev/vda m; cat m/s* | md5sum -c | grep -c OK; ",
        "umount m; poweroff -f\n"
    ));
    machine.expect("\n9");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for bad in ["I/O error", "BUG", "WARNING: CPU", "EXT4-fs error"] {
        assert!(!ended.stdout.contains(bad), "{ended:#?}");
    }
    check(&image);
}

/// A machine of a kernel that does nothing, saved with a disk.
fn saved_tiny(stage: &Stage, disk: &Path) -> PathBuf {
    let mut command = stage.tiny(tiny::SPIN);
    command.arg("--disk").arg(disk);
    command.args(["--engine", "software", "--control"]);
    command.arg(stage.path("control"));
    let machine = stage.start(command);
    stage.wait_for("croft-vmm");
    save(stage, machine, "state")
}

/// `croft restore` of `file` must be refused with these words.
fn refused(stage: &Stage, file: &Path, arguments: &[&str], words: &[&str]) {
    let mut command = stage.restore(file);
    command.args(arguments);
    let ended = stage.start(command).wait_at_most(END);
    let text = format!("{file:?} {arguments:?}\n{ended:#?}");
    assert_eq!(ended.code, Some(2), "{text}");
    assert!((1..=3).contains(&ended.stderr.lines().count()), "{text}");
    for word in words {
        assert!(ended.stderr.contains(word), "'{word}' is missing: {text}");
    }
}

#[test]
fn what_cannot_be_restored() {
    let stage = Stage::new();
    let disk = stage.file("disk", &[0; 4096]);
    let file = saved_tiny(&stage, &disk);
    refused(&stage, Path::new("none"), &[], &["'none'", "croft save"]);
    refused(&stage, &stage.path("run"), &[], &["not a regular file"]);
    refused(&stage, &disk, &[], &["disk'", "not a saved machine"]);
    let bytes = fs::read(&file).unwrap();
    let damaged = |name: &str, bytes: &[u8]| stage.file(name, bytes);
    for len in [0, 7, 30, 300, bytes.len() / 2, bytes.len() - 1] {
        let cut = damaged("cut", &bytes[..len]);
        refused(&stage, &cut, &[], &[]);
    }
    let mut wrong = bytes.clone();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    refused(&stage, &damaged("wrong", &wrong), &[], &["damaged"]);
    let mut newer = bytes.clone();
    newer[8] = 9;
    refused(&stage, &damaged("newer", &newer), &[], &["newer Croft"]);
    // Its model is the software engine's own.
    if has_kvm() {
        let words = ["software-fast", "kvm", "portable-v1"];
        refused(&stage, &file, &["--engine", "kvm"], &words);
    }
    // What it was run with is not there any more, or another.
    let other = stage.file("other", &[0; 8192]);
    let other = other.to_str().unwrap();
    refused(&stage, &file, &["--disk", other], &["4096 bytes", "8192"]);
    let read_only = format!("{},readonly", disk.to_str().unwrap());
    refused(&stage, &file, &["--disk", &read_only], &["read-only"]);
    let twice = ["--disk", disk.to_str().unwrap(), "--disk", other];
    refused(&stage, &file, &twice, &["1 disks", "2 disks"]);
    refused(
        &stage,
        &file,
        &["--kernel", "gone"],
        &["'gone'", "--kernel"],
    );
    fs::remove_file(&disk).unwrap();
    refused(&stage, &file, &[], &["disk'", "no such file", "--disk"]);
    // And with all of it there it still runs.
    File::create(&disk).unwrap().set_len(4096).unwrap();
    let machine = stage.start(stage.restore(&file));
    stage.wait_for("croft-vmm");
    machine.signal("croft", Signal::TERM);
    machine.wait();
}

/// Whether this host has a fit KVM.
fn has_kvm() -> bool {
    let doctor = Command::new(program("croft"))
        .args(["doctor", "--engine", "kvm"])
        .output();
    doctor.unwrap().status.success()
}

#[test]
fn what_cannot_be_saved() {
    let stage = Stage::new();
    let control = stage.path("control");
    let file = stage.path("state");
    let none = stage.save(&stage.path("none"), &file);
    assert_eq!(none.code, Some(2), "{none:?}");
    assert!(none.stderr.contains("no such socket"), "{none:?}");
    let mut command = stage.tiny(tiny::SPIN);
    command.args(["--engine", "software", "--control"]);
    command.arg(&control);
    let machine = stage.start(command);
    stage.wait_for("croft-vmm");
    // A file that is there, a directory that is not, a full file system.
    let precious = stage.file("precious", b"precious");
    let exists = stage.save(&control, &precious);
    assert_eq!(exists.code, Some(2), "{exists:?}");
    assert!(exists.stderr.contains("exists already"), "{exists:?}");
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    let nowhere = stage.save(&control, Path::new("/no/where"));
    assert_eq!(nowhere.code, Some(2), "{nowhere:?}");
    assert!(!file.exists());
    // It still runs, and can be saved.
    let saved = stage.save(&control, &file);
    assert_eq!(saved.code, Some(0), "{saved:?}");
    machine.wait_at_most(END);
    let gone = stage.save(&control, &stage.path("again"));
    assert_eq!(gone.code, Some(2), "{gone:?}");
}
