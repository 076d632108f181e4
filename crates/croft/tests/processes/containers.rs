//! Containers: their life by the commands, and what is left of it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::images::IMAGE;
use crate::stage::{Stage, eventually, pid_of, wait};

impl Stage {
    /// `croft run --container` in the foreground, called like the stage.
    pub fn run_container(&self, options: &[&str], command: &[&str]) -> Output {
        let mut words = vec!["run", "--container", "--rm", "--net", "none"];
        words.extend(["--name", &self.name]);
        words.extend(options);
        words.push(IMAGE);
        words.extend(command);
        let child = self.croft(&words).spawn().unwrap();
        child.wait_with_output().unwrap()
    }

    /// One in the background.
    pub fn start_container(&self, options: &[&str], command: &[&str]) {
        let mut words = vec!["run", "--container", "-d", "--net", "none"];
        words.extend(["--name", &self.name]);
        words.extend(options);
        words.push(IMAGE);
        words.extend(command);
        let (code, said) = self.ask(&words);
        assert_eq!(code, Some(0), "{said}");
    }

    /// `croft exec`: its exit code and what it said.
    pub fn exec(&self, command: &[&str]) -> (Option<i32>, String) {
        let mut words = vec!["exec", &self.name];
        words.extend(command);
        self.ask(&words)
    }

    /// Directories of control groups with this name.
    pub fn groups_of(name: &str) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let place = words.next()?;
            words
                .next()?
                .starts_with("cgroup")
                .then(|| place.to_owned())
        });
        let groups = mounts.filter_map(|mount| fs::read_dir(format!("{mount}/croft")).ok());
        let groups = groups.flatten().flatten().filter(|group| {
            let group = group.file_name().to_string_lossy().into_owned();
            group
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('.'))
        });
        groups
            .map(|group| group.path().display().to_string())
            .collect()
    }

    pub fn assert_nothing_left(&self) {
        self.assert_quiet();
        assert_eq!(Self::groups_of(&self.name), Vec::<String>::new());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let own = self.path("data");
        assert!(!mounts.contains(own.to_str().unwrap()), "{mounts}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_program_runs_and_its_end_is_crofts() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    for (command, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["no-such-program"], 127),
        (&["/etc/plain"], 126),
        (&["/etc"], 126),
    ] {
        let output = stage.run_container(&[], command);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    }
    assert!(stage.known(&stage.name).is_none());
    stage.assert_nothing_left();
}

