//! Hooks, each in its place.

use std::fs;

use serde_json::json;

use crate::stage::stage;

#[test]
fn hooks_run_in_their_order_and_namespaces() {
    let Some(mut stage) = stage() else { return };
    let log = stage.path("log");
    let outside = |name: &str| {
        let script = format!(
            "echo {name} $(readlink /proc/self/ns/uts) $(cat | tr -d ' ') >>{}",
            log.display()
        );
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
    };
    stage.spec["hooks"] = json!({
        "prestart": outside("prestart"),
        "createRuntime": outside("createRuntime"),
        "createContainer": outside("createContainer"),
        "startContainer": [{
            "path": "/bin/driver", "args": ["driver", "inside", "pid", "cwd", "rights", "ids"]
        }]
    });
    stage.spec["process"]["user"] = json!({ "uid": 7, "gid": 8 });
    let said = stage.ask(&["hostname"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_ne!(said.to("pid"), "1");
    // The container's own programs have its rights, and no more.
    let rights = said.to("rights");
    assert!(rights.contains("CapBnd 0000000000000021"), "{said:?}");
    assert!(rights.contains("NoNewPrivs 1"), "{said:?}");
    assert!(said.to("ids").starts_with("Uid 7 7 7 7; Gid 8 8 8 8"));
    assert_eq!(said.to("hostname"), "inner");
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line[0]).collect();
    assert_eq!(
        names,
        ["prestart", "createRuntime", "createContainer"],
        "{text}"
    );
    let own = fs::read_link("/proc/self/ns/uts").unwrap();
    assert_eq!(lines[1][1], own.to_str().unwrap());
    assert_ne!(lines[2][1], own.to_str().unwrap());
    for line in &lines {
        let state: serde_json::Value = serde_json::from_str(line[2]).unwrap();
        assert_eq!(state["id"], "test");
        // Those that are older than the others are told what they were.
        let status = if line[0] == "prestart" {
            "created"
        } else {
            "creating"
        };
        assert_eq!(state["status"], status, "{text}");
        assert!(state["pid"].as_i64().unwrap() > 1, "{text}");
    }
}

#[test]
fn a_failing_hook_ends_it() {
    let Some(mut stage) = stage() else { return };
    for name in ["createRuntime", "createContainer"] {
        stage.spec["hooks"] = json!({
            name: [{ "path": "/bin/sh", "args": ["sh", "-c", "exit 5"] }]
        });
        let said = stage.ask(&["pid"]);
        assert_eq!(said.code, Some(125), "{name}: {said:?}");
        assert!(said.errors.contains("exit status: 5"), "{said:?}");
        assert!(said.answers.is_empty());
    }
}
