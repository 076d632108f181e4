//! A seeded walk of containers: commands in any order, and croft, monitors and
//! inits killed at any moment. Nothing leaks, and `croft list` tells the truth.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::images::IMAGE;
use crate::stage::{Stage, eventually, pid_of, wait};

const STEPS: u32 = 40;
const SCRIPTS: [&str; 4] = [
    "sleep 1000",
    "trap 'exit 0' TERM; while :; do sleep 0.05; done",
    "sleep 0.05; exit 1",
    "exec true",
];
const POLICIES: [&str; 3] = ["no", "on-failure", "always"];

/// `CROFT_TEST_SEED` walks another way.
fn seed() -> u64 {
    let text = std::env::var("CROFT_TEST_SEED");
    text.map_or(1, |text| text.parse().expect("a number"))
}

struct Walk {
    stage: Stage,
    names: Vec<String>,
    random: SmallRng,
}

/// What is known of an instance.
struct Seen {
    phase: String,
    payload: Option<i64>,
}

impl Walk {
    fn name(&mut self) -> String {
        self.names.choose(&mut self.random).unwrap().clone()
    }

    fn seen(&self, name: &str) -> Seen {
        let known = self.stage.known(name);
        let status = known.as_ref().map(|known| &known["status"]);
        let phase = status.and_then(|status| status["phase"].as_str());
        Seen {
            phase: phase.unwrap_or("none").to_owned(),
            payload: status.and_then(|status| status["payload"]["pid"].as_i64()),
        }
    }

    fn command(&mut self) -> Vec<String> {
        let name = self.name();
        let pick = |random: &mut SmallRng, all: &[&str]| (*all.choose(random).unwrap()).to_owned();
        let script = pick(&mut self.random, &SCRIPTS);
        let policy = pick(&mut self.random, &POLICIES);
        let words: &[&str] = match self.random.random_range(0..14) {
            0..3 => &[
                "create",
                "--container",
                "--net",
                "none",
                "--restart",
                &policy,
                "--name",
                &name,
                IMAGE,
                "sh",
                "-c",
                &script,
            ],
            3..6 => &["start", &name],
            6 => &["stop", "--timeout", "0", &name],
            7 => &["stop", "--timeout", "1", &name],
            8 => &["restart", "--timeout", "0", &name],
            9 => &["pause", &name],
            10 => &["resume", &name],
            11 => &["exec", &name, "sh", "-c", "sleep 0.05"],
            12 => &["set", &name, "--pids", "100", "--cpu-weight", "50"],
            _ => &["delete", "--force", &name],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn step(&mut self) -> String {
        let command = self.command();
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match self.random.random_range(0..10) {
            // A command that is killed underway.
            0..3 => {
                let mut command = self.stage.croft(&words);
                command.stdout(Stdio::null()).stderr(Stdio::null());
                let mut child = command.spawn().unwrap();
                thread::sleep(Duration::from_millis(self.random.random_range(0..30)));
                let _ = kill_process(pid_of(&child), Signal::KILL);
                wait(&mut child);
                format!("{words:?}, killed")
            }
            3..6 => {
                let name = self.name();
                let init = self.seen(&name).payload;
                let init = init.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
                let monitors = self.stage.processes_of(&name).into_iter();
                let all: Vec<Pid> = monitors.map(|(pid, _)| pid).chain(init).collect();
                let Some(pid) = all.choose(&mut self.random) else {
                    return "nobody to kill".to_owned();
                };
                // It may have ended by itself.
                let _ = kill_process(*pid, Signal::KILL);
                format!("{pid:?} of {name} killed")
            }
            _ => {
                let (code, said) = self.stage.ask(&words);
                // It may be refused, but it never breaks.
                assert!(
                    matches!(code, Some(0 | 1 | 2 | 124 | 125 | 137)) && !said.contains("panicked"),
                    "{words:?}: {code:?}: {said}"
                );
                format!("{words:?}: {code:?}")
            }
        }
    }

    /// What is said to run runs, and what is not said to run does not; once
    /// that has settled which goes on by itself.
    fn check(&self, history: &[String]) {
        for name in &self.names {
            eventually(&format!("the truth of {name}; after {history:#?}"), || {
                let Seen { phase, payload } = self.seen(name);
                let monitors = self.stage.processes_of(name).len();
                let lives = payload.is_some_and(|pid| fs::metadata(format!("/proc/{pid}")).is_ok());
                match phase.as_str() {
                    "running" | "paused" => monitors >= 1 && lives,
                    "waiting" => monitors == 1 && payload.is_none(),
                    "starting" | "stopping" => false,
                    _ => monitors == 0 && !lives,
                }
            });
        }
    }
}

#[test]
fn nothing_of_a_container_leaks_and_the_list_is_true() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let names = ["a", "b"].map(|letter| format!("{}-{letter}", stage.name));
    let mut walk = Walk {
        stage,
        names: names.to_vec(),
        random: SmallRng::seed_from_u64(seed()),
    };
    let mut history = Vec::new();
    for _ in 0..STEPS {
        history.push(walk.step());
        walk.check(&history);
    }
    for name in &walk.names {
        if walk.stage.known(name).is_some() {
            let (code, said) = walk.stage.ask(&["delete", "--force", name]);
            assert_eq!(code, Some(0), "{said}; after {history:#?}");
        }
    }
    for name in &walk.names {
        eventually("no process is left", || {
            walk.stage.processes_of(name).is_empty()
        });
        let left = Stage::groups_of(name);
        assert!(left.is_empty(), "{left:?} after {history:#?}");
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(walk.stage.path("").to_str().unwrap()),
        "{mounts}"
    );
    // What is left half made is gone with the next that is made, and its ids
    // are free again.
    let words = [
        "create",
        "--container",
        "--net",
        "none",
        "--name",
        "last",
        IMAGE,
        "true",
    ];
    let (code, said) = walk.stage.ask(&words);
    assert_eq!(code, Some(0), "{said}");
    let last: Value = walk.stage.known("last").unwrap();
    assert!(last["config"]["container"]["ids"]["first"].is_u64());
    let left = fs::read_dir(walk.stage.path("data/instances")).unwrap();
    let left = left
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut left: Vec<String> = left.collect();
    left.sort();
    assert_eq!(left, [".ids.lock", "last"], "after {history:#?}");
}
