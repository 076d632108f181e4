//! Instances: their life by the commands, and what is left of it.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::stage::{Stage, eventually, pid_of, wait};

impl Stage {
    /// Makes an instance of a script, called like the stage.
    pub fn create(&self, script: &str, more: &[&str]) {
        self.create_as(&self.name, script, more);
    }

    pub fn create_as(&self, name: &str, script: &str, more: &[&str]) {
        let mut words = vec!["create", "--kernel", "kernel", "--name", name];
        words.extend(["--append", script]);
        words.extend(more);
        let (code, said) = self.ask(&words);
        assert_eq!(code, Some(0), "{said}");
    }

    /// Does it to the instance, and succeeds.
    pub fn done(&self, words: &[&str]) -> String {
        let mut all = words.to_vec();
        all.push(&self.name);
        let (code, said) = self.ask(&all);
        assert_eq!(code, Some(0), "{words:?}: {said}");
        said
    }

    /// What `croft list` knows of an instance.
    pub fn known(&self, name: &str) -> Option<Value> {
        let (code, said) = self.ask(&["list", "-o", "json"]);
        assert_eq!(code, Some(0), "{said}");
        let all: Vec<Value> = serde_json::from_str(&said).unwrap();
        all.into_iter().find(|known| known["name"] == name)
    }

    pub fn status(&self) -> Value {
        self.known(&self.name).expect("the instance")["status"].take()
    }

    pub fn phase(&self) -> String {
        self.status()["phase"].as_str().unwrap().to_owned()
    }

    fn wait_for_phase(&self, phase: &str) {
        eventually(phase, || self.phase() == phase);
    }

    /// Nothing of any instance is left but its directory.
    pub fn assert_quiet(&self) {
        self.wait_for_silence();
        let left = fs::read_dir(self.path("data/run")).unwrap();
        let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Reads until `text` has come.
fn read_until(source: &mut impl Read, text: &str) -> String {
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains(text) {
        let mut byte = [0];
        let count = source.read(&mut byte).unwrap();
        assert!(count > 0, "{:?}", String::from_utf8_lossy(&heard));
        heard.extend(byte);
    }
    String::from_utf8_lossy(&heard).into_owned()
}

fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
}

/// What a process does not hear: the signals of `SigBlk` in proc(5).
fn blocked_signals(pid: &Value) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
}

#[test]
fn a_life() {
    let stage = Stage::new();
    stage.create("orderly", &[]);
    assert_eq!(stage.phase(), "created");
    stage.done(&["start"]);
    assert_eq!(stage.phase(), "running");
    stage.done(&["pause"]);
    assert_eq!(stage.phase(), "paused");
    stage.done(&["resume"]);
    assert_eq!(stage.phase(), "running");
    let first = stage.status()["payload"]["pid"].clone();
    // Its monitor waits for them; it must be possible to end it itself.
    let blocked = blocked_signals(&first);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        assert_eq!(blocked & 1 << (signal.as_raw() - 1), 0, "{signal:?}");
    }
    stage.done(&["restart"]);
    let status = stage.status();
    assert_eq!(
        (&status["phase"], &status["starts"]),
        (&"running".into(), &2.into())
    );
    assert_ne!(status["payload"]["pid"], first);
    stage.done(&["stop"]);
    let status = stage.status();
    assert_eq!(status["phase"], "stopped");
    assert_eq!(status["outcome"], "power-off");
    stage.assert_quiet();
    // It is remembered, and what has stopped can be stopped again.
    stage.done(&["stop"]);
    stage.done(&["start"]);
    assert_eq!(stage.status()["starts"], 3);
    let (code, said) = stage.ask(&["delete", &stage.name]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("stop"), "{said}");
    stage.done(&["delete", "--force"]);
    assert!(stage.known(&stage.name).is_none());
    stage.assert_quiet();
    assert_eq!(
        fs::read_dir(stage.path("data/instances")).unwrap().count(),
        0
    );
}

#[test]
fn who_does_not_listen_is_stopped_too() {
    let stage = Stage::new();
    stage.create("wait", &[]);
    stage.done(&["start"]);
    let begun = Instant::now();
    stage.done(&["stop", "--timeout", "1"]);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(stage.status()["outcome"], "requested");
    stage.assert_quiet();
    stage.done(&["delete"]);
    stage.create("deaf", &[]);
    stage.done(&["start"]);
    stage.done(&["stop", "--force"]);
    assert_eq!(stage.phase(), "stopped");
    stage.assert_quiet();
}

