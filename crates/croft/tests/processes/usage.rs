//! What is wrong is named, in at most three lines, with exit code 2.

use std::fs;
use std::process::{Command, Stdio};

use crate::stage::Stage;

fn refuse(stage: &Stage, arguments: &[&str], names: &str) {
    let output = Command::new(stage.path("croft"))
        .args(["run", "--name", &stage.name])
        .args(arguments)
        .current_dir(stage.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(text.lines().count() <= 3, "{arguments:?}: {text}");
    assert!(text.contains(names), "{arguments:?}: {text}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    stage.wait_for_silence();
}

#[test]
fn bad_configurations_are_refused() {
    let stage = Stage::new();
    fs::write(stage.path("empty"), "").unwrap();
    fs::create_dir(stage.path("directory")).unwrap();
    let fifo = Command::new("mkfifo").arg(stage.path("fifo")).status();
    assert!(fifo.unwrap().success());
    for (arguments, names) in [
        (&["--kernel", "none"][..], "'none': no such file"),
        (&["--kernel", "empty"], "'empty' is empty"),
        (&["--kernel", "directory"], "is a directory"),
        (&["--kernel", "fifo"], "not a regular file"),
        (&["--kernel", "kernel", "--initrd", "none"], "initrd 'none'"),
        (
            &["--kernel", "kernel", "--log", "directory"],
            "log 'directory'",
        ),
        (
            &["--kernel", "kernel", "--log", "no/where"],
            "log 'no/where'",
        ),
        (&["--kernel", "kernel", "--memory", "99999999T"], "--memory"),
        (&["--kernel", "kernel", "--memory", "12"], "512M"),
        (&["--kernel", "kernel", "--cpus", "0"], "--cpus"),
        (&["--kernel", "kernel", "--cpus", "4096"], "--cpus"),
        (&["--kernel", "kernel", "--engine", "x"], "software"),
        (
            &["--kernel", "kernel", "--gdb", "no/where"],
            "gdb socket 'no/where'",
        ),
        (
            &["--kernel", "kernel", "--gdb", "kernel"],
            "gdb socket 'kernel'",
        ),
        (&["--kernel", "kernel", "--frobnicate"], "--frobnicate"),
        (&[], "--kernel"),
    ] {
        refuse(&stage, arguments, names);
    }
}

#[test]
fn missing_programs_are_named() {
    for program in ["croft-monitor", "croft-vmm"] {
        let stage = Stage::new();
        fs::remove_file(stage.path(program)).unwrap();
        let output = stage.run("power-off").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(text.contains(&format!("{program} is missing")), "{text}");
        stage.wait_for_silence();
    }
}

#[test]
fn programs_are_found_in_libexec() {
    let stage = Stage::new();
    fs::create_dir_all(stage.path("bin")).unwrap();
    fs::create_dir_all(stage.path("libexec/croft")).unwrap();
    fs::rename(stage.path("croft"), stage.path("bin/croft")).unwrap();
    for program in ["croft-monitor", "croft-vmm"] {
        fs::rename(
            stage.path(program),
            stage.path("libexec/croft").join(program),
        )
        .unwrap();
    }
    let status = Command::new(stage.path("bin/croft"))
        .args([
            "run",
            "--append",
            "power-off",
            "--name",
            &stage.name,
            "--kernel",
        ])
        .arg(stage.path("kernel"))
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn completion_and_help_are_printed() {
    let stage = Stage::new();
    for (arguments, contains) in [
        (&["completion", "bash"][..], "complete -o"),
        (&["completion", "zsh"], "#compdef croft"),
        (&["completion", "fish"], "--command croft"),
        (&["run", "--help"], "Exit codes:"),
        (&["run", "--help"], "Examples:"),
        (&["version"], "croft 0."),
        (&["--version"], "croft 0."),
    ] {
        let output = Command::new(stage.path("croft"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(contains), "{arguments:?}: {text}");
    }
}
