//! Disks that come and go, where the guest is a script.

use std::fs::{self, File};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::stage::{Stage, eventually};

impl Stage {
    fn disk(&self, name: &str) -> String {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn attach(&self, disk: &str, more: &[&str]) -> (Option<i32>, String) {
        let mut words = vec!["disk", "attach", &self.name, disk];
        words.extend(more);
        self.ask(&words)
    }

    fn detach(&self, device: &str, more: &[&str]) -> (Option<i32>, String) {
        let mut words = vec!["disk", "detach", &self.name, device];
        words.extend(more);
        self.ask(&words)
    }

    /// Places and files of the disks in its configuration.
    fn kept(&self) -> Vec<(u64, String)> {
        let known = self.known(&self.name).unwrap();
        let disks = known["config"]["disks"].as_array().unwrap().clone();
        let disks = disks.iter().enumerate().map(|(order, disk)| {
            let path = disk["layers"][0]["path"].as_str().unwrap();
            let name = path.rsplit('/').next().unwrap().to_owned();
            (disk["index"].as_u64().unwrap_or(order as u64), name)
        });
        disks.collect()
    }

    /// Names of the devices that are there.
    fn live(&self) -> Vec<String> {
        let devices = self.status()["devices"].as_array().unwrap().clone();
        let names = devices
            .iter()
            .map(|device| device["name"].as_str().unwrap());
        names.map(str::to_owned).collect()
    }
}

fn refused(answer: (Option<i32>, String), code: i32, word: &str) {
    let (got, said) = answer;
    assert_eq!(got, Some(code), "{said}");
    assert!(said.contains(word), "'{word}' is missing: {said}");
    assert!(said.lines().count() <= 3, "{said}");
}

fn is(kept: &[(u64, String)], expected: &[(u64, &str)]) -> bool {
    let kept: Vec<(u64, &str)> = kept.iter().map(|(at, name)| (*at, &**name)).collect();
    kept == expected
}

#[test]
fn of_an_instance_that_is_stopped() {
    let stage = Stage::new();
    let [one, two, three] = ["one", "two", "three"].map(|name| stage.disk(name));
    stage.create("wait", &["--disk", &one]);
    assert_eq!(stage.attach(&two, &[]), (Some(0), "disk1\n".to_owned()));
    assert_eq!(stage.attach(&three, &[]).0, Some(0));
    refused(stage.attach(&two, &[]), 2, "already");
    refused(stage.attach(&two, &["--live-only"]), 2, "does not run");
    refused(stage.attach("missing", &[]), 2, "missing");
    refused(stage.detach("disk7", &[]), 2, "disk0, disk1, disk2");
    assert_eq!(stage.detach("disk1", &[]).0, Some(0));
    // The others stay where they are.
    assert!(
        is(&stage.kept(), &[(0, "one"), (2, "three")]),
        "{:?}",
        stage.kept()
    );
    assert_eq!(stage.attach(&two, &[]).1, "disk1\n");
    let shown = stage.done(&["show"]);
    let row = shown
        .lines()
        .find(|line| line.starts_with("disk2"))
        .unwrap();
    assert!(row.ends_with("three"), "{shown}");
    for number in 3..16 {
        let disk = stage.disk(&format!("more{number}"));
        assert_eq!(stage.attach(&disk, &[]).1, format!("disk{number}\n"));
    }
    let full = stage.attach(&stage.disk("last"), &[]);
    refused(full, 2, "as many disks as it can have");
    stage.done(&["delete"]);
}

#[test]
fn of_an_instance_that_runs() {
    let stage = Stage::new();
    let [one, two] = ["one", "two"].map(|name| stage.disk(name));
    stage.create("orderly", &[]);
    stage.done(&["start"]);
    assert_eq!(stage.attach(&one, &[]), (Some(0), "disk0\n".to_owned()));
    refused(stage.attach(&one, &[]), 1, "once more");
    assert_eq!(stage.attach(&two, &["--live-only"]).1, "disk1\n");
    refused(
        stage.attach(&stage.disk("refuse"), &[]),
        1,
        "not what it seems",
    );
    assert_eq!(stage.live(), ["disk0", "disk1"]);
    assert!(is(&stage.kept(), &[(0, "one")]), "{:?}", stage.kept());
    refused(stage.detach("disk5", &[]), 1, "disk5");
    // What is there again at the next start keeps its place until then.
    assert_eq!(stage.detach("disk0", &["--live-only"]).0, Some(0));
    assert_eq!(stage.detach("disk1", &[]).0, Some(0));
    assert_eq!(stage.attach(&two, &[]).1, "disk1\n");
    assert!(
        is(&stage.kept(), &[(0, "one"), (1, "two")]),
        "{:?}",
        stage.kept()
    );
    stage.done(&["restart"]);
    assert_eq!(stage.live(), ["disk0", "disk1"]);
    stage.done(&["stop"]);
    assert!(stage.live().is_empty());
    stage.done(&["delete"]);
}

/// A guest that does not answer: the request stands, may be repeated, and is
/// done by force or with the payload's end.
#[test]
fn a_guest_that_keeps_a_disk() {
    let stage = Stage::new();
    let [one, two] = ["one", "two"].map(|name| stage.disk(name));
    stage.create("wait", &["--restart", "on-failure"]);
    stage.done(&["start"]);
    stage.attach(&one, &[]);
    stage.attach(&two, &[]);
    for _ in 0..2 {
        refused(stage.detach("disk0", &["--timeout", "1"]), 124, "--force");
    }
    let leaving = |status: &Value| status["devices"][0]["leaving"].as_bool().unwrap();
    assert!(leaving(&stage.status()));
    assert!(is(&stage.kept(), &[(0, "one"), (1, "two")]));
    assert_eq!(stage.detach("disk1", &["--force"]).0, Some(0));
    assert!(is(&stage.kept(), &[(0, "one")]));
    // The payload dies: its files are free, and what was to go has gone.
    kill_process(stage.wait_for("croft-vmm"), Signal::KILL).unwrap();
    eventually("it is started again", || {
        let status = stage.status();
        status["starts"] == 2 && status["phase"] == "running"
    });
    assert!(stage.live().is_empty() && stage.kept().is_empty());
    assert_eq!(stage.attach(&one, &[]).1, "disk0\n");
    kill_process(stage.wait_for("croft-monitor"), Signal::KILL).unwrap();
    stage.wait_for_silence();
    // What was written to its configuration is whole, and the file is free.
    assert!(is(&stage.kept(), &[(0, "one")]));
    stage.done(&["start"]);
    assert_eq!(stage.live(), ["disk0"]);
    fs::remove_file(&one).unwrap();
    stage.done(&["stop", "--force"]);
    stage.done(&["delete"]);
}

#[test]
fn nics_of_an_instance_that_is_stopped() {
    let stage = Stage::new();
    stage.create("wait", &[]);
    let nic = |verb: &str, rest: &[&str]| {
        let mut words = vec!["nic", verb, &stage.name];
        words.extend(rest);
        stage.ask(&words)
    };
    assert_eq!(nic("attach", &["--net", "user"]).1, "net0\n");
    refused(nic("attach", &["--net", "user"]), 2, "once");
    refused(nic("attach", &["--net", "none"]), 2, "no NIC");
    assert_eq!(nic("attach", &["--net", "bridge=br7"]).1, "net1\n");
    let change = ["net1", "--link", "down", "--limit-in", "10M"];
    assert_eq!(nic("set", &change).0, Some(0));
    refused(nic("set", &["net9", "--link", "up"]), 2, "net0, net1");
    assert_eq!(nic("set", &["net1"]).0, Some(2));
    assert_eq!(nic("set", &["net1", "--limit-in", "0K"]).0, Some(2));
    let nics = |stage: &Stage| stage.known(&stage.name).unwrap()["config"]["nics"].clone();
    let changed = &nics(&stage)[1];
    assert_eq!(changed["link"], false);
    assert_eq!(changed["limits"]["inbound"]["bytes_per_second"], 10 << 20);
    assert!(stage.done(&["show"]).contains("bridge br7"));
    assert_eq!(nic("detach", &["net0"]).0, Some(0));
    refused(nic("detach", &["net0"]), 2, "net1");
    assert_eq!(nics(&stage)[0]["name"], "net1");
    assert_eq!(nic("attach", &["--net", "lan"]).1, "net0\n");
    stage.done(&["delete"]);
}
