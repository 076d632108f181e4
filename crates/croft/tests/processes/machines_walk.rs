//! A seeded walk of machines, whose vmm is scripted.

use rand::Rng;
use rand::rngs::SmallRng;
use rustix::process::Pid;

use crate::stage::Stage;
use crate::walk::{Kind, POLICIES, pick, walk};

const SCRIPTS: [&str; 6] = ["orderly", "wait", "echo", "failed", "power-off", "flood"];

struct Machines;

impl Kind for Machines {
    const STEPS: u32 = 60;
    const CODES: &[i32] = &[0, 1, 2, 124];

    fn command(random: &mut SmallRng, name: &str) -> Vec<String> {
        let script = pick(random, &SCRIPTS);
        let policy = pick(random, &POLICIES);
        let words: &[&str] = match random.random_range(0..12) {
            0..3 => &[
                "create",
                "--kernel",
                "kernel",
                "--append",
                script,
                "--restart",
                policy,
                "--name",
                name,
            ],
            3..6 => &["start", name],
            6 => &["stop", "--timeout", "0", name],
            7 => &["stop", "--timeout", "1", name],
            8 => &["restart", "--timeout", "0", name],
            9 => &["pause", name],
            10 => &["resume", name],
            _ => &["delete", "--force", name],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// The vmm has the machine's name.
    fn payload(_: &Stage, _: &str) -> Option<Pid> {
        None
    }

    fn is_true(stage: &Stage, name: &str) -> bool {
        let known = stage.known(name);
        let status = known.as_ref().map(|known| &known["status"]);
        let phase = status.map_or("none", |status| status["phase"].as_str().unwrap());
        let payload = status.and_then(|status| status["payload"]["pid"].as_i64());
        let all = stage.processes_of(name);
        let of = |program: &str| {
            let all = all.iter().filter(|(_, name)| name == program);
            all.map(|(pid, _)| i64::from(pid.as_raw_nonzero().get()))
                .collect::<Vec<i64>>()
        };
        let (monitors, vmms) = (of("croft-monitor"), of("croft-vmm"));
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
    }
}

#[test]
fn nothing_leaks_and_the_list_is_true() {
    let stage = Stage::new();
    let (_, history) = walk::<Machines>(&stage);
    // What is left half made is gone with the next that is made.
    let (code, said) = stage.ask(&["create", "--kernel", "kernel", "--name", "last"]);
    assert_eq!(code, Some(0), "{said}");
    for (directory, expected) in [("data/instances", vec!["last"]), ("data/run", vec![])] {
        let left = std::fs::read_dir(stage.path(directory)).unwrap();
        let left = left.flatten().map(|entry| entry.file_name());
        let left: Vec<String> = left
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        assert_eq!(left, expected, "after {history:#?}");
    }
}
