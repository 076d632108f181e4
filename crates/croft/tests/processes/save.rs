use std::fs;
use std::process::Command;

use rustix::process::{Signal, kill_process};

use crate::stage::{Stage, eventually, pid_of, wait};

/// `croft save` beside a machine.
fn save(stage: &Stage, file: &str) -> (Option<i32>, String) {
    let output = Command::new(stage.path("croft"))
        .arg("save")
        .args([stage.path("control"), stage.path(file)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// A vmm that cannot save its machine: the file goes, the machine stays.
#[test]
fn what_was_not_saved_goes_on() {
    let stage = Stage::new();
    let control = stage.path("control");
    let mut command = stage.run("wait");
    command.arg("--control").arg(&control);
    let mut child = command.spawn().unwrap();
    // Before it runs, its monitor listens.
    stage.wait_for("croft-vmm");
    for _ in 0..3 {
        let (code, said) = save(&stage, "state");
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("not saved: a script cannot"), "{said}");
        assert!(!stage.path("state").exists());
    }
    fs::write(stage.path("precious"), "precious").unwrap();
    let (code, said) = save(&stage, "precious");
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(fs::read(stage.path("precious")).unwrap(), b"precious");
    kill_process(pid_of(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child).code(), Some(143));
    stage.wait_for_silence();
    assert_eq!(stage.left_behind(), ["precious"]);
    let (code, said) = save(&stage, "state");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no such socket"), "{said}");
}

/// A vmm that dies while it saves.
#[test]
fn a_vmm_that_dies() {
    let stage = Stage::new();
    let control = stage.path("control");
    let mut command = stage.run("deaf");
    command.arg("--control").arg(&control);
    let mut child = command.spawn().unwrap();
    let vmm = stage.wait_for("croft-vmm");
    let (code, said) = std::thread::scope(|scope| {
        let saver = scope.spawn(|| save(&stage, "state"));
        eventually("there is a file", || {
            fs::metadata(stage.path("state")).is_ok_and(|about| about.len() > 0)
        });
        kill_process(vmm, Signal::KILL).unwrap();
        saver.join().unwrap()
    });
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("ended before it was saved"), "{said}");
    assert_eq!(wait(&mut child).code(), Some(1));
    stage.wait_for_silence();
    assert!(stage.left_behind().is_empty());
}