#[test]
fn mistakes_are_named() {
    let stage = Stage::new();
    for words in [
        &["start", "none"][..],
        &["show", "none"],
        &["console", "none"],
        &["logs", "none"],
        &["wait", "none"],
        &["ssh", "none"],
        &["ssh", "me@none", "--", "true"],
        &["ssh", "@none"],
        &["delete", "none"],
        &["stop", "a/b"],
        &["stop"],
        &["create"],
        &["create", "--kernel", "missing", "--name", "x"],
        &["run", "--kernel", "kernel", "--restart", "always"],
        &["run", "-d", "--kernel", "kernel", "--gdb", "1234"],
        &["run", "-d", "--kernel", "kernel", "--no-jail"],
    ] {
        let (code, said) = stage.ask(words);
        assert_eq!(code, Some(2), "{words:?}: {said}");
        assert!(said.lines().count() <= 3, "{words:?}: {said}");
    }
    stage.create("wait", &[]);
    let (code, said) = stage.ask(&["create", "--kernel", "kernel", "--name", &stage.name]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("already"), "{said}");
    for words in ["pause", "resume", "console", "wait"] {
        let (code, said) = stage.ask(&[words, &stage.name]);
        assert_eq!(code, Some(1), "{words}: {said}");
        assert!(said.contains("croft start"), "{words}: {said}");
    }
    let (code, said) = stage.ask(&["ssh", &stage.name]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("croft start"), "{said}");
    // A kernel that has gone meanwhile.
    fs::remove_file(stage.path("kernel")).unwrap();
    let (code, said) = stage.ask(&["start", &stage.name]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no such file"), "{said}");
    assert_eq!(stage.phase(), "failed");
    stage.assert_quiet();
}

#[test]
fn a_disk_is_resized() {
    let stage = Stage::new();
    stage.create("wait", &[]);
    let resize = |size: &str| stage.ask(&["disk", "resize", &stage.name, size]);
    let (code, said) = resize("1G");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no disk of its own"), "{said}");
    // As if it had been made of an image.
    let config = stage.path(&format!("data/instances/{}/config.json", stage.name));
    let mut made: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    made["image"] = serde_json::json!({"name": "x", "id": "y"});
    fs::write(&config, made.to_string()).unwrap();
    stage.done(&["start"]);
    assert_eq!(resize("1G").0, Some(0));
    let (code, said) = resize("1K");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("smaller"), "{said}");
    let (code, said) = resize("513");
    assert_eq!(code, Some(2), "{said}");
    stage.done(&["stop", "--force"]);
    // It has none, in truth.
    let (code, said) = resize("1G");
    assert_eq!(code, Some(1), "{said}");
    stage.done(&["delete"]);
}

#[test]
fn a_shell_completes_the_names_there_are() {
    let stage = Stage::new();
    stage.create("wait", &[]);
    let mut command = stage.croft(&["--", "croft", "start", &stage.name[..6]]);
    command
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "2")
        .env("_CLAP_IFS", "\n");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.lines().any(|line| line.contains(&stage.name)),
        "{said}"
    );
}

#[test]
fn of_many_starts_one_counts() {
    let stage = Stage::new();
    stage.create("wait", &[]);
    let starts: Vec<Child> = (0..6)
        .map(|_| stage.croft(&["start", &stage.name]).spawn().unwrap())
        .collect();
    let codes = starts.into_iter().map(|mut child| wait(&mut child).code());
    assert_eq!(codes.filter(|code| *code == Some(0)).count(), 1);
    // A monitor that was not the first one is about to end.
    eventually("one monitor and one vmm", || {
        let programs = stage.processes().into_iter().map(|(_, name)| name);
        let mut programs: Vec<String> = programs.collect();
        programs.sort();
        programs == ["croft-monitor", "croft-vmm"]
    });
    assert_eq!(stage.status()["starts"], 1);
    stage.done(&["stop", "-f"]);
    stage.assert_quiet();
}