#[test]
fn streams_are_two_and_whole() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let output = stage.run_container(&[], &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("out\n".to_owned(), "err\n".to_owned())
    );
    // More than any queue has room for.
    let output = stage.run_container(&[], &["seq", "1", "200000"]);
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 200_000);
    assert_eq!(lines.lines().last(), Some("200000"));
    // Input goes in, and its end too; without --interactive there is none.
    for (options, expected) in [(&["-i"][..], "abc"), (&[], "")] {
        let mut words = vec!["run", "--container", "--rm", "--net", "none"];
        words.extend(options);
        words.extend([IMAGE, "cat"]);
        let mut child = stage.croft(&words).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // Nobody may read it.
        let _ = input.write_all(b"abc");
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn it_is_what_image_and_options_say() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    fs::create_dir(stage.path("data/volume")).unwrap();
    fs::write(stage.path("data/volume/file"), "shared").unwrap();
    let volume = format!("{}:/data:ro", stage.path("data/volume").display());
    let script = "echo $FROM $GIVEN; pwd; id; hostname; cat /data/file; touch /data/x 2>&1; \
                  touch /x 2>&1; cat /proc/self/uid_map";
    let options = [
        "-e",
        "GIVEN=yes",
        "-w",
        "/srv",
        "-u",
        "web",
        "--hostname",
        "box",
        "-v",
        &volume,
        "--read-only",
    ];
    let output = stage.run_container(&options, &["sh", "-c", script]);
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "image yes", "{said} {}", text(&output.stderr));
    assert_eq!(lines[1], "/srv");
    assert!(
        lines[2].starts_with("uid=33(web) gid=34(www) groups="),
        "{said}"
    );
    assert!(lines[2].contains("50(staff)"), "{said}");
    assert_eq!(lines[3], "box");
    assert!(lines[4].starts_with("shared"), "{said}");
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    // Its root is nobody on the host.
    let map: Vec<&str> = said
        .lines()
        .find(|line| line.ends_with("65536"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(map[0], "0");
    assert_ne!(map[1], "0");
    // An image's entrypoint and user; and those that replace them.
    stage.import(
        "entry",
        &json!({"Entrypoint": ["echo", "from"], "Cmd": ["image"], "User": "33"}),
    );
    let run = |options: &[&str], command: &[&str]| {
        let mut words = vec!["run", "--container", "--rm", "--net", "none"];
        words.extend(options);
        words.push("entry");
        words.extend(command);
        let (code, said) = stage.ask(&words);
        assert_eq!(code, Some(0), "{said}");
        said
    };
    assert_eq!(run(&[], &[]), "from image\n");
    assert_eq!(run(&[], &["me"]), "from me\n");
    assert!(run(&["--entrypoint", "id"], &[]).starts_with("uid=33(web)"));
}

#[test]
fn a_containers_life() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let script = "trap 'echo bye; exit 3' TERM; echo up; echo no >&2; while :; do sleep 0.1; done";
    stage.start_container(&[], &["sh", "-c", script]);
    let known = stage.known(&stage.name).unwrap();
    assert_eq!(known["status"]["phase"], "running");
    assert!(
        known["config"]["container"]["ids"]["first"]
            .as_u64()
            .unwrap()
            > 0
    );
    let (_, list) = stage.ask(&["list"]);
    assert!(list.contains("container"), "{list}");
    // Streams apart, lines with times. Of two streams that are ready at once
    // either may be read first.
    eventually("it is up", || {
        let logs = stage.done(&["logs"]);
        logs.contains("up\n") && logs.contains("no\n")
    });
    let (_, logs) = stage.ask(&["logs", "-t", "--tail", "1", &stage.name]);
    let (time, last) = logs.split_once(' ').unwrap();
    assert!(time.starts_with("20"), "{logs}");
    assert!(["up\n", "no\n"].contains(&last), "{logs}");
    let (code, said) = stage.exec(&["sh", "-c", "echo in; cat /proc/1/comm; exit 5"]);
    assert_eq!((code, said.as_str()), (Some(5), "in\nsh\n"));
    assert_eq!(stage.exec(&["nothing"]).0, Some(127));
    assert_eq!(stage.exec(&["/etc/plain"]).0, Some(126));
    assert_eq!(stage.exec(&["sh", "-c", "kill -TERM $$"]).0, Some(143));
    stage.done(&["pause"]);
    assert_eq!(stage.phase(), "paused");
    let (code, said) = stage.exec(&["true"]);
    assert_eq!(code, Some(125), "{said}");
    stage.done(&["resume"]);
    assert_eq!(stage.phase(), "running");
    let top = stage.done(&["top"]);
    assert!(top.contains("sleep 0.1") || top.contains("sh -c"), "{top}");
    let stats = stage.done(&["stats", "--no-stream", "-o", "json"]);
    let stats: Value = serde_json::from_str(stats.lines().next().unwrap()).unwrap();
    assert!(stats["pids"].as_u64().unwrap() >= 1, "{stats}");
    let first = stage.status()["payload"]["pid"].clone();
    stage.done(&["stop", "--timeout", "300"]);
    let status = stage.status();
    assert_eq!(status["phase"], "stopped");
    assert_eq!(status["outcome"], json!({"exited": {"status": 3}}));
    assert_eq!(stage.done(&["wait"]), "3\n");
    assert!(stage.done(&["logs"]).contains("bye"));
    stage.assert_nothing_left();
    // What it wrote is there when it starts again.
    stage.done(&["start"]);
    assert_ne!(stage.status()["payload"]["pid"], first);
    assert_eq!(stage.exec(&["touch", "/root/kept"]).0, Some(0));
    stage.done(&["kill"]);
    stage.done(&["start"]);
    assert_eq!(stage.exec(&["ls", "/root/kept"]).0, Some(0));
    stage.done(&["delete", "--force"]);
    stage.assert_nothing_left();
}

