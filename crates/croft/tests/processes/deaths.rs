//! Killing any of the three leaves no process, socket or file behind.

use std::io::Read;

use rustix::process::{Signal, kill_process};

use crate::stage::{Stage, eventually, wait};

/// Kills `victim` of a running machine; croft's exit code and last words.
fn kill(victim: &str) -> (Option<i32>, String) {
    let stage = Stage::new();
    let gdb = stage.path("gdb");
    let mut child = stage.run("sleep").arg("--gdb").arg(&gdb).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    for program in ["croft", "croft-monitor", "croft-vmm"] {
        stage.wait_for(program);
    }
    eventually("the machine runs", || gdb.exists());
    // Until croft has heard so.
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("engine scripted") {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap();
        heard.extend(byte);
    }
    kill_process(stage.wait_for(victim), Signal::KILL).unwrap();
    let status = wait(&mut child);
    stage.wait_for_silence();
    eventually("no file is left", || stage.left_behind().is_empty());
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    (status.code(), text)
}

#[test]
fn of_croft() {
    assert_eq!(kill("croft").0, None);
}

#[test]
fn of_the_monitor() {
    let (code, text) = kill("croft-monitor");
    assert_eq!(code, Some(1));
    assert!(text.contains("croft-monitor ended before"), "{text}");
}

#[test]
fn of_the_vmm() {
    let (code, text) = kill("croft-vmm");
    assert_eq!(code, Some(1));
    assert!(text.contains("croft-vmm was killed by signal 9"), "{text}");
}
