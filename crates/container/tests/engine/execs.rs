//! Programs in a container that runs.

use std::fs;

use serde_json::{Value, json};

use crate::stage::{AWAIT_THEM, Stage, stage};

fn process(stage: &Stage, name: &str, change: impl Fn(&mut Value)) -> String {
    let mut process = stage.spec["process"].clone();
    change(&mut process);
    let path = stage.path(name);
    fs::write(&path, process.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn joins(mut stage: Stage) {
    let words = json!([
        "/bin/driver",
        "inside",
        "pid",
        "hostname",
        "ids",
        "rights",
        "cwd",
        "link=/proc/1/exe",
        "fds",
        "exit=9"
    ]);
    let first = process(&stage, "first", |process| {
        process["args"] = words.clone();
        process["cwd"] = json!("/tmp");
        process["user"] = json!({ "uid": 5, "gid": 6 });
    });
    let missing = process(&stage, "missing", |process| {
        process["args"] = json!(["nothing"])
    });
    let refused = process(&stage, "refused", |process| {
        process["args"] = json!(["/etc/text"])
    });
    fs::write(stage.inside("etc/text"), "text").unwrap();
    stage.spec["process"]["args"] = json!(["/bin/driver", "inside", AWAIT_THEM, "exit=4"]);
    let said = stage.run_joined(&[&first, &missing, &refused]);
    assert_eq!(said.code, Some(4), "{said:?}");
    assert_eq!(said.to("hostname"), "inner");
    assert_ne!(said.to("pid"), "1");
    assert!(said.to("ids").starts_with("Uid 5 5 5 5; Gid 6 6 6 6"));
    assert!(
        said.to("rights").contains("CapBnd 0000000000000021"),
        "{said:?}"
    );
    assert_eq!(said.to("cwd"), "/tmp");
    assert_eq!(said.to("fds"), "0 1 2 3");
    assert_eq!(said.rest[0], "9", "{said:?}");
    assert!(said.rest[1].starts_with("127 Missing"), "{said:?}");
    assert!(said.rest[2].starts_with("126 Exec"), "{said:?}");
}

#[test]
fn programs_join_with_all_that_the_container_has() {
    let Some(stage) = stage() else { return };
    joins(stage);
}

#[test]
fn programs_join_ids_of_its_own() {
    let Some(mut stage) = stage() else { return };
    stage.own_ids();
    joins(stage);
}
