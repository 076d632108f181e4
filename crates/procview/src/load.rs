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
/// How long a count is told to whoever asks again.
const FRESH: Duration = Duration::from_secs(1);
/// After a count that was asked for there is none for so many times as long as
/// it took: whoever asks without end has a fifth of a processor for that at
/// most, all together.
const REST: u32 = 4;

/// What is counted.
#[derive(Debug, Default)]
pub struct Loads {
    containers: HashMap<PathBuf, Load>,
    /// Until when nobody has it counted by asking.
    rest: Option<Instant>,
}

#[derive(Debug)]
struct Load {
    averages: [f64; 3],
    /// Threads, and when they were last counted for whoever asks.
    threads: Threads,
    seen: Option<Instant>,
    /// When threads were counted for the averages.
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
        let ([one, five, fifteen], threads) = self.ask(path, Instant::now());
        let Threads { active, all } = threads;
        let last = reader.inner;
        format!("{one:.2} {five:.2} {fifteen:.2} {active}/{all} {last}\n")
    }

    /// The averages of a group, and its threads. One too many has none.
    fn ask(&mut self, path: &Path, now: Instant) -> ([f64; 3], Threads) {
        if self.containers.len() >= CONTAINERS && !self.containers.contains_key(path) {
            return Default::default();
        }
        let load = self
            .containers
            .entry(path.to_owned())
            .or_insert_with(|| Load::new(now));
        load.asked = now;
        let is_old = |seen| now.saturating_duration_since(seen) >= FRESH;
        if load.seen.is_none_or(is_old) && self.rest.is_none_or(|rest| rest <= now) {
            let begun = Instant::now();
            load.threads = count(path);
            load.seen = Some(now);
            self.rest = now.checked_add(begun.elapsed() * (REST + 1));
        }
        (load.averages, load.threads)
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
    fn new(now: Instant) -> Self {
        Load {
            averages: [0.0; 3],
            threads: Threads::default(),
            seen: None,
            counted: now,
            asked: now,
        }
    }

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
        let mut load = Load::new(Instant::now());
        for _ in 0..12 {
            load.add(2, STEP);
        }
        // A minute of two: two times 1 - 1/e.
        assert!((load.averages[0] - 1.264).abs() < 0.01, "{load:?}");
        assert!(load.averages[2] < 0.14);
        assert!(is_active("1 (a) R) R 1") && !is_active("1 (R) S 1") && !is_active(""));
    }

    #[test]
    fn who_asks_without_end_is_told_what_was_counted() {
        let group = tempfile::tempdir().unwrap();
        let list = group.path().join("cgroup.procs");
        fs::write(&list, format!("{}\n", std::process::id())).unwrap();
        let mut loads = Loads::default();
        let now = Instant::now();
        let (_, first) = loads.ask(group.path(), now);
        assert!(first.all > 0);
        fs::write(&list, "").unwrap();
        assert_eq!(loads.ask(group.path(), now + FRESH / 2).1, first);
        // Far beyond any rest.
        let later = now + Duration::from_secs(3600);
        assert_eq!(loads.ask(group.path(), later).1, Threads::default());
        // While there is a rest, for others too.
        loads.rest = Some(later + FRESH);
        fs::write(&list, format!("{}\n", std::process::id())).unwrap();
        let other = tempfile::tempdir().unwrap();
        fs::copy(&list, other.path().join("cgroup.procs")).unwrap();
        assert_eq!(loads.ask(other.path(), later).1, Threads::default());
        assert!(loads.ask(other.path(), later + FRESH).1.all > 0);
    }
}
