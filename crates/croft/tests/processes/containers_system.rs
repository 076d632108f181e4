//! Containers of whole systems: their init, its console and its end.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use croft_image::{Store, build};
use serde_json::json;

use crate::images::IMAGE;
use crate::stage::{Stage, eventually, wait};

/// The image of a system.
const SYSTEM: &str = "debian:12";

impl Stage {
    /// Whether a system can be tested here; says why not. Its image is there
    /// then: the one that the checks of servers have built.
    fn with_system(&self) -> bool {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: these tests look at control groups and ids, as root");
            return false;
        }
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/server/images");
        let found = images
            .is_dir()
            .then(|| Store::open(&images).ok()?.resolve(SYSTEM).ok());
        match found.flatten() {
            Some(image) if build::is_outdated(&image.manifest) => {
                println!("skipped: {SYSTEM} is an older Croft's; scripts/server/image builds it");
                return false;
            }
            Some(_) => {}
            None => {
                println!("skipped: {SYSTEM} is missing; scripts/server/image builds it");
                return false;
            }
        }
        std::fs::create_dir_all(self.path("data")).unwrap();
        symlink(images, self.path("data/images")).unwrap();
        true
    }
}

#[test]
fn a_terminal_stays_while_nobody_has_it_open() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    // As an init does: it opens its console for each line.
    let script = "exec <&- >&- 2>&-; sleep 0.3; echo first >/dev/console; sleep 0.3; \
                  echo second >/dev/console; exec sleep 1000";
    stage.start_container(&["-t"], &["sh", "-c", script]);
    eventually("both lines are there", || {
        let logs = stage.done(&["logs"]);
        logs.contains("first") && logs.contains("second")
    });
    // And its end is seen nevertheless.
    stage.done(&["kill"]);
    assert_eq!(stage.phase(), "stopped");
    stage.done(&["delete"]);
    stage.assert_nothing_left();
    // What it says last is heard.
    let output = stage.run_container(&["-t"], &["sh", "-c", "seq 1 2000; exit 3"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("1999\r\n2000\r\n"));
}

#[test]
fn a_system_boots_has_a_login_and_powers_off() {
    let stage = Stage::new();
    if !stage.with_system() {
        return;
    }
    let words = ["create", "--container", "--net", "none", "--name"];
    let (code, said) = stage.ask(&[&words[..], &[&stage.name, SYSTEM]].concat());
    assert_eq!(code, Some(0), "{said}");
    let count = |text: &str| {
        let (_, logs) = stage.ask(&["logs", &stage.name]);
        logs.matches(text).count()
    };
    for _ in 0..2 {
        // What it has shown at earlier starts.
        let before = [" login: ", "Password:"].map(count);
        stage.done(&["start"]);
        eventually("its init is up", || {
            let (_, state) = stage.exec(&["systemctl", "is-system-running"]);
            assert_ne!(
                state,
                "degraded\n",
                "{}",
                stage.exec(&["systemctl", "--failed"]).1
            );
            state == "running\n"
        });
        assert_eq!(
            stage.exec(&["hostname"]).1.trim(),
            stage.name.replace('_', "-")
        );
        let shown = |text: &str, before: usize| {
            eventually(&format!("it shows {text}"), || count(text) > before);
        };
        // Before that it throws away what was typed.
        shown(" login: ", before[0]);
        let mut console = stage
            .croft(&["console", &stage.name])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut keys = console.stdin.take().unwrap();
        keys.write_all(b"root\n").unwrap();
        shown("Password:", before[1]);
        stage.done(&["stop", "--timeout", "300"]);
        // Whoever looks at it is let go.
        drop(keys);
        wait(&mut console);
        let status = stage.status();
        assert_eq!(status["phase"], "stopped");
        assert_eq!(status["outcome"], json!("power-off"));
        stage.assert_nothing_left();
    }
    stage.done(&["delete"]);
}

