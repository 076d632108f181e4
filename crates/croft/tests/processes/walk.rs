//! Seeded walks: commands in any order, and croft, monitors and payloads killed
//! at any moment. Nothing leaks, and `croft list` tells the truth.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{Stage, eventually, pid_of, wait};

pub const POLICIES: [&str; 3] = ["no", "on-failure", "always"];

/// `CROFT_TEST_SEED` walks another way.
fn seed() -> u64 {
    let text = std::env::var("CROFT_TEST_SEED");
    text.map_or(1, |text| text.parse().expect("a number"))
}

/// What differs between machines and containers.
pub trait Kind {
    /// How long the walk is.
    const STEPS: u32;
    /// Exit codes of commands that are done or refused, but not broken.
    const CODES: &[i32];

    /// A command for the instance `name`.
    fn command(random: &mut SmallRng, name: &str) -> Vec<String>;

    /// What can be killed of the instance, beside what has its name.
    fn payload(stage: &Stage, name: &str) -> Option<Pid>;

    /// Whether what is said to run runs, and what is not said to run does not.
    fn is_true(stage: &Stage, name: &str) -> bool;
}

/// One of these words.
pub fn pick<'a>(random: &mut SmallRng, all: &[&'a str]) -> &'a str {
    all.choose(random).unwrap()
}

/// Walks with two instances, deletes them, and waits until nothing of them
/// runs. Returns their names, and what was done.
pub fn walk<K: Kind>(stage: &Stage) -> ([String; 2], Vec<String>) {
    let names = ["a", "b"].map(|letter| format!("{}-{letter}", stage.name));
    let mut random = SmallRng::seed_from_u64(seed());
    let mut history = Vec::new();
    for _ in 0..K::STEPS {
        history.push(step::<K>(stage, &names, &mut random));
        for name in &names {
            // Once that has settled which goes on by itself.
            eventually(&format!("the truth of {name}; after {history:#?}"), || {
                K::is_true(stage, name)
            });
        }
    }
    for name in &names {
        if stage.known(name).is_some() {
            let (code, said) = stage.ask(&["delete", "--force", name]);
            assert_eq!(code, Some(0), "{said}; after {history:#?}");
        }
    }
    for name in &names {
        eventually("no process is left", || stage.processes_of(name).is_empty());
    }
    (names, history)
}

fn step<K: Kind>(stage: &Stage, names: &[String], random: &mut SmallRng) -> String {
    let name = names.choose(random).unwrap();
    let command = K::command(random, name);
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    match random.random_range(0..10) {
        // A command that is killed underway.
        0..3 => {
            let mut command = stage.croft(&words);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            thread::sleep(Duration::from_millis(random.random_range(0..30)));
            let _ = kill_process(pid_of(&child), Signal::KILL);
            wait(&mut child);
            format!("{words:?}, killed")
        }
        3..6 => {
            let named = stage.processes_of(name).into_iter().map(|(pid, _)| pid);
            let all: Vec<Pid> = named.chain(K::payload(stage, name)).collect();
            let Some(pid) = all.choose(random) else {
                return "nobody to kill".to_owned();
            };
            // It may have ended by itself.
            let _ = kill_process(*pid, Signal::KILL);
            format!("{pid:?} of {name} killed")
        }
        _ => {
            let (code, said) = stage.ask(&words);
            // It may be refused, but it never breaks.
            assert!(
                code.is_some_and(|code| K::CODES.contains(&code)) && !said.contains("panicked"),
                "{words:?}: {code:?}: {said}"
            );
            format!("{words:?}: {code:?}")
        }
    }
}
