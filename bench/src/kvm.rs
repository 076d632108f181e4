//! Starts and sizes on KVM, in a nested machine where this one has no KVM
//! that is fit.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use croft_tests::PATIENCE;
use croft_tests::files::{program, root};
use croft_tests::guest::UP;
use croft_tests::processes::resident_except;
use rustix::process::Pid;

use crate::case::{Case, Contestant, Figure, Layout, Results, Target};
use crate::files::Files;
use crate::systems::{MEMORY_MIB, System};

/// KVM's counters, a directory for each machine (Documentation/virt/kvm).
const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// How long a guest is left alone before its memory is looked at.
const SETTLE: Duration = Duration::from_secs(1);

/// QEMU's fastest, among the contestants.
const MICROVM: usize = 1;

/// Croft beside two machines of QEMU's.
pub fn case(files: &Files) -> Case<'_> {
    let figure = |name: &str, unit, digits, target| Figure {
        name: name.to_owned(),
        unit,
        digits,
        target,
    };
    Case {
        key: "kvm",
        title: "On KVM, Debian's cloud kernel".to_owned(),
        about: "Start: from the start of the process to the guest's first line from user space, \
                by a static program as init. Exits: KVM's own count at that line. Memory: what \
                is resident beyond the guest's RAM a second later, of all processes that belong \
                to the guest, shared pages by their share (PSS). The guest has one processor.",
        figures: vec![
            figure("start", "s", 3, Some(Target::Share(MICROVM, 1.0))),
            figure("exits", "", 0, None),
            figure("memory", "MB", 1, Some(Target::Value(10.0))),
        ],
        contestants: [
            System::Kvm,
            System::QemuKvm("microvm,rtc=on"),
            System::QemuKvm("pc"),
        ]
        .into_iter()
        .map(|system| Contestant {
            name: system.name(),
            rival: system.is_rival(),
            run: Box::new(move || {
                let mut guest = system.start(&files.program("bench=wait")?)?;
                let start = guest.time_to(UP, PATIENCE)?;
                let processes = guest.processes();
                let exits = exits(&processes)?;
                thread::sleep(SETTLE);
                let resident: u64 = processes
                    .iter()
                    .map(|pid| resident_except(*pid, MEMORY_MIB << 20))
                    .sum();
                Ok(vec![
                    start.as_secs_f64(),
                    exits as f64,
                    resident as f64 / 1e6,
                ])
            }),
        })
        .collect(),
        layout: Layout::Contestants,
        needs_kvm: true,
    }
}

/// Exits of the machines of these processes so far.
fn exits(processes: &[Pid]) -> Result<u64, String> {
    let problem = |error| format!("{COUNTERS}: {error}");
    let mut total = None;
    for entry in fs::read_dir(COUNTERS).map_err(problem)?.flatten() {
        let name = entry.file_name();
        // Process and descriptor.
        let pid = name.to_str().and_then(|name| name.split_once('-'));
        let ours = pid.is_some_and(|(pid, _)| {
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            pid.is_some_and(|pid| processes.contains(&pid))
        });
        if ours {
            let count = fs::read_to_string(entry.path().join("exits")).map_err(problem)?;
            let count: u64 = count.trim().parse().unwrap_or(0);
            total = Some(total.unwrap_or(0) + count);
        }
    }
    total.ok_or_else(|| format!("{COUNTERS} has no machine of these processes"))
}

/// Runs a case that needs KVM, here or nested; says where.
pub fn run(case: &Case<'_>, runs: u32) -> (Vec<Results>, String) {
    if is_fit() {
        return (case.run(runs), "On this machine's KVM.".to_owned());
    }
    let results = nested(case, runs).unwrap_or_else(|problem| {
        eprintln!("{}: {problem}", case.title);
        let failed = || Results {
            problem: Some(problem.clone()),
            ..Results::default()
        };
        case.contestants.iter().map(|_| failed()).collect()
    });
    let place = "In the nested machine, since this one has no fit KVM: its processor is emulated \
                 by QEMU, so the seconds are not those of hardware.";
    (results, place.to_owned())
}

fn is_fit() -> bool {
    Command::new(program("croft"))
        .args(["doctor", "--engine", "kvm"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What [`report`] prints in there.
fn nested(case: &Case<'_>, runs: u32) -> Result<Vec<Results>, String> {
    let script = root().join("scripts/bench/nested");
    let programs = program("croft");
    let output = Command::new(&script)
        .arg(programs.parent().unwrap_or(Path::new("/")))
        .args([case.key, &runs.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{}: {error}", script.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    eprint!("{text}");
    if !output.status.success() {
        return Err(format!("{} failed: {}", script.display(), output.status));
    }
    let mut results: Vec<Results> = case
        .contestants
        .iter()
        .map(|_| Results::default())
        .collect();
    for line in text.lines() {
        parse(line.trim_end(), &mut results);
    }
    Ok(results)
}

/// Results as lines, for [`nested`].
pub fn report(results: &[Results]) -> String {
    let mut text = String::new();
    for (index, results) in results.iter().enumerate() {
        let count = results.values.first().map_or(0, Vec::len);
        for run in 0..count {
            let values = results.values.iter().filter_map(|all| all.get(run));
            let values: Vec<String> = values.map(f64::to_string).collect();
            text += &format!("run {index} {}\n", values.join(" "));
        }
        if let Some(problem) = &results.problem {
            let problem = problem.lines().next().unwrap_or_default();
            text += &format!("problem {index} {problem}\n");
        }
    }
    text
}

fn parse(line: &str, results: &mut [Results]) {
    let mut words = line.splitn(3, ' ');
    let (Some(kind), Some(index), Some(rest)) = (words.next(), words.next(), words.next()) else {
        return;
    };
    let index = index.parse::<usize>().ok();
    let Some(results) = index.and_then(|index| results.get_mut(index)) else {
        return;
    };
    match kind {
        "run" => {
            let values = rest
                .split(' ')
                .map(str::parse)
                .collect::<Result<Vec<f64>, _>>();
            if let Ok(values) = values {
                results.add(&values);
            }
        }
        "problem" => results.problem = Some(rest.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_back_as_they_were() {
        let mut first = Results::default();
        first.add(&[1.5, 20.0]);
        first.add(&[0.5, 10.0]);
        let second = Results {
            problem: Some("no such thing\nand more".to_owned()),
            ..Results::default()
        };
        let text = report(&[first, second]);
        let mut back = [Results::default(), Results::default()];
        for line in text
            .lines()
            .chain(["nested: exit 0", "run 7 1 2", "run 1 x"])
        {
            parse(line, &mut back);
        }
        assert_eq!(back[0].values, [[0.5, 1.5], [10.0, 20.0]]);
        assert_eq!(back[0].problem, None);
        assert_eq!(back[1].values.len(), 0);
        assert_eq!(back[1].problem.as_deref(), Some("no such thing"));
    }
}
