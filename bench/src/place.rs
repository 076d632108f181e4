//! Running a case somewhere else: in a nested machine, in a namespace.
//!
//! A script there runs this program again with `--raw`; the runs come back as
//! lines.

use std::path::Path;
use std::process::{Command, Stdio};

use croft_tests::files::{program, root};

use crate::case::{Case, Place, Results};

/// Runs a case at its place, and says where that was.
pub fn run(case: &Case<'_>, runs: u32) -> (Vec<Results>, &'static str) {
    match case.place {
        Place::Here => (case.run(runs), ""),
        Place::Kvm if is_fit() => (case.run(runs), "On this machine's KVM."),
        Place::Kvm => (
            elsewhere(case, "nested", runs),
            "In the nested machine, since this one has no fit KVM: its processor is emulated by \
             QEMU, so the seconds are not those of hardware.",
        ),
        Place::Namespace => (elsewhere(case, "namespace", runs), ""),
        Place::Mounts => (elsewhere(case, "cgroups", runs), ""),
    }
}

/// The results that a script's `croft-bench` gives.
fn elsewhere(case: &Case<'_>, script: &str, runs: u32) -> Vec<Results> {
    asked(case, script, runs).unwrap_or_else(|problem| {
        eprintln!("{}: {problem}", case.title);
        let failed = || Results {
            problem: Some(problem.clone()),
            ..Results::default()
        };
        case.contestants.iter().map(|_| failed()).collect()
    })
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
fn asked(case: &Case<'_>, script: &str, runs: u32) -> Result<Vec<Results>, String> {
    let script = root().join("scripts/bench").join(script);
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

/// Results as lines, for whoever asked.
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
