//! A seeded walk: commands in any order, and croft, monitors and vmms killed
//! at any moment. Nothing leaks, and `croft list` tells the truth.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{Stage, eventually, pid_of, wait};

const STEPS: u32 = 60;
const SCRIPTS: [&str; 6] = ["orderly", "wait", "echo", "failed", "power-off", "flood"];
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

impl Walk {
    fn name(&mut self) -> String {
        self.names.choose(&mut self.random).unwrap().clone()
    }

    /// Those of all instances.
    fn processes(&self) -> Vec<(Pid, String, String)> {
        let of = |name: &String| {
            let all = self.stage.processes_of(name).into_iter();
            let name = name.clone();
            all.map(move |(pid, program)| (pid, program, name.clone()))
        };
        self.names.iter().flat_map(of).collect()
    }

    fn command(&mut self) -> Vec<String> {
        let name = self.name();
        let pick = |random: &mut SmallRng, all: &[&str]| (*all.choose(random).unwrap()).to_owned();
        let script = pick(&mut self.random, &SCRIPTS);
        let policy = pick(&mut self.random, &POLICIES);
        let words: &[&str] = match self.random.random_range(0..12) {
            0..3 => &[
                "create",
                "--kernel",
                "kernel",
                "--append",
                &script,
                "--restart",
                &policy,
                "--name",
                &name,
            ],
            3..6 => &["start", &name],
            6 => &["stop", "--timeout", "0", &name],
            7 => &["stop", "--timeout", "1", &name],
            8 => &["restart", "--timeout", "0", &name],
            9 => &["pause", &name],
            10 => &["resume", &name],
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
            3..5 => {
                let all = self.processes();
                let Some((pid, program, _)) = all.choose(&mut self.random) else {
                    return "nobody to kill".to_owned();
                };
                // It may have ended by itself.
                let _ = kill_process(*pid, Signal::KILL);
                format!("{program} {pid:?} killed")
            }
            _ => {
                let (code, said) = self.stage.ask(&words);
                // It may be refused, but it never breaks.
                assert!(
                    matches!(code, Some(0 | 1 | 2 | 124)) && !said.contains("panicked"),
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
            let mut seen = String::new();
            eventually(&format!("the truth of {name}; after {history:#?}"), || {
                let known = self.stage.known(name);
                let status = known.as_ref().map(|known| &known["status"]);
                let phase = status.map_or("none", |status| status["phase"].as_str().unwrap());
                let payload = status.and_then(|status| status["payload"]["pid"].as_i64());
                let all = self.stage.processes_of(name);
                let of = |program: &str| {
                    let all = all.iter().filter(|(_, name)| name == program);
                    all.map(|(pid, _)| i64::from(pid.as_raw_nonzero().get()))
                        .collect::<Vec<i64>>()
                };
                let (monitors, vmms) = (of("croft-monitor"), of("croft-vmm"));
                seen = format!("{phase} {monitors:?} {vmms:?}");
                // A monitor's child is a second one until it becomes a payload.
                if monitors.len() > 1 || vmms.len() > 1 {
                    return false;
                }
                let (monitor, vmm) = (monitors.first(), vmms.first().copied());
                match phase {
                    "running" | "paused" => monitor.is_some() && vmm == payload && vmm.is_some(),
                    "waiting" => monitor.is_some() && vmm.is_none(),
                    "starting" | "stopping" => false,
                    _ => monitor.is_none() && vmm.is_none(),
                }
            });
        }
    }
}

#[test]
fn nothing_leaks_and_the_list_is_true() {
    let stage = Stage::new();
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
    }
    // What is left half made is gone with the next that is made.
    let (code, said) = walk
        .stage
        .ask(&["create", "--kernel", "kernel", "--name", "last"]);
    assert_eq!(code, Some(0), "{said}");
    for (directory, expected) in [("data/instances", vec!["last"]), ("data/run", vec![])] {
        let left = std::fs::read_dir(walk.stage.path(directory)).unwrap();
        let left = left.flatten().map(|entry| entry.file_name());
        let left: Vec<String> = left
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        assert_eq!(left, expected, "after {history:#?}");
    }
}
