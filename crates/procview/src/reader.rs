//! Who reads, and what bounds them.

use std::fs;
use std::time::Duration;

use croft_isolate::cgroups::{Bounds, Group, Hierarchies, Stats};
use rustix::process::Pid;

/// Ticks of a second in `/proc` (`USER_HZ` is 100 on x86).
pub const TICKS: u64 = 100;
/// How far up a chain of parents is followed.
const DEEPEST: usize = 128;
/// How many processes of a group are looked at for an init.
const MOST: usize = 4096;

/// A container that somebody in it reads from.
#[derive(Debug)]
pub struct Reader {
    /// Its control group.
    pub group: Group,
    /// What it may take.
    pub bounds: Bounds,
    /// What it has taken.
    pub stats: Stats,
    /// For how long its init has been there.
    pub age: Duration,
    /// The reader's own id in there.
    pub inner: u32,
}

/// What `/proc/PID/status` says of namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Status {
    parent: u32,
    /// Ids in each process namespace, from the outermost on.
    ids: Vec<u32>,
}

impl Status {
    fn of(process: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{process}/status")).ok()?)
    }

    /// Fields `PPid` and `NSpid` (proc_pid_status(5)).
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let ids = field("NSpid:")?.split_whitespace();
        let ids: Vec<u32> = ids.map_while(|id| id.parse().ok()).collect();
        Some(Status {
            parent: field("PPid:")?.trim().parse().ok()?,
            ids,
        })
    }

    fn is_init(&self, depth: usize) -> bool {
        self.ids.len() == depth && self.ids.last() == Some(&1)
    }
}

impl Reader {
    /// The container of a thread; `None` for one of the host's own processes,
    /// and for one that is gone.
    pub fn of(thread: u32, hierarchies: &Hierarchies) -> Option<Self> {
        let status = Status::of(thread)?;
        let depth = status.ids.len();
        let inner = *status.ids.last()?;
        if depth < 2 {
            return None;
        }
        let init = init_above(thread, status, depth)
            .or_else(|| init_beside(thread, depth, hierarchies))?;
        let group = Group::of_process(hierarchies, pid(init)?).ok()?.of_init();
        Some(Reader {
            bounds: group.bounds().ok()?,
            stats: group.stats().ok()?,
            age: age(init)?,
            group,
            inner,
        })
    }
}

fn pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

/// The init that a process descends from.
fn init_above(thread: u32, status: Status, depth: usize) -> Option<u32> {
    let (mut process, mut status) = (thread, status);
    for _ in 0..DEEPEST {
        if status.is_init(depth) {
            return Some(process);
        }
        if status.ids.len() < depth {
            return None;
        }
        process = status.parent;
        status = Status::of(process)?;
    }
    None
}

/// The init of a process that was put into the container from outside: it is
/// in the same group or in one near it.
fn init_beside(thread: u32, depth: usize, hierarchies: &Hierarchies) -> Option<u32> {
    let group = Group::of_process(hierarchies, pid(thread)?).ok()?;
    let path = group.leader_path()?;
    for above in path.ancestors().take(8) {
        for group in [above.to_path_buf(), above.join("init.scope")] {
            let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            let ids = list.lines().take(MOST).filter_map(|id| id.parse().ok());
            let init = |id: &u32| Status::of(*id).is_some_and(|status| status.is_init(depth));
            if let Some(id) = ids.into_iter().find(init) {
                return Some(id);
            }
        }
    }
    None
}

/// Since when a process has been there.
fn age(process: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let start = started(&stat)?;
    let up = uptime(&fs::read_to_string("/proc/uptime").ok()?)?;
    let start = Duration::from_millis(start.saturating_mul(1000 / TICKS));
    Some(up.saturating_sub(start))
}

/// Field `starttime`, in ticks (proc_pid_stat(5)): the name before it can
/// have anything in it.
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The first number of `/proc/uptime`.
pub fn uptime(text: &str) -> Option<Duration> {
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    let hundredths: u64 = hundredths.get(..2)?.parse().ok()?;
    let seconds: u64 = seconds.parse().ok()?;
    Some(Duration::from_secs(seconds) + Duration::from_millis(hundredths * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_understood() {
        let text = "Name:\tsh\nPPid:\t7\nNSpid:\t4711\t1\n";
        let status = Status::parse(text).unwrap();
        assert_eq!(status.parent, 7);
        assert!(status.is_init(2) && !status.is_init(1));
        assert_eq!(Status::parse("Name:\tsh\n"), None);
        let stat = "1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 1 2";
        assert_eq!(started(stat), Some(99));
        assert_eq!(uptime("12.34 5.6\n"), Some(Duration::from_millis(12_340)));
    }
}