#[test]
fn limits_hold_and_change() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let options = ["--memory", "16M", "--pids", "20", "--cpus", "0.5"];
    stage.start_container(&options, &["sleep", "1000"]);
    let limit = |stage: &Stage| {
        let stats = stage.done(&["stats", "--no-stream", "-o", "json"]);
        let stats: Value = serde_json::from_str(stats.lines().next().unwrap()).unwrap();
        (stats["memory_limit"].clone(), stats["pids_limit"].clone())
    };
    if limit(&stage).0.is_null() {
        println!("skipped: no control group can limit memory here");
        return;
    }
    assert_eq!(limit(&stage), (json!(16 << 20), json!(20)));
    // Of a fork bomb little comes. None of it ends by itself.
    let bomb = "for i in $(seq 1 50); do sleep 1000000 <&- >&- 2>&- & done";
    let (code, said) = stage.exec(&["sh", "-c", bomb]);
    assert_ne!(code, Some(0), "{said}");
    let (code, said) = stage.ask(&["set", &stage.name, "--memory", "24M", "--pids", "30"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(limit(&stage), (json!(24 << 20), json!(30)));
    let known = stage.known(&stage.name).unwrap();
    assert_eq!(known["config"]["container"]["limits"]["memory"], 24 << 20);
    stage.done(&["delete", "--force"]);
    // A program that wants more is ended, and that is said.
    let output = stage.run_container(
        &["--memory", "8M", "--swap", "0"],
        &[
            "sh",
            "-c",
            "dd if=/dev/zero of=/dev/null bs=64M count=1; exit $?",
        ],
    );
    assert_eq!(output.status.code(), Some(137), "{}", text(&output.stderr));
    // One that wants little has it.
    let output = stage.run_container(&["--memory", "512K"], &["true"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    stage.assert_nothing_left();
}

#[test]
fn policies_start_it_again() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let script = "echo run >> /root/runs; sleep 0.1; exit 1";
    stage.start_container(&["--restart", "on-failure"], &["sh", "-c", script]);
    eventually("it is started again", || {
        stage.status()["starts"].as_u64() >= Some(2)
    });
    stage.done(&["stop"]);
    assert_eq!(stage.phase(), "stopped");
    stage.done(&["delete"]);
    // One whose program is not there is not tried again.
    let (code, said) = stage.ask(&[
        "run",
        "--container",
        "-d",
        "--net",
        "none",
        "--restart",
        "always",
        "--name",
        &stage.name,
        IMAGE,
        "nothing",
    ]);
    assert_eq!(code, Some(127), "{said}");
    stage.assert_nothing_left();
}

#[test]
fn signals_go_to_the_program() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let script = "trap 'echo int; exit 9' INT; echo up; while :; do sleep 0.05; done";
    let words = [
        "run",
        "--container",
        "--rm",
        "--net",
        "none",
        "--name",
        &stage.name,
        IMAGE,
        "sh",
        "-c",
        script,
    ];
    let child = stage.croft(&words).spawn().unwrap();
    eventually("it is up", || {
        let (_, said) = stage.ask(&["logs", &stage.name]);
        said.contains("up")
    });
    kill_process(pid_of(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "up\nint\n");
    assert_eq!(output.status.code(), Some(9));
    // And by name.
    stage.start_container(
        &[],
        &[
            "sh",
            "-c",
            "trap 'exit 4' USR1; echo up; while :; do sleep 0.05; done",
        ],
    );
    // From then on it hears it.
    eventually("it is up", || stage.done(&["logs"]).contains("up"));
    let (code, said) = stage.ask(&["kill", "-s", "USR1", &stage.name]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(stage.done(&["wait"]), "4\n");
    stage.done(&["delete"]);
    stage.assert_nothing_left();
}

#[test]
fn files_are_copied_in_and_out() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let name = stage.name.clone();
    let there = |path: &str| format!("{name}:{path}");
    stage.start_container(&[], &["sleep", "1000"]);
    let tree = stage.path("data/tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/file"), "content").unwrap();
    let tree = tree.to_string_lossy().into_owned();
    let cp = |from: &str, to: &str| stage.ask(&["cp", from, to]);
    assert_eq!(cp(&tree, &there("/srv")).0, Some(0));
    let (_, said) = stage.exec(&["cat", "/srv/tree/sub/file"]);
    assert_eq!(said, "content");
    // What is copied is the container's root's.
    let (_, said) = stage.exec(&["stat", "-c", "%u:%g", "/srv/tree/sub/file"]);
    assert_eq!(said, "0:0\n");
    // Its contents alone, and under another name.
    assert_eq!(cp(&format!("{tree}/."), &there("/root")).0, Some(0));
    assert_eq!(stage.exec(&["cat", "/root/sub/file"]).1, "content");
    assert_eq!(cp(&tree, &there("/srv/other")).0, Some(0));
    assert_eq!(stage.exec(&["cat", "/srv/other/sub/file"]).1, "content");
    let back = stage.path("data/back");
    let (code, said) = cp(&there("/srv/tree"), &back.to_string_lossy());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        fs::read_to_string(back.join("sub/file")).unwrap(),
        "content"
    );
    // No link leads out of the container.
    let secret = stage.path("data/secret");
    fs::write(&secret, "host").unwrap();
    let link = format!(
        "ln -s {0} /srv/out; ln -s {1} /srv/dir",
        secret.display(),
        stage.path("data").display()
    );
    let link = link.replace("ln -s", "busybox ln -s");
    assert_eq!(stage.exec(&["sh", "-c", &link]).0, Some(0));
    assert_ne!(
        cp(&there("/srv/out"), &back.join("out").to_string_lossy()).0,
        Some(0)
    );
    let plain = stage.path("data/plain");
    fs::write(&plain, "x").unwrap();
    assert_ne!(
        cp(&plain.to_string_lossy(), &there("/srv/dir/planted")).0,
        Some(0)
    );
    assert!(!stage.path("data/planted").exists());
    // What is missing, and a file where a directory would go.
    assert_ne!(cp(&there("/nothing"), &back.to_string_lossy()).0, Some(0));
    assert_ne!(
        cp(&plain.to_string_lossy(), &there("/srv/none/")).0,
        Some(0)
    );
    assert_ne!(cp(&tree, &there("/etc/passwd")).0, Some(0));
    assert_eq!(fs::metadata(back.join("sub/file")).unwrap().uid(), 0);
    stage.done(&["delete", "--force"]);
}