#[test]
fn a_monitor_that_is_killed() {
    let stage = Stage::new();
    stage.create("wait", &["--restart", "always"]);
    stage.done(&["start"]);
    kill(stage.wait_for("croft-monitor"));
    eventually("the vmm goes with it", || stage.processes().is_empty());
    let status = stage.status();
    assert_eq!(status["phase"], "stopped");
    assert_eq!(status["note"], "its monitor died");
    let (code, said) = stage.ask(&["list"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("stopped (its monitor died)"), "{said}");
    // As soon as it is dead, whether the vmm is or not.
    for _ in 0..5 {
        stage.done(&["start"]);
        kill(stage.wait_for("croft-monitor"));
        eventually("it is dead", || {
            let mut all = stage.processes().into_iter();
            all.all(|(_, program)| program != "croft-monitor")
        });
    }
    stage.done(&["start"]);
    stage.done(&["stop", "-f"]);
    stage.assert_quiet();
}

#[test]
fn a_vmm_that_is_killed() {
    let stage = Stage::new();
    stage.create("wait", &[]);
    stage.done(&["start"]);
    kill(stage.wait_for("croft-vmm"));
    stage.wait_for_phase("failed");
    let said = stage.done(&["show"]);
    assert!(said.contains("killed by signal 9"), "{said}");
    stage.assert_quiet();
    stage.done(&["delete"]);
    stage.create("wait", &["--restart", "on-failure"]);
    stage.done(&["start"]);
    kill(stage.wait_for("croft-vmm"));
    eventually("it runs again", || {
        let status = stage.status();
        status["phase"] == "running" && status["starts"] == 2
    });
    assert_eq!(stage.status()["restarts"], 1);
    stage.done(&["stop", "-f"]);
    stage.assert_quiet();
}

#[test]
fn policies() {
    let stage = Stage::new();
    stage.create("failed", &["--restart", "on-failure"]);
    stage.done(&["start"]);
    stage.wait_for_phase("waiting");
    eventually("its end is shown", || {
        stage.done(&["show"]).contains("the engine gave up")
    });
    eventually("it is tried again", || {
        stage.status()["starts"].as_u64().unwrap() >= 3
    });
    stage.done(&["stop"]);
    assert_eq!(stage.phase(), "stopped");
    stage.assert_quiet();
    stage.done(&["delete"]);
    // A guest that powers off has done what it was to do, or shall not.
    for (policy, phase) in [("on-failure", "stopped"), ("always", "waiting")] {
        stage.create("power-off", &["--restart", policy]);
        stage.ask(&["start", &stage.name]);
        stage.wait_for_phase(phase);
        stage.done(&["delete", "-f"]);
        stage.assert_quiet();
    }
}

#[test]
fn what_is_ephemeral_leaves_nothing() {
    let stage = Stage::new();
    stage.create("orderly", &["--ephemeral"]);
    stage.done(&["start"]);
    stage.done(&["stop"]);
    assert!(stage.known(&stage.name).is_none());
    stage.assert_quiet();
    assert_eq!(
        fs::read_dir(stage.path("data/instances")).unwrap().count(),
        0
    );
}

#[test]
fn a_monitor_that_is_told_to_end_stops_its_instance() {
    let stage = Stage::new();
    stage.create("orderly", &["--restart", "always"]);
    stage.done(&["start"]);
    kill_process(stage.wait_for("croft-monitor"), Signal::TERM).unwrap();
    stage.wait_for_silence();
    let status = stage.status();
    assert_eq!(
        (&status["phase"], &status["outcome"]),
        (&"stopped".into(), &"power-off".into())
    );
    stage.assert_quiet();
}

#[test]
fn many_look_one_writes_and_all_see_the_same() {
    let stage = Stage::new();
    stage.create("echo", &[]);
    stage.done(&["start"]);
    let console = |more: &[&str]| {
        let mut words = vec!["console", &stage.name];
        words.extend(more);
        let mut command = stage.croft(&words);
        command.stdin(Stdio::piped()).spawn().unwrap()
    };
    let mut writer = console(&[]);
    let mut typed = writer.stdin.take().unwrap();
    typed.write_all(b"first\n").unwrap();
    let mut printed = writer.stdout.take().unwrap();
    read_until(&mut printed, "first");
    // Who comes later sees what was, and cannot type.
    let mut second = console(&[]);
    let mut said = second.stderr.take().unwrap();
    read_until(&mut said, "somebody else writes");
    let mut seen = second.stdout.take().unwrap();
    read_until(&mut seen, "first");
    let mut looker = console(&["--read-only"]);
    read_until(looker.stdout.as_mut().unwrap(), "first");
    typed.write_all(b"second\n").unwrap();
    read_until(&mut seen, "second");
    // Killing who looks is nothing to the others.
    kill(pid_of(&looker));
    wait(&mut looker);
    let mut taker = console(&["--take"]);
    read_until(taker.stdout.as_mut().unwrap(), "second");
    taker.stdin.as_mut().unwrap().write_all(b"third!").unwrap();
    read_until(&mut printed, "third!");
    for mut child in [writer, second, taker] {
        drop(child.stdin.take());
        assert_eq!(wait(&mut child).code(), Some(0));
    }
    eventually("it has ended", || stage.phase() == "stopped");
    assert_eq!(stage.done(&["logs", "-n", "1"]), "third!");
    assert!(stage.done(&["logs"]).starts_with("first\n"));
    stage.assert_quiet();
}

#[test]
fn a_flood_is_bounded_and_holds_up_nobody() {
    let stage = Stage::new();
    stage.create("flood", &[]);
    stage.done(&["start"]);
    // One who looks and does not read.
    let mut slow = stage.croft(&["console", &stage.name]).spawn().unwrap();
    let log = |name: &str| {
        let path = stage.path("data/instances").join(&stage.name).join(name);
        fs::metadata(path).map_or(0, |about| about.len())
    };
    eventually("the log has turned", || log("console.log.1") > 0);
    for _ in 0..50 {
        assert!(log("console.log") <= 1 << 20);
        assert!(log("console.log.1") <= 1 << 20);
        thread::sleep(Duration::from_millis(2));
    }
    let monitor = stage.wait_for("croft-monitor");
    let memory = fs::read_to_string(format!("/proc/{}/status", monitor.as_raw_nonzero())).unwrap();
    let resident = memory
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    let kibibytes: u64 = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kibibytes < 8 << 10, "{resident}");
    stage.done(&["pause"]);
    stage.done(&["stop", "-f"]);
    kill(pid_of(&slow));
    wait(&mut slow);
    stage.assert_quiet();
}

