//! Disks: a stock kernel's file system on virtio-blk, and what is refused.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use croft_disk::{Format, create};
use croft_tests::disk::{check, image, load, shell};
use croft_tests::{END, Stage};

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
    check(&image);
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

/// What a guest writes in pieces of any size is there, with and without the
/// page cache, and it knows whether there is a cache to flush.
#[test]
fn modes_of_the_cache() {
    let stage = Stage::new();
    let raw = |name: &str| stage.file(name, &[0; 128 << 10]);
    let qcow2 = stage.file("qcow2", b"");
    let file = File::options().read(true).write(true).open(&qcow2);
    create(file.unwrap(), Format::Qcow2, 128 << 10).unwrap();
    let disks = [raw("none"), qcow2, raw("writethrough")];
    let modes = ["none", "directsync,format=qcow2", "writethrough"];
    let [first, second, third] =
        [0, 1, 2].map(|n| format!("{},cache={}", path(&disks[n]), modes[n]));
    let mut command = shell(&stage, &first);
    command.args(["--disk", &second, "--disk", &third]);
    let mut machine = stage.start(command);
    load(&mut machine);
    // Every sector, each as one piece and not in order.
    machine.type_in(concat!(
        "seq -w 200000 | head -c 131072 >/all; ",
        "for d in vda vdb vdc; do cat /sys/block/$d/queue/write_cache; ",
        "for n in $(seq 0 63) $(seq 255 -1 64); do ",
        "dd if=/all of=/dev/$d bs=512 count=1 skip=$n seek=$n oflag=direct conv=notrunc 2>/dev/null; ",
        "done; dd if=/dev/$d iflag=direct bs=3584 2>/dev/null | cmp - /all && echo same-$d; ",
        "done; poweroff -f\n"
    ));
    machine.expect("write back");
    machine.expect("same-vda");
    machine.expect("write through");
    machine.expect("same-vdb");
    machine.expect("write through");
    machine.expect("same-vdc");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let numbers: String = (1..=200_000).map(|n| format!("{n:06}\n")).collect();
    for raw in [&disks[0], &disks[2]] {
        let found = fs::read(raw).unwrap();
        assert!(numbers.as_bytes().starts_with(&found), "{}", raw.display());
    }
    let odd = stage.file("odd", &[0; 512 * 9]);
    let disk = format!("{},cache=none", path(&odd));
    refused(&stage, &[&disk], &["odd'", "4608 bytes", "cache=writeback"]);
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
    refused(&stage, &[""], &["no name", "name an image"]);
    let image = stage.file("image", &[0; 4096]);
    let twice = [path(&image), path(&image)];
    refused(&stage, &twice, &["image'", "once more"]);
    let many: Vec<String> = (0..24)
        .map(|n| path(&stage.file(&format!("d{n}"), &[0; 512])).to_owned())
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(&stage, &many, &["24 disks", "at most 16"]);
}

#[test]
fn a_running_machines_disk_is_its_own() {
    let stage = Stage::new();
    let image = stage.file("image", &[0; 4096]);
    // hlt, and again should something wake it.
    let mut command = stage.tiny(&[0xF4, 0xEB, 0xFD]);
    command.args(["--disk", path(&image)]);
    let mut machine = stage.start(command);
    machine.stderr.wait_for("engine", END);
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
    let mut machine = other.start(again);
    machine.stderr.wait_for("engine", END);
    machine.signal("croft", rustix::process::Signal::TERM);
    assert_eq!(machine.wait().code, Some(128 + 15));
}

/// A host that has no more room is an I/O error for the guest and a line for
/// the operator; what was written before stays as it was.
#[test]
fn a_full_host() {
    let stage = Stage::new();
    let place = stage.path("place");
    fs::create_dir(&place).unwrap();
    let (disk, copy) = (place.join("disk"), stage.path("copy"));
    // 16 MiB that the guest may want, on a file system of 4.
    let prepare = format!(
        "mount -t tmpfs -o size=4M tmpfs {0}; truncate -s 16M {0}/disk",
        path(&place)
    );
    let unshare = ["--user", "--map-root-user", "--mount", "sh", "-ec"];
    let tried = Command::new("unshare").args(unshare).arg(&prepare).output();
    if !tried.as_ref().is_ok_and(|tried| tried.status.success()) {
        eprintln!("not tried, since this host lets nobody mount: {tried:?}");
        return;
    }
    let told = format!("{},on-io-error=report", path(&disk));
    let croft = shell(&stage, &told);
    let script = format!(
        "{prepare}; \"$@\"; cp --sparse=always {} {}",
        path(&disk),
        path(&copy)
    );
    let mut command = Command::new("unshare");
    command.args(unshare).arg(script).arg("sh");
    command.arg(croft.get_program()).args(croft.get_args());
    for (key, value) in croft.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    command
        .current_dir(stage.path("run"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut machine = stage.start(command);
    load(&mut machine);
    machine.type_in(concat!(
        "sum() { echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count=16 2>/dev/null | md5sum; }; ",
        "dd if=/dev/hwrng of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null; a=$(sum); ",
        "dd if=/dev/zero of=/dev/vda bs=64k seek=16 count=200 conv=fsync 2>/dev/null || echo full-$((40 + 2)); ",
        "b=$(sum); [ \"$a\" = \"$b\" ] && echo same-$((40 + 2)); echo sum-$a; poweroff -f\n"
    ));
    machine.expect("full-42");
    machine.expect("same-42");
    machine.expect("sum-");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stderr.contains("disk0: "), "{ended:#?}");
    assert!(ended.stderr.contains("No space left"), "{ended:#?}");
    // The host has what the guest read.
    let bytes = fs::read(&copy).unwrap();
    assert_eq!(bytes.len(), 16 << 20);
    let first = stage.file("first", &bytes[..1 << 20]);
    let sum = Command::new("md5sum").arg(first).output().unwrap();
    let sum = String::from_utf8_lossy(&sum.stdout);
    let sum = sum.split_whitespace().next().unwrap();
    assert!(
        ended.stdout.contains(&format!("sum-{sum}")),
        "{sum}: {ended:#?}"
    );
}

/// A file that is removed stays the machine's until it ends; one that is
/// shortened fails where nothing is left, and only there.
#[test]
fn a_disk_that_goes_away() {
    let stage = Stage::new();
    let image = stage.file("image", &vec![0x5A; 4 << 20]);
    let mut machine = stage.start(shell(&stage, path(&image)));
    load(&mut machine);
    let file = fs::File::options().write(true).open(&image).unwrap();
    fs::remove_file(&image).unwrap();
    machine.type_in(
        "dd if=/dev/hwrng of=/dev/vda bs=64k count=16 conv=fsync 2>&1 && echo removed-$((40 + 2))\n",
    );
    machine.expect("removed-42");
    file.set_len(1 << 20).unwrap();
    machine.type_in(concat!(
        "echo 3 >/proc/sys/vm/drop_caches; ",
        "dd if=/dev/vda of=/dev/null bs=64k count=16 2>/dev/null && echo before-$((40 + 2)); ",
        "dd if=/dev/vda of=/dev/null bs=64k skip=32 count=1 2>/dev/null || echo behind-$((40 + 2)); ",
        "poweroff -f\n"
    ));
    machine.expect("before-42");
    machine.expect("behind-42");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stderr.contains("disk0: "), "{ended:#?}");
}
