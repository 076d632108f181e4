//! Load averages of containers: the kernel has none but the host's.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::reader::Reader;

/// How often runnable threads are counted: as often as the kernel does
/// (Linux `include/linux/sched/loadavg.h`, `LOAD_FREQ`).
pub const STEP: Duration = Duration::from_secs(5);
/// Over which times it is averaged, in seconds.
const TIMES: [f64; 3] = [60.0, 300.0, 900.0];
/// Who has not asked for so long is no more counted for.
const FORGET: Duration = Duration::from_secs(600);
/// How many containers are counted for, and how many threads of each: a
/// container must not make this a load of its own.
const CONTAINERS: usize = 1024;
const THREADS: usize = 4096;

/// What is counted.
#[derive(Debug, Default)]
pub struct Loads {
    containers: HashMap<PathBuf, Load>,
}

#[derive(Debug)]
struct Load {
    averages: [f64; 3],
    /// When threads were counted.
    counted: Instant,
    /// When it was asked for.
    asked: Instant,
}

/// Threads of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Threads {
    /// Running, or waiting for a disk.
    active: u64,
    all: u64,
}

impl Loads {
    /// `/proc/loadavg` (proc_loadavg(5)) for a container. The first time
    /// begins at nothing, as after a boot.
    pub fn text(&mut self, reader: &Reader) -> String {
        let Some(path) = reader.group.leader_path() else {
            return "0.00 0.00 0.00 0/0 0\n".to_owned();
        };
        let now = Instant::now();
        let threads = count(path);
        if self.containers.len() < CONTAINERS || self.containers.contains_key(path) {
            let load = self.containers.entry(path.to_owned()).or_insert(Load {
                averages: [0.0; 3],
                counted: now,
                asked: now,
            });
            load.asked = now;
        }
        let averages = self.containers.get(path).map(|load| load.averages);
        let [one, five, fifteen] = averages.unwrap_or_default();
        let Threads { active, all } = threads;
        let last = reader.inner;
        format!("{one:.2} {five:.2} {fifteen:.2} {active}/{all} {last}\n")
    }

    /// Whether there is something to count.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// Counts, where it is time.
    pub fn step(&mut self) {
        self.containers
            .retain(|path, load| load.asked.elapsed() < FORGET && path.exists());
        for (path, load) in &mut self.containers {
            let passed = load.counted.elapsed();
            if passed >= STEP {
                load.add(count(path).active, passed);
                load.counted = Instant::now();
            }
        }
    }
}

impl Load {
    /// The kernel's own formula, for any time between two counts.
    fn add(&mut self, active: u64, passed: Duration) {
        for (average, time) in self.averages.iter_mut().zip(TIMES) {
            let decay = (-passed.as_secs_f64() / time).exp();
            *average = *average * decay + active as f64 * (1.0 - decay);
        }
    }
}

/// Counts the threads of a group and of those beneath it.
fn count(path: &Path) -> Threads {
    let mut threads = Threads::default();
    let mut groups = vec![path.to_owned()];
    let mut left = THREADS;
    while let Some(group) = groups.pop() {
        // Empty ones cost as much as a thread.
        let Some(fewer) = left.checked_sub(1) else {
            return threads;
        };
        left = fewer;
        let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for process in list.lines() {
            let tasks = fs::read_dir(format!("/proc/{process}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                if left == 0 {
                    return threads;
                }
                left -= 1;
                threads.all += 1;
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                threads.active += u64::from(is_active(&stat));
            }
        }
        let entries = fs::read_dir(&group).into_iter().flatten().flatten();
        let beneath = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        groups.extend(beneath.map(|entry| entry.path()).take(left));
    }
    threads
}

/// The state of a thread (proc_pid_stat(5)).
fn is_active(stat: &str) -> bool {
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|state| state.starts_with(['R', 'D']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_follow_the_count() {
        let now = Instant::now();
        let mut load = Load {
            averages: [0.0; 3],
            counted: now,
            asked: now,
        };
        for _ in 0..12 {
            load.add(2, STEP);
        }
        // A minute of two: two times 1 - 1/e.
        assert!((load.averages[0] - 1.264).abs() < 0.01, "{load:?}");
        assert!(load.averages[2] < 0.14);
        assert!(is_active("1 (a) R) R 1") && !is_active("1 (R) S 1") && !is_active(""));
    }
}