#[test]
fn runs_in_the_background_and_whoever_started_it_can_go() {
    let stage = Stage::new();
    let words = [
        "run",
        "-d",
        "--kernel",
        "kernel",
        "--append",
        "wait",
        "--name",
        &stage.name,
    ];
    let (code, said) = stage.ask(&words);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with(&stage.name), "{said}");
    let monitor = stage.wait_for("croft-monitor");
    let session = rustix::process::getsid(Some(monitor)).unwrap();
    assert_eq!(session, monitor, "a session of its own");
    assert_eq!(stage.phase(), "running");
    stage.done(&["stop", "-f"]);
    // What was made for a run that cannot be is not kept.
    stage.done(&["delete"]);
    fs::remove_file(stage.path("kernel")).unwrap();
    let (code, _) = stage.ask(&words);
    assert_eq!(code, Some(2));
    assert!(stage.known(&stage.name).is_none());
    stage.assert_quiet();
}

#[test]
fn a_long_path_to_the_socket() {
    let stage = Stage::new();
    let deep = stage.path(&"d".repeat(150));
    let ask = |words: &[&str]| {
        let mut command = stage.croft(words);
        command.env("CROFT_RUNTIME_DIR", &deep);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    stage.create("orderly", &[]);
    ask(&["start", &stage.name]);
    ask(&["pause", &stage.name]);
    ask(&["stop", &stage.name]);
    stage.wait_for_silence();
    assert_eq!(fs::read_dir(&deep).unwrap().count(), 0);
}

#[test]
fn those_that_are_marked_start_with_the_host() {
    let stage = Stage::new();
    stage.create("wait", &["--autostart"]);
    let other = format!("{}-other", stage.name);
    stage.create_as(&other, "wait", &[]);
    let (code, said) = stage.ask(&["autostart"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(stage.phase(), "running");
    let phase = stage.known(&other).unwrap()["status"]["phase"].clone();
    assert_eq!(phase, "created");
    // Once is enough.
    assert_eq!(stage.ask(&["autostart"]).0, Some(0));
    assert_eq!(stage.status()["starts"], 1);
    let (code, unit) = stage.ask(&["autostart", "--unit"]);
    assert_eq!(code, Some(0));
    assert!(
        unit.contains("[Service]") && unit.contains("croft autostart"),
        "{unit}"
    );
    let (code, said) = stage.ask(&["stop", "--all", "--timeout", "0"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(stage.phase(), "stopped");
    stage.assert_quiet();
}