#[test]
fn what_only_machines_have_is_refused() {
    let stage = Stage::new();
    for (words, names) in [
        (
            &["run", "--container", "--kernel", "kernel", "tiny"][..],
            "this host's kernel",
        ),
        (
            &["create", "--container", "--cpu", "host", "tiny"],
            "virtual hardware",
        ),
        (&["run", "--container", "--privileged", "tiny"], "--cap-add"),
    ] {
        let (code, said) = stage.ask(words);
        assert!(matches!(code, Some(2 | 125)), "{said}");
        assert!(said.contains(names), "{said}");
    }
    if !stage.with_image() {
        return;
    }
    // An image of one program is no machine.
    let (code, said) = stage.ask(&["create", IMAGE]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains(&format!("croft run --container {IMAGE}")),
        "{said}"
    );
    stage.start_container(&[], &["sleep", "1000"]);
    for words in [
        &["disk", "resize", &stage.name, "1G"][..],
        &["nic", "set", &stage.name, "net0", "--link", "down"],
    ] {
        let (code, said) = stage.ask(words);
        assert_ne!(code, Some(0), "{said}");
    }
    stage.done(&["delete", "--force"]);
}

#[test]
fn whoever_is_killed_leaves_nothing() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    stage.start_container(&[], &["sleep", "1000"]);
    let status = stage.status();
    let init = status["payload"]["pid"].as_i64().unwrap();
    let monitor = stage.wait_for("croft-monitor");
    kill_process(monitor, Signal::KILL).unwrap();
    eventually("init goes with its monitor", || {
        fs::metadata(format!("/proc/{init}")).is_err()
    });
    assert_eq!(stage.phase(), "stopped");
    assert_eq!(stage.status()["note"], "its monitor died");
    // The next start mends what is left.
    stage.done(&["start"]);
    let init = stage.status()["payload"]["pid"].as_i64().unwrap();
    let init = rustix::process::Pid::from_raw(i32::try_from(init).unwrap()).unwrap();
    kill_process(init, Signal::KILL).unwrap();
    eventually("it is seen to have ended", || stage.phase() == "failed");
    assert_eq!(stage.status()["outcome"]["killed"]["signal"], 9);
    stage.assert_nothing_left();
    stage.done(&["start"]);
    kill_process(stage.wait_for("croft-monitor"), Signal::KILL).unwrap();
    eventually("it is stopped", || stage.phase() == "stopped");
    stage.done(&["delete"]);
    stage.assert_nothing_left();
    // A foreground command that is killed leaves the container to itself.
    let words = [
        "run",
        "--container",
        "--net",
        "none",
        "--name",
        &stage.name,
        IMAGE,
        "sleep",
        "1000",
    ];
    let mut child = stage.croft(&words).spawn().unwrap();
    eventually("it runs", || {
        stage
            .known(&stage.name)
            .is_some_and(|known| known["status"]["phase"] == "running")
    });
    kill_process(pid_of(&child), Signal::KILL).unwrap();
    wait(&mut child);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(stage.phase(), "running");
    stage.done(&["delete", "--force"]);
    stage.assert_nothing_left();
}
