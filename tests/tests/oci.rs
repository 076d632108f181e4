//! `croft-oci`: the life of a container by its command line, and what is left
//! when it is killed.
//!
//! As root alone: it makes containers with limits.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use croft_tests::files::{busybox, copy_program, program};
use croft_tests::{END, PATIENCE, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What `sleep` is told here, and nobody else tells it.
fn long() -> String {
    (900_000_000 + u64::from(std::process::id())).to_string()
}

/// A container's name that nobody else on this host has.
fn named(name: &str) -> String {
    format!("croft-test-{}-{name}", std::process::id())
}

/// A bundle of busybox, and a place for state.
struct Place {
    directory: TempDir,
}

impl Place {
    /// None, with a word, where there is no root.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("left out: containers with limits take root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let place = Place { directory };
        let path = place.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["bin", "dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(path.join("rootfs").join(name)).unwrap();
        }
        copy_program(&busybox(), &path.join("rootfs/bin/busybox"));
        for name in ["sh", "sleep", "cat", "true"] {
            symlink("busybox", path.join("rootfs/bin").join(name)).unwrap();
        }
        fs::write(path.join("rootfs/tmp/data"), "no program").unwrap();
        let spec = place.oci(&["spec", "--bundle", path.to_str().unwrap()]);
        assert!(spec.status.success(), "{spec:?}");
        Some(place)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Sets the program, with or without ids of its own.
    fn configure(&self, arguments: &[&str], own_ids: bool) {
        let path = self.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["process"]["args"] = json!(arguments);
        config["process"]["terminal"] = false.into();
        config["process"]["rlimits"] = json!([]);
        config["root"] = json!({ "path": "rootfs" });
        config["linux"]["resources"] = json!({ "pids": { "limit": 20 } });
        let kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
        let user = own_ids.then_some("user");
        config["linux"]["namespaces"] = kinds
            .iter()
            .chain(&user)
            .map(|kind| json!({ "type": kind }))
            .collect();
        let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
        for maps in ["uidMappings", "gidMappings"] {
            config["linux"][maps] = if own_ids { map.clone() } else { Value::Null };
        }
        fs::write(&path, config.to_string()).unwrap();
    }

    /// Sets the limit of its memory, in bytes.
    fn limit_memory(&self, limit: u64) {
        let path = self.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["linux"]["resources"]["memory"] = json!({ "limit": limit });
        fs::write(&path, config.to_string()).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("croft-oci"));
        command
            .arg("--root")
            .arg(self.path().join("state"))
            .args(words)
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    fn oci(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Without pipes, which what it starts would keep open.
    fn quiet(&self, words: &[&str]) -> Option<i32> {
        let mut command = self.command(words);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().code()
    }

    fn status(&self, id: &str) -> String {
        let output = self.oci(&["state", id]);
        match serde_json::from_slice::<Value>(&output.stdout) {
            Ok(state) => state["status"].as_str().unwrap_or_default().to_owned(),
            Err(_) => String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn becomes(&self, id: &str, status: &str) {
        eventually(PATIENCE, &format!("{id} is {status}"), || {
            self.status(id) == status
        });
    }
}

#[test]
fn a_life() {
    let Some(place) = Place::new() else { return };
    for own_ids in [false, true] {
        let id = named(if own_ids { "ids" } else { "life" });
        let id = id.as_str();
        place.configure(&["sleep", &long()], own_ids);
        assert_eq!(place.quiet(&["create", id]), Some(0));
        assert_eq!(place.status(id), "created");
        assert_eq!(place.quiet(&["create", id]), Some(1), "the name is taken");
        assert_eq!(place.quiet(&["delete", id]), Some(1), "it has not ended");
        assert_eq!(place.quiet(&["start", id]), Some(0));
        assert_eq!(place.status(id), "running");
        assert_eq!(place.quiet(&["start", id]), Some(1), "it runs already");
        let said = place.oci(&["exec", id, "sh", "-c", "echo $((40 + 2)); exit 9"]);
        assert_eq!(
            (said.status.code(), said.stdout.as_slice()),
            (Some(9), &b"42\n"[..])
        );
        assert_eq!(place.quiet(&["pause", id]), Some(0));
        assert_eq!(place.status(id), "paused");
        assert_eq!(place.quiet(&["resume", id]), Some(0));
        assert_eq!(place.quiet(&["update", "--pids-limit", "30", id]), Some(0));
        assert_eq!(place.quiet(&["kill", id, "KILL"]), Some(0));
        place.becomes(id, "stopped");
        assert_eq!(place.quiet(&["kill", id, "KILL"]), Some(1), "it has ended");
        assert_eq!(place.quiet(&["delete", id]), Some(0));
        assert!(place.status(id).contains("does not exist"));
    }
    assert!(place.oci(&["list", "--quiet"]).stdout.is_empty());
}

#[test]
fn exit_codes_and_messages() {
    let Some(place) = Place::new() else { return };
    let id = named("exit");
    for (arguments, code, part) in [
        (&["sh", "-c", "exit 7"][..], 7, ""),
        (&["sh", "-c", "sh -c 'kill -15 $$; :'; exit $?"], 143, ""),
        (&["nothing-of-this-name"], 127, "executable file not found"),
        (&["/tmp/data"], 126, "/tmp/data cannot be run"),
    ] {
        place.configure(arguments, false);
        let output = place.oci(&["run", &id]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    for words in [
        "run --bundle /nowhere x",
        "start x",
        "state x",
        "exec x true",
        "run a/b",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let output = place.oci(&words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.lines().count() <= 3 && said.contains("error: "),
            "{said}"
        );
    }
    assert!(place.oci(&["list", "--quiet"]).stdout.is_empty());
}

/// What init takes before it is the program counts too: with version 2 from its
/// first moment.
#[test]
fn half_a_mebibyte_of_memory_is_enough() {
    let Some(place) = Place::new() else { return };
    let id = named("small");
    let id = id.as_str();
    for own_ids in [false, true] {
        place.configure(&["true"], own_ids);
        place.limit_memory(512 << 10);
        for _ in 0..5 {
            let output = place.oci(&["run", id]);
            assert_eq!(output.status.code(), Some(0), "{own_ids}: {output:?}");
        }
        assert_eq!(place.quiet(&["create", id]), Some(0));
        assert_eq!(place.quiet(&["start", id]), Some(0));
        place.becomes(id, "stopped");
        assert_eq!(place.quiet(&["delete", id]), Some(0));
        // Where that is not enough, whoever is ended by it leaves nothing.
        place.limit_memory(16 << 10);
        let output = place.oci(&["run", id]);
        assert!(!output.status.success(), "{own_ids}: {output:?}");
    }
    assert!(place.oci(&["list", "--quiet"]).stdout.is_empty());
}

#[test]
fn whoever_is_killed_leaves_nothing_behind() {
    let Some(place) = Place::new() else { return };
    let mounts = |place: &Place| {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let path = place.path().to_string_lossy().into_owned();
        text.lines().filter(|line| line.contains(&path)).count()
    };
    for turn in 0..24_u64 {
        place.configure(&["sleep", &long()], turn % 2 == 1);
        let id = named(&format!("walk-{turn}"));
        let words: &[&str] = match turn % 3 {
            0 => &["create", &id],
            1 => &["run", "--detach", &id],
            _ => &["run", &id],
        };
        let mut command = place.command(words);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // All of its steps take some 20 ms, more on a slow host.
        thread::sleep(Duration::from_micros(turn * 1_100));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            place.quiet(&["delete", "--force", &id]),
            Some(0),
            "turn {turn}"
        );
        assert!(place.status(&id).contains("does not exist"), "turn {turn}");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let group = hierarchy.unwrap().path().join("croft-oci").join(&id);
            assert!(!group.exists(), "turn {turn}: {}", group.display());
        }
        assert!(!Path::new("/sys/fs/cgroup/croft-oci").join(&id).exists());
    }
    assert_eq!(mounts(&place), 0);
    let words = format!("sleep\0{}\0", long());
    eventually(END, "none of them sleeps", || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| line == words.as_bytes()).count() == 0
    });
}