#[test]
fn a_command_takes_the_place_of_a_systems_init() {
    let stage = Stage::new();
    if !stage.with_system() {
        return;
    }
    // What it shows; Croft itself may say that it unpacks the image.
    let run = |options: &[&str], command: &[&str]| {
        let words = ["run", "--container", "--rm", "--net", "none"];
        let words = [&words[..], options, &[SYSTEM], command].concat();
        let mut child = stage.croft(&words).spawn().unwrap();
        let code = wait(&mut child).code();
        let output = child.wait_with_output().unwrap();
        (code, String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = run(&[], &["sh", "-c", "cat /proc/1/comm; test -t 0; exit $?"]);
    assert_eq!((code, said.as_str()), (Some(1), "sh\n"));
    let (code, said) = run(&["--entrypoint", "echo"], &["as", "given"]);
    assert_eq!((code, said.as_str()), (Some(0), "as given\n"));
    // Its init under its own name is the system, with what is said to it.
    let words = ["create", "--container", "--net", "none", "--name"];
    let (code, said) =
        stage.ask(&[&words[..], &[&stage.name, SYSTEM, "/sbin/init", "rescue"]].concat());
    assert_eq!(code, Some(0), "{said}");
    let known = stage.known(&stage.name).unwrap();
    assert_eq!(known["config"]["container"]["role"], json!("system"));
    stage.done(&["delete"]);
}

#[test]
fn what_an_image_says_is_a_volume_has_its_files() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    stage.import("own", &json!({"Volumes": {"/etc": {}, "/srv": {}}}));
    let run = |options: &[&str], script: &str| {
        let words = [
            "run",
            "--container",
            "--rm",
            "--net",
            "none",
            "--hostname",
            "box",
        ];
        let (code, said) = stage.ask(&[&words[..], options, &["own", "sh", "-c", script]].concat());
        assert_eq!(code, Some(0), "{said}");
        said
    };
    // It is the container's own: with what the image has there, and the names
    // that the container goes by over it.
    let script = "cat /etc/plain; stat -c %u /etc/plain; echo new >/etc/new && cat /etc/new; \
                  cat /etc/hostname; head -n 1 /etc/hosts; touch /srv/x && echo written; \
                  touch /x 2>/dev/null || echo closed";
    let expected = "not a program\n0\nnew\nbox\n127.0.0.1 localhost\nwritten\nclosed\n";
    assert_eq!(run(&["--read-only"], script), expected);
    // Nothing of it is there for the next one.
    assert_eq!(run(&["--read-only"], script), expected);
    // A volume over it does not cover them either, unless it cannot have them.
    let names = "cat /etc/hostname; cat /etc/plain";
    assert_eq!(run(&["-v", "etc:/etc"], names), "box\nnot a program\n");
    std::fs::create_dir(stage.path("data/etc")).unwrap();
    let bare = format!("{}:/etc:ro", stage.path("data/etc").display());
    assert_eq!(run(&["-v", &bare], "ls /etc; echo done"), "done\n");
    let (code, said) = stage.ask(&["volume", "delete", "etc"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn volumes_with_names_outlive_their_containers() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let (code, said) = stage.ask(&["volume", "create", "made"]);
    assert_eq!(code, Some(0), "{said}");
    let volumes = ["-v", "made:/made", "-v", "new:/etc"];
    // A new one has what the image has there, and its files are root's inside.
    let script = "stat -c %u:%g /made; cat /etc/plain; echo kept >/made/file";
    let output = stage.run_container(&volumes, &["sh", "-c", script]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("0:0\n"));
    let output = stage.run_container(
        &["-v", "made:/made:ro"],
        &["sh", "-c", "cat /made/file; touch /made/other"],
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "kept\n");
    assert_ne!(output.status.code(), Some(0));
    // It is not deleted while somebody uses it.
    let words = ["create", "--container", "--name", &stage.name, "-v"];
    let (code, said) = stage.ask(&[&words[..], &["made:/made", IMAGE, "true"]].concat());
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = stage.ask(&["volume", "delete", "made"]);
    assert_ne!(code, Some(0));
    assert!(said.contains(&stage.name), "{said}");
    stage.done(&["delete"]);
    let (code, said) = stage.ask(&["volume", "delete", "made", "new"]);
    assert_eq!(code, Some(0), "{said}");
}
