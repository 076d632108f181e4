//! What `croft doctor` and `--engine auto` make of `/dev/kvm`: as it is here,
//! and in mount namespaces where it is missing, locked or another device.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use croft_tests::files::program;
use croft_tests::{END, Stage};

/// What the doctor says about KVM, and which engine `auto` takes.
fn doctor(output: &Output) -> (String, String) {
    let text = String::from_utf8_lossy(&output.stdout);
    let find = |start: &str| {
        let line = text.lines().find(|line| line.trim().starts_with(start));
        line.unwrap_or_else(|| panic!("no '{start}' in {output:?}"))
            .trim()
            .to_owned()
    };
    (find("kvm "), find("machines can run here"))
}

/// A guest that halts at once and for ever, on `--engine auto`.
fn auto(stage: &Stage, mut command: Command) -> String {
    command.args(["--engine", "auto", "--no-reboot"]);
    let mut machine = stage.start(command);
    machine.stderr.wait_for("engine", END);
    machine.signal("croft", rustix::process::Signal::TERM);
    machine.wait_at_most(END).stderr
}

/// On a PVM machine the doctor names it and auto takes software; on any other
/// the two agree.
#[test]
fn auto_takes_what_the_doctor_finds_fit() {
    let output = Command::new(program("croft"))
        .arg("doctor")
        .output()
        .unwrap();
    let (kvm, verdict) = doctor(&output);
    let stage = Stage::new();
    let said = auto(&stage, stage.tiny(&[0xF4, 0xEB, 0xFD]));
    if kvm.contains("PVM") {
        assert!(kvm.contains("missing"), "{kvm}");
        assert!(verdict.ends_with("auto takes software"), "{verdict}");
        assert!(said.contains("engine software"), "{said}");
        assert!(
            said.contains("not engine kvm") && said.contains("PVM"),
            "{said}"
        );
        let asked = Command::new(program("croft"))
            .args(["doctor", "--engine", "kvm"])
            .status();
        assert_eq!(asked.unwrap().code(), Some(1));
    } else {
        eprintln!("/dev/kvm is no PVM device here, so that is not tried: {kvm}");
        let engine = verdict.rsplit(' ').next().unwrap();
        assert!(
            said.contains(&format!("engine {engine}:")),
            "{said} {verdict}"
        );
    }
}

/// Runs croft in a mount namespace where `prepare` was run, or says why that
/// cannot be.
fn elsewhere(prepare: &str, arguments: &[&str]) -> Option<Command> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", script]);
        command
    };
    let tried = unshare(prepare).output().expect("unshare");
    if !tried.status.success() {
        eprintln!("not tried, since this host refuses `{prepare}`: {tried:?}");
        return None;
    }
    let mut command = unshare(&format!("{prepare}; exec \"$@\""));
    command.arg("sh").arg(program("croft")).args(arguments);
    Some(command)
}

/// What the doctor says of KVM where `prepare` was run.
fn finding(prepare: &str) -> Option<String> {
    let output = elsewhere(prepare, &["doctor"])?.output().unwrap();
    let (kvm, verdict) = doctor(&output);
    assert!(verdict.ends_with("auto takes software"), "{verdict}");
    Some(kvm)
}

#[test]
fn a_host_without_kvm() {
    let stage = Stage::new();
    let dev = stage.path("dev");
    fs::create_dir(&dev).unwrap();
    let prepare = format!(
        "mount -t tmpfs tmpfs {0}; touch {0}/null; mount --bind /dev/null {0}/null; \
         mount --rbind {0} /dev",
        dev.display()
    );
    if let Some(kvm) = finding(&prepare) {
        assert!(
            kvm.contains("missing") && kvm.contains("no /dev/kvm"),
            "{kvm}"
        );
    }
}

#[test]
fn another_device_in_its_place() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("there is no /dev/kvm to put another one in place of: not tried");
        return;
    }
    if let Some(kvm) = finding("mount --bind /dev/null /dev/kvm") {
        assert!(
            kvm.contains("missing") && kvm.contains("is not KVM"),
            "{kvm}"
        );
    }
}

/// As a user whom the device's permissions keep out.
#[test]
fn no_permission() {
    let device = Path::new("/dev/kvm");
    let stage = Stage::new();
    if !device.exists() {
        eprintln!("there is no /dev/kvm to have no permission for: not tried");
        return;
    }
    let Some(mut command) = stage.unprivileged(&["doctor"]) else {
        eprintln!("this test is not run by root, who could take permissions away: not tried");
        return;
    };
    let output = command.output().unwrap();
    let (kvm, _) = doctor(&output);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(device).unwrap());
    if mode & 0o006 == 0o006 {
        eprintln!("everybody may use /dev/kvm here: not tried");
        return;
    }
    assert!(kvm.contains("missing"), "{kvm}");
    assert!(
        kvm.contains("permission") && kvm.contains("usermod"),
        "{kvm}"
    );
}
