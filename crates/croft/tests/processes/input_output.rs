//! Console, log, exit codes.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::stage::{Stage, pid_of, wait};

#[test]
fn outcomes_have_exit_codes() {
    let stage = Stage::new();
    for (script, code, says) in [
        ("power-off", 0, ""),
        ("reset", 3, "reset"),
        ("triple-fault", 4, "RIP 0000000000001000"),
        ("debug-exit", 33, ""),
        ("invalid", 2, "give another"),
        ("failed", 1, "the engine gave up"),
        ("panic", 1, "as the test asked"),
        (
            "refused",
            1,
            "croft-vmm was ended by its jail: thread disk0-0 called openat",
        ),
        ("exit-early", 1, "status 7"),
        ("old-version", 1, "the parts of one Croft version"),
        ("garbage", 1, "damaged message"),
    ] {
        let output = stage.run(script).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{script}: {text}");
        assert!(text.contains(says), "{script}: {text}");
        assert!(output.stdout.is_empty(), "{script}");
        stage.wait_for_silence();
    }
    assert!(stage.left_behind().is_empty());
}

#[test]
fn auto_says_which_engine_and_why() {
    let stage = Stage::new();
    let output = stage.run("power-off").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text, "croft: engine scripted: a test asked for it\n");
    let output = stage
        .run("power-off")
        .args(["--engine", "software"])
        .output()
        .unwrap();
    assert!(output.stderr.is_empty());
}

#[test]
fn a_pipe_is_the_console_and_its_end_is_not_the_guests() {
    let stage = Stage::new();
    let mut child = stage.run("echo").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdin.write_all(b"hello \x1d\x03").unwrap();
    drop(stdin);
    let mut buffer = [0; 8];
    stdout.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"hello \x1d\x03");
    thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none());
    kill_process(pid_of(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child).code(), Some(128 + 15));
    stage.wait_for_silence();
}

#[test]
fn standard_input_may_be_closed_or_a_file_or_a_directory() {
    let stage = Stage::new();
    fs::write(stage.path("input"), "from a file!").unwrap();
    for (script, redirect, expected) in [
        ("power-off", "<&-", ""),
        ("power-off", "</", ""),
        ("power-off", "<&- >&- 2>&-", ""),
        ("power-off", "2>/dev/full", ""),
        ("echo", "<input", "from a file!"),
    ] {
        let line = format!(
            "exec ./croft run --kernel kernel --name {} --append {script} {redirect}",
            stage.name
        );
        let output = Command::new("sh")
            .args(["-c", &line])
            .current_dir(stage.path(""))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{redirect}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}

#[test]
fn all_output_arrives_and_the_log_has_it_too() {
    let stage = Stage::new();
    let log = stage.path("log");
    let output = stage.run("big").arg("--log").arg(&log).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout.len(), 500_000);
    assert!(output.stdout.ends_with(b"000049999\n"));
    assert!(fs::read(&log).unwrap() == output.stdout);
    // A full disk ends the log, not the machine.
    let output = stage
        .run("big")
        .args(["--log", "/dev/full"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout.len(), 500_000);
    assert!(String::from_utf8_lossy(&output.stderr).contains("log ends here"));
}

#[test]
fn a_stalled_reader_holds_the_guest_back() {
    let stage = Stage::new();
    let mut child = stage.run("flood").spawn().unwrap();
    let _unread = child.stdout.take().unwrap();
    stage.wait_for("croft-vmm");
    // Time for more than the pipe has room for; with none the test sees less.
    thread::sleep(Duration::from_secs(1));
    for (pid, program) in stage.processes() {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
        let kilobytes: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
            .unwrap();
        assert!(kilobytes < 4096, "{program} holds {kilobytes} kB");
    }
    kill_process(pid_of(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child).code(), Some(128 + 15));
    stage.wait_for_silence();
}

#[test]
fn a_reader_that_goes_away_ends_the_machine() {
    let stage = Stage::new();
    let mut child = stage.run("flood").spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100]).unwrap();
    drop(stdout);
    assert_eq!(wait(&mut child).code(), Some(1));
    stage.wait_for_silence();
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(text.contains("standard output"), "{text}");
}

#[test]
fn signals_end_the_machine_even_a_deaf_one() {
    let stage = Stage::new();
    for (script, signal, number) in [
        ("sleep", Signal::TERM, 15),
        ("sleep", Signal::INT, 2),
        ("sleep", Signal::HUP, 1),
        ("deaf", Signal::TERM, 15),
    ] {
        let mut child = stage.run(script).spawn().unwrap();
        // Before it starts anything croft waits for signals.
        stage.wait_for("croft-vmm");
        kill_process(pid_of(&child), signal).unwrap();
        assert_eq!(wait(&mut child).code(), Some(128 + number), "{script}");
        stage.wait_for_silence();
    }
}
