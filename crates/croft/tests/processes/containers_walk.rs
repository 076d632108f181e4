//! A seeded walk of containers.

use std::fs;

use rand::Rng;
use rand::rngs::SmallRng;
use rustix::process::Pid;
use serde_json::Value;

use crate::images::IMAGE;
use crate::stage::Stage;
use crate::walk::{Kind, POLICIES, pick, walk};

const SCRIPTS: [&str; 4] = [
    "sleep 1000",
    "trap 'exit 0' TERM; while :; do sleep 0.05; done",
    "sleep 0.05; exit 1",
    "exec true",
];

struct Containers;

/// The phase of an instance, and its init.
fn seen(stage: &Stage, name: &str) -> (String, Option<i64>) {
    let known = stage.known(name);
    let status = known.as_ref().map(|known| &known["status"]);
    let phase = status.and_then(|status| status["phase"].as_str());
    (
        phase.unwrap_or("none").to_owned(),
        status.and_then(|status| status["payload"]["pid"].as_i64()),
    )
}

impl Kind for Containers {
    const STEPS: u32 = 40;
    const CODES: &[i32] = &[0, 1, 2, 124, 125, 137];

    fn command(random: &mut SmallRng, name: &str) -> Vec<String> {
        let script = pick(random, &SCRIPTS);
        let policy = pick(random, &POLICIES);
        let words: &[&str] = match random.random_range(0..14) {
            0..3 => &[
                "create",
                "--container",
                "--net",
                "none",
                "--restart",
                policy,
                "--name",
                name,
                IMAGE,
                "sh",
                "-c",
                script,
            ],
            3..6 => &["start", name],
            6 => &["stop", "--timeout", "0", name],
            7 => &["stop", "--timeout", "1", name],
            8 => &["restart", "--timeout", "0", name],
            9 => &["pause", name],
            10 => &["resume", name],
            11 => &["exec", name, "sh", "-c", "sleep 0.05"],
            12 => &["set", name, "--pids", "100", "--cpu-weight", "50"],
            _ => &["delete", "--force", name],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Its init, which is called what its image says.
    fn payload(stage: &Stage, name: &str) -> Option<Pid> {
        Pid::from_raw(i32::try_from(seen(stage, name).1?).ok()?)
    }

    fn is_true(stage: &Stage, name: &str) -> bool {
        let (phase, payload) = seen(stage, name);
        let monitors = stage.processes_of(name).len();
        let lives = payload.is_some_and(|pid| fs::metadata(format!("/proc/{pid}")).is_ok());
        match phase.as_str() {
            "running" | "paused" => monitors >= 1 && lives,
            "waiting" => monitors == 1 && payload.is_none(),
            "starting" | "stopping" => false,
            _ => monitors == 0 && !lives,
        }
    }
}

#[test]
fn nothing_of_a_container_leaks_and_the_list_is_true() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let (names, history) = walk::<Containers>(&stage);
    for name in &names {
        let left = Stage::groups_of(name);
        assert!(left.is_empty(), "{left:?} after {history:#?}");
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(stage.path("").to_str().unwrap()),
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
    let (code, said) = stage.ask(&words);
    assert_eq!(code, Some(0), "{said}");
    let last: Value = stage.known("last").unwrap();
    assert!(last["config"]["container"]["ids"]["first"].is_u64());
    let left = fs::read_dir(stage.path("data/instances")).unwrap();
    let left = left
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut left: Vec<String> = left.collect();
    left.sort();
    assert_eq!(left, [".ids.lock", "last"], "after {history:#?}");
}
