//! What is left of a maker that was killed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::json;

use crate::stage::{driver, stage};

/// Waits for a file, and gives its text.
fn await_text(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ if Instant::now() > deadline => panic!("{} never came", path.display()),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// An init that waits for its maker ends with it, whatever it waits for.
#[test]
fn an_init_ends_with_a_maker_that_is_killed() {
    for ids in [false, true] {
        let Some(mut stage) = stage() else { return };
        if ids {
            stage.own_ids();
        }
        let (told, hook) = (stage.path("told"), stage.path("hook"));
        let script = format!(
            "cat >{}; echo >>{0}; echo $$ >{}; exec sleep 1000",
            told.display(),
            hook.display()
        );
        stage.spec["hooks"]["createRuntime"] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }]);
        stage.spec["process"]["args"] = json!(["/bin/driver", "inside", "pid"]);
        fs::write(stage.path("config.json"), stage.spec.to_string()).unwrap();
        let mut maker = Command::new(driver())
            .arg("run")
            .arg(stage.path("."))
            .arg("--outlives")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let hook = await_text(&hook);
        let told: serde_json::Value = serde_json::from_str(&await_text(&told)).unwrap();
        let init = told["pid"].as_i64().unwrap();
        let init = Pid::from_raw(i32::try_from(init).unwrap()).unwrap();
        let init = pidfd_open(init, PidfdFlags::empty()).unwrap();
        maker.kill().unwrap();
        maker.wait().unwrap();
        let mut ended = [PollFd::new(&init, PollFlags::IN)];
        let patience = Timespec {
            tv_sec: 120,
            tv_nsec: 0,
        };
        let count = poll(&mut ended, Some(&patience)).unwrap();
        let hook = Pid::from_raw(hook.trim().parse().unwrap()).unwrap();
        let _ = kill_process(hook, Signal::KILL);
        assert_eq!(count, 1, "its init waits for ever");
    }
}
