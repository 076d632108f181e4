//! A container's share of the host.

use std::path::PathBuf;

use croft_isolate::cgroups::{Controllers, Group, Hierarchies};
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use crate::bundle::{Bundle, assert_refused, limited, outcomes, possible};

/// A bundle in a group of its own, with limits.
fn bundle(attempts: &[&str], name: &str, limits: Value) -> (Bundle, LinuxResources) {
    let mut bundle = Bundle::new(attempts);
    bundle.group = Some(format!("{name}-{}", std::process::id()));
    let resources = serde_json::from_value(limits).unwrap();
    (bundle, resources)
}

/// Runs it in its group: the maker makes the group, so the limits are those of
/// the group above.
fn run(bundle: &Bundle, resources: &LinuxResources) -> std::process::Output {
    let hierarchies = Hierarchies::find().unwrap();
    let name = bundle.group.as_ref().unwrap();
    // Nothing of it is shared with another test.
    let path = PathBuf::from(format!("croft-test-{name}/limits"));
    let group = Group::create(&hierarchies, &path, Controllers::all()).unwrap();
    assert_eq!(group.apply(resources).unwrap(), []);
    // The maker itself is put there, and stays: it is within the limits.
    let mut script = String::new();
    for path in group.paths() {
        script.push_str(&format!("echo $$ > {}/cgroup.procs && ", path.display()));
    }
    let command = bundle.command();
    let mut line = vec![format!("{script}exec \"$@\""), "sh".to_owned()];
    line.push(command.get_program().to_string_lossy().into_owned());
    let mut arguments = command
        .get_args()
        .map(|one| one.to_string_lossy().into_owned());
    // Without a group of its own.
    while let Some(argument) = arguments.next() {
        if argument == "--group" {
            arguments.next();
        } else {
            line.push(argument);
        }
    }
    let output = std::process::Command::new("sh")
        .arg("-c")
        .args(line)
        .output()
        .unwrap();
    group.kill().unwrap();
    let above = Group::open(&hierarchies, path.parent().unwrap()).unwrap();
    above.delete().unwrap();
    output
}

#[test]
fn processes_end_at_the_limit() {
    if !possible() || !limited() {
        return;
    }
    let limits = json!({"pids": {"limit": 20}});
    let (one, resources) = bundle(&["fork=100"], "pids", limits);
    let found = outcomes(&run(&one, &resources));
    let made: u64 = found[0].1.parse().unwrap();
    assert!((1..20).contains(&made), "{found:?}");
    let (one, resources) = bundle(&["fork=100"], "pids", json!({"pids": {"limit": -1}}));
    assert_eq!(outcomes(&run(&one, &resources))[0].1, "100");
}

#[test]
fn memory_ends_at_the_limit() {
    if !possible() || !limited() {
        return;
    }
    let limits = |bytes: i64| json!({"memory": {"limit": bytes, "swap": bytes}});
    let (one, resources) = bundle(&["memory=200"], "memory", limits(64 << 20));
    let output = run(&one, &resources);
    assert!(!output.status.success(), "{output:?}");
    assert!(outcomes(&output).is_empty(), "{output:?}");
    let (one, resources) = bundle(&["memory=200"], "memory", limits(400 << 20));
    assert_eq!(outcomes(&run(&one, &resources))[0].1, "200 MiB");
}

#[test]
fn devices_are_those_of_the_list() {
    if !possible() || !limited() {
        return;
    }
    // Any block device of the host will do; kmsg is there for certain.
    let mut attempts = vec!["node=c:1:11".to_owned(), "node=c:1:1".to_owned()];
    let disks = std::fs::read_to_string("/proc/partitions").unwrap();
    let disk = disks.lines().skip(2).find_map(|line| {
        let mut words = line.split_whitespace();
        Some(format!("node=b:{}:{}", words.next()?, words.next()?))
    });
    attempts.extend(disk);
    let attempts: Vec<&str> = attempts.iter().map(String::as_str).collect();
    let rules = json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "access": "m"}, {"allow": true, "type": "b", "access": "m"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    ]});
    let (one, resources) = bundle(&attempts, "devices", rules);
    let output = run(&one, &resources);
    let found = outcomes(&output);
    assert_eq!(found.len(), attempts.len(), "{output:?}");
    for (attempt, outcome) in &found {
        assert!(outcome.contains("not permitted"), "{attempt}: {outcome}");
    }
    let open = json!({"devices": [{"allow": true, "access": "rwm"}]});
    let (one, resources) = bundle(&["node=c:1:11"], "devices", open);
    assert_eq!(outcomes(&run(&one.unprotected(), &resources))[0].1, "done");
    // Ids of its own make no nodes at all.
    assert_refused(&Bundle::mapped(&["node=c:1:3", "node=b:8:0"]), 2);
}
