//! Profiles of AppArmor, where the kernel has it and `apparmor_parser` is
//! installed.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use croft_isolate::apparmor;
use serde_json::json;

use crate::stage::{AWAIT_THEM, Said, Stage, stage};

/// A profile that lets everything be but writing to `/denied`.
struct Profile {
    name: String,
}

impl Profile {
    /// `None` where there cannot be one: it says why.
    fn load(test: &str) -> Option<Self> {
        if !apparmor::enabled() {
            eprintln!("skipped: this kernel has no AppArmor, or it is off");
            return None;
        }
        let name = format!("croft-test-{test}-{}", std::process::id());
        let profile = Profile { name };
        if profile.parse("--replace").is_none() {
            eprintln!("skipped: apparmor_parser is not installed");
            return None;
        }
        Some(profile)
    }

    fn parse(&self, action: &str) -> Option<()> {
        let text = format!(
            "profile {} flags=(attach_disconnected,mediate_deleted) {{\n\
             file, capability, network, signal, ptrace, unix, mount, umount, pivot_root,\n\
             deny /denied w,\n}}\n",
            self.name
        );
        let mut child = Command::new("apparmor_parser")
            .args(["--skip-cache", action])
            .stdin(Stdio::piped())
            .spawn()
            .ok()?;
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success());
        Some(())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = self.parse("--remove");
    }
}

const QUESTIONS: [&str; 3] = [
    "read=/proc/self/attr/current",
    "write=/denied",
    "write=/allowed",
];

/// A stage on which the files can be written but for the profile.
fn writable() -> Option<Stage> {
    let stage = stage()?;
    for name in ["denied", "allowed"] {
        fs::write(stage.inside(name), "").unwrap();
    }
    Some(stage)
}

#[track_caller]
fn assert_confined(said: &Said, profile: &Profile) {
    let label = said.to("read=/proc/self/attr/current");
    assert_eq!(label, format!("{} (enforce)", profile.name), "{said:?}");
    let denied = said.to("write=/denied");
    assert!(denied.contains("Permission denied"), "{said:?}");
    assert_eq!(said.to("write=/allowed"), "done", "{said:?}");
}

#[test]
fn programs_have_their_profile() {
    let Some(profile) = Profile::load("run") else {
        return;
    };
    for own in [false, true] {
        let Some(mut stage) = writable() else { return };
        if own {
            stage.own_ids();
        }
        let said = stage.ask(&QUESTIONS);
        assert_eq!(said.to("write=/denied"), "done", "{said:?}");
        stage.spec["process"]["apparmorProfile"] = json!(profile.name);
        for promise in [true, false] {
            stage.spec["process"]["noNewPrivileges"] = json!(promise);
            assert_confined(&stage.ask(&QUESTIONS), &profile);
        }
    }
}

#[test]
fn programs_that_join_have_theirs() {
    let Some(profile) = Profile::load("exec") else {
        return;
    };
    for own in [false, true] {
        let Some(mut stage) = writable() else { return };
        if own {
            stage.own_ids();
        }
        let mut words = vec!["/bin/driver", "inside"];
        words.extend(QUESTIONS);
        let mut process = stage.spec["process"].clone();
        process["args"] = json!(words);
        process["apparmorProfile"] = json!(profile.name);
        let path = stage.path("process");
        fs::write(&path, process.to_string()).unwrap();
        // Init has none: its answers would hide the other's.
        stage.spec["process"]["args"] = json!(["/bin/driver", "inside", AWAIT_THEM]);
        let said = stage.run_joined(&[path.to_str().unwrap()]);
        assert_confined(&said, &profile);
    }
}

#[test]
fn profiles_that_are_not_there_are_named() {
    let Some(_) = Profile::load("none") else {
        return;
    };
    let Some(mut stage) = stage() else { return };
    stage.spec["process"]["apparmorProfile"] = json!("croft-test-missing");
    let said = stage.ask(&["pid"]);
    assert_eq!(said.code, Some(125), "{said:?}");
    assert!(said.errors.contains("croft-test-missing"), "{said:?}");
}
