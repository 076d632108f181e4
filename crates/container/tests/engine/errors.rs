//! Descriptions that are wrong, and programs that are not there.

use std::fs;

use serde_json::{Value, json};

use crate::stage::{Stage, stage};

#[track_caller]
fn refused(stage: &Stage, code: i32, text: &str) {
    let said = stage.run(&[]);
    assert_eq!(said.code, Some(code), "{said:?}");
    assert!(said.errors.contains(text), "{said:?}");
    assert!(said.errors.lines().count() <= 3, "{said:?}");
}

#[test]
fn exit_codes_of_programs_that_do_not_run() {
    let Some(mut stage) = stage() else { return };
    fs::write(stage.inside("text"), "text").unwrap();
    stage.program("script", "#!/no/shell\n");
    stage.program("garbage", "\x7fELF nonsense");
    for (words, code, text) in [
        (json!(["nothing"]), 127, "in PATH"),
        (json!(["/bin/nothing"]), 127, "/bin/nothing"),
        (json!(["/text"]), 126, "Permission denied"),
        (json!(["/etc"]), 126, "directory"),
        (json!(["/script"]), 127, "interpreter"),
        (json!(["/garbage"]), 126, "Exec format error"),
        (json!([]), 125, "names no program"),
    ] {
        stage.spec["process"]["args"] = words;
        refused(&stage, code, text);
    }
}

#[test]
fn wrong_descriptions_are_refused_by_name() {
    let Some(mut stage) = stage() else { return };
    stage.spec["process"]["args"] = json!(["/bin/driver", "inside", "pid"]);
    let right = stage.spec.clone();
    let mut wrong = |change: &dyn Fn(&mut Value), text: &str| {
        stage.spec = right.clone();
        change(&mut stage.spec);
        refused(&stage, 125, text);
    };
    wrong(&|spec| spec["root"]["path"] = json!("none"), "none");
    wrong(&|spec| spec["process"]["cwd"] = json!("relative"), "cwd");
    let limit = json!({ "type": "RLIMIT_NOFILE", "soft": 40, "hard": 50 });
    wrong(
        &|spec| spec["process"]["rlimits"] = json!([limit, limit]),
        "two limits RLIMIT_NOFILE",
    );
    wrong(
        &|spec| spec["linux"]["sysctl"] = json!({ "kernel.panic": "1" }),
        "kernel/panic",
    );
    wrong(
        &|spec| spec["linux"]["sysctl"] = json!({ "net.../../kernel/panic": "1" }),
        "is the host's",
    );
    wrong(
        &|spec| spec["linux"]["namespaces"] = json!([{ "type": "mount" }]),
        "hostname needs",
    );
    wrong(
        &|spec| {
            spec["root"]["readonly"] = json!(true);
            spec["linux"]["namespaces"] = json!([{ "type": "uts" }]);
        },
        "mount namespace",
    );
    wrong(
        &|spec| {
            let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
            list.push(json!({ "type": "user" }));
        },
        "uidMappings",
    );
    wrong(
        &|spec| {
            spec["mounts"] =
                json!([{ "destination": "/x", "source": "/none", "options": ["bind"] }])
        },
        "/none",
    );
    wrong(
        &|spec| {
            spec["mounts"] =
                json!([{ "destination": "/x", "type": "tmpfs", "options": ["nonsense=1"] }])
        },
        "nonsense",
    );
    wrong(
        &|spec| spec["mounts"] = json!([{ "destination": "/x", "type": "nofs" }]),
        "nofs",
    );
    wrong(
        &|spec| spec["linux"]["rootfsPropagation"] = json!("sideways"),
        "sideways",
    );
}
