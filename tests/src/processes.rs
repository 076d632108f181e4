//! A look at processes through `/proc`.
//!
//! What is looked at may end at any moment, unless it is a child of the test.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use rustix::process::Pid;

/// All processes with `word` as an argument, and the names of their programs.
pub fn with_argument(word: &str) -> Vec<(Pid, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(line) = fs::read_to_string(entry.path().join("cmdline")) else {
            continue;
        };
        let mut words = line.split('\0');
        let program = words.next().unwrap_or_default();
        if words.any(|each| each == word)
            && let Some(pid) = Pid::from_raw(pid)
        {
            let program = Path::new(program).file_name().unwrap_or_default();
            found.push((pid, program.to_string_lossy().into_owned()));
        }
    }
    found
}

/// Processor time that a process has used, of all its threads; in steps of
/// the kernel's clock tick, 10 ms.
pub fn cpu_time(pid: Pid) -> Duration {
    let stat = proc(pid, "stat");
    // Behind the name, which may contain anything (proc_pid_stat(5)): fields
    // from the third on; the 14th and 15th are user and system time.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number of ticks"))
        .sum();
    Duration::from_millis(ticks * 1000 / clock_ticks_per_second())
}

/// A process and all of its descendants that have not ended meanwhile.
pub fn tree(root: Pid) -> Vec<Pid> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        // A process without other threads, or whose others start none.
        let id = pid.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        all.extend(
            children
                .split_whitespace()
                .filter_map(|child| Pid::from_raw(child.parse().ok()?)),
        );
    }
    all
}

/// Resident memory in bytes.
///
/// # Panics
/// When there is no such process.
pub fn resident(pid: Pid) -> u64 {
    let status = proc(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.expect("a process with memory") << 10
}

/// Resident memory in bytes, shared pages by their share, without the
/// mappings of exactly `except` bytes: the guest's RAM.
pub fn resident_except(pid: Pid, except: u64) -> u64 {
    let mut total = 0;
    let mut counts = true;
    for line in proc(pid, "smaps").lines() {
        let Some((name, rest)) = line.split_once(':') else {
            continue;
        };
        let kilobytes = rest
            .trim()
            .strip_suffix(" kB")
            .and_then(|number| number.parse::<u64>().ok());
        match (name, kilobytes) {
            // The first figure of each mapping.
            ("Size", Some(size)) => counts = size << 10 != except,
            ("Pss", Some(share)) if counts => total += share << 10,
            _ => {}
        }
    }
    total
}

fn proc(pid: Pid, file: &str) -> String {
    let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
