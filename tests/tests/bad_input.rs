//! What is wrong is named, with a remedy, in at most three lines; the exit
//! code is 2 and nothing was started.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use croft_tests::files::Kernel;
use croft_tests::{END, Stage, linux, tiny};

/// Runs what must be refused with these words.
fn refused(stage: &Stage, command: Command, words: &[&str]) {
    let line = format!("{command:?}");
    let ended = stage.start(command).wait_at_most(END);
    let text = format!("{line}\n{ended:#?}");
    assert_eq!(ended.code, Some(2), "{text}");
    assert_eq!(ended.stdout, "", "{text}");
    let lines = ended.stderr.lines().count();
    assert!((1..=3).contains(&lines), "{text}");
    assert!(ended.stderr.lines().all(|line| line.len() < 400), "{text}");
    for word in words {
        assert!(ended.stderr.contains(word), "'{word}' is missing: {text}");
    }
}

fn kernel(stage: &Stage, path: impl AsRef<Path>, words: &[&str]) {
    let mut command = stage.run();
    command.arg("--kernel").arg(path.as_ref());
    refused(stage, command, words);
}

fn stock() -> Vec<u8> {
    fs::read(Kernel::Cloud.path()).unwrap()
}

#[test]
fn kernels_that_are_not_files() {
    let stage = Stage::new();
    kernel(&stage, "none", &["'none'", "no such file", "--kernel"]);
    let directory = stage.path("directory");
    fs::create_dir(&directory).unwrap();
    kernel(&stage, directory, &["directory", "is a directory"]);
    kernel(&stage, "/dev/zero", &["/dev/zero", "not a regular file"]);
    kernel(&stage, stage.file("empty", b""), &["empty'", "is empty"]);
}

#[test]
fn kernels_that_are_none() {
    let stage = Stage::new();
    let text = stage.file("text", &b"not a kernel\n".repeat(1000));
    kernel(&stage, text, &["text'", "not a kernel", "vmlinuz"]);
    let zeros = stage.file("zeros", &vec![0; 1 << 20]);
    kernel(&stage, zeros, &["zeros'", "not a kernel"]);
    // A program of this host: an ELF file, and no kernel.
    kernel(&stage, "/bin/sh", &["'/bin/sh'", "PVH"]);
}

#[test]
fn kernels_for_other_architectures() {
    let stage = Stage::new();
    let arm = stage.file("arm", &tiny::kernel(tiny::AARCH64, tiny::SPIN));
    kernel(&stage, arm, &["arm'", "x86-64"]);
    // An arm64 Image (Documentation/arch/arm64/booting.rst): a jump, and its
    // magic at byte 56.
    let mut image = vec![0; 1 << 20];
    image[..4].copy_from_slice(&0x1400_0000u32.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    let image = stage.file("Image", &image);
    kernel(&stage, image, &["Image'", "x86-64"]);
}

#[test]
fn truncated_kernels() {
    let stage = Stage::new();
    let stock = stock();
    // From within the boot sector to just short of the payload's end.
    let payload = linux::payload(&stock);
    for len in [
        1,
        100,
        0x1FF,
        0x203,
        0x230,
        0x400,
        payload.start - 1,
        payload.start + 3,
        stock.len() / 2,
        payload.end - 1,
    ] {
        let part = stage.file("part", &stock[..len]);
        kernel(&stage, part, &["part'"]);
    }
    let tiny = tiny::kernel(tiny::X86_64, tiny::SPIN);
    for len in [5, 20, 63, 100, tiny.len() - 1] {
        let part = stage.file("part", &tiny[..len]);
        kernel(&stage, part, &["part'"]);
    }
}

#[test]
fn damaged_kernels() {
    let stage = Stage::new();
    let stock = stock();
    let payload = linux::payload(&stock);
    // One bit each, outside the payload too.
    for at in [
        0x300,
        payload.start - 10,
        payload.start + 10,
        payload.start + payload.len() / 2,
        payload.end - 10,
    ] {
        let mut damaged = stock.clone();
        damaged[at] ^= 1;
        let damaged = stage.file("damaged", &damaged);
        kernel(&stage, damaged, &["damaged'", "damaged"]);
    }
}

#[test]
fn a_decompression_bomb() {
    let stage = Stage::new();
    let bomb = linux::with_payload(&stock(), &linux::bomb());
    assert!(bomb.len() < 1 << 20);
    let bomb = stage.file("bomb", &bomb);
    kernel(&stage, bomb, &["bomb'", "unpacks to more than", "--memory"]);
}

#[test]
fn initrds() {
    let stage = Stage::new();
    let run = |initrd: &Path, words: &[&str]| {
        let mut command = stage.run();
        command.arg("--kernel").arg(Kernel::Cloud.path());
        command.arg("--initrd").arg(initrd);
        refused(&stage, command, words);
    };
    run(Path::new("none"), &["initrd 'none'", "--initrd"]);
    let directory = stage.path("directory");
    fs::create_dir(&directory).unwrap();
    run(&directory, &["directory'", "is a directory"]);
    run(&stage.file("empty", b""), &["empty'", "is empty"]);
    // Larger than memory, than its free part, and than any memory.
    for len in [1 << 30, 500 << 20, 1 << 42] {
        let large = stage.path("large");
        File::create(&large).unwrap().set_len(len).unwrap();
        run(&large, &["large'", "bytes"]);
    }
}

#[test]
fn memory_and_processors() {
    let stage = Stage::new();
    for (arguments, words) in [
        (["--memory", "0M"], &["--memory"][..]),
        (["--memory", "4k"], &["--memory"]),
        (["--memory", "16M"], &["--memory"]),
        (["--memory", "512"], &["512M"]),
        (["--memory", "1.5G"], &["1.5G", "512M"]),
        (["--memory", "lots"], &["lots", "512M"]),
        (["--memory", "64T"], &["--memory"]),
        (["--memory", "16777215T"], &["--memory"]),
        (["--memory", "99999999999999999999T"], &["--memory"]),
        (["--cpus", "0"], &["--cpus"]),
        (["--cpus", "255"], &["--cpus"]),
        (["--cpus", "4294967297"], &["--cpus"]),
        (["--cpus", "many"], &["many", "--cpus"]),
    ] {
        let mut command = stage.run();
        command.arg("--kernel").arg(Kernel::Cloud.path());
        command.args(arguments);
        refused(&stage, command, words);
    }
}

#[test]
fn options() {
    let stage = Stage::new();
    for (arguments, words) in [
        (&["--frobnicate"][..], &["--frobnicate", "--help"][..]),
        (&["stray"], &["--kernel", "[IMAGE]", "--help"]),
        (&["--engine", "kvm"], &["kvm", "software"]),
        (&["--engine", "tcg"], &["tcg", "software"]),
        (&["--cpu", "486"], &["486", "portable-v1"]),
        (&["--gdb", "no/where"], &["no/where", "--gdb"]),
        (&["--gdb", "70000"], &["70000"]),
        (&["--log", "no/where"], &["no/where", "--log"]),
    ] {
        let mut command = stage.run();
        command.arg("--kernel").arg(Kernel::Cloud.path());
        command.args(arguments);
        refused(&stage, command, words);
    }
    refused(&stage, stage.run(), &["--kernel"]);
}
