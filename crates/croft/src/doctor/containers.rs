//! Containers: whether they can run, and what they would have to do without.

use std::fs;
use std::path::Path;

use croft_host::store::container_ids;
use rustix::process::geteuid;

use super::finding::{Finding, Part, State};

const PART: Part = Part::Containers;
/// What maps a user's subordinate ids (newuidmap(1)).
const MAPPERS: [&str; 2] = ["newuidmap", "newgidmap"];

/// What is needed for all, for some, and for comfort.
pub fn findings(others: &[Finding]) -> Vec<Finding> {
    let root = geteuid().is_root();
    let mut found = vec![
        file_system(&read("/proc/filesystems")),
        filter(&read("/proc/sys/kernel/seccomp/actions_avail")),
        ids(root),
        view(root, Path::new("/dev/fuse").exists()),
    ];
    let user = others
        .iter()
        .find(|one| one.part == Part::Namespaces && one.name == "user");
    if let Some(user) = user.filter(|user| user.state == State::Missing) {
        found.push(Finding::missing(
            PART,
            "namespaces",
            "containers have user namespaces, and this user can make none",
            user.remedy.clone().unwrap_or_default(),
        ));
    }
    found
}

/// Whether containers can run with what was found.
pub fn can_run(findings: &[Finding]) -> bool {
    let mut own = findings.iter().filter(|one| one.part == PART);
    own.all(|one| one.state != State::Missing)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn file_system(known: &str) -> Finding {
    let there = known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"));
    if there {
        return Finding::ok(PART, "layers", "the kernel has overlay file systems");
    }
    Finding::missing(
        PART,
        "layers",
        "the kernel knows no overlay file system now",
        "as root: modprobe overlay",
    )
}

fn filter(actions: &str) -> Finding {
    if actions.split_whitespace().any(|action| action == "errno") {
        return Finding::ok(PART, "system calls", "the kernel can filter them");
    }
    Finding::missing(
        PART,
        "system calls",
        "the kernel cannot filter them (seccomp)",
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )
}

fn ids(root: bool) -> Finding {
    let ranges = match container_ids() {
        Ok(ranges) => ranges,
        Err(error) => {
            return Finding::missing(PART, "ids", "no ids of their own", error.to_string());
        }
    };
    let count: u64 = ranges
        .iter()
        .map(|range| u64::from(range.count) / 65_536)
        .sum();
    let text = format!("ids of their own for {count} containers");
    let lacks = |name: &&&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        !std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
    };
    match MAPPERS.iter().find(lacks) {
        Some(program) if !root => Finding::missing(
            PART,
            "ids",
            format!("{text}, and no {program} to map them"),
            "install newuidmap and newgidmap (on Debian: uidmap)",
        ),
        _ if !root && count < 2 => Finding::limited(
            PART,
            "ids",
            format!("{text}; others would share them"),
            "as root: give more in /etc/subuid and /etc/subgid",
        ),
        _ => Finding::ok(PART, "ids", text),
    }
}

fn view(root: bool, fuse: bool) -> Finding {
    if root && fuse {
        return Finding::ok(PART, "/proc", "containers see their own limits in it");
    }
    let remedy = if root {
        "as root: modprobe fuse; or install lxcfs"
    } else {
        "run as root, where programs must know their container's memory from /proc"
    };
    Finding::limited(
        PART,
        "/proc",
        "containers see the host's memory and processors in it",
        remedy,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_a_remedy() {
        assert_eq!(
            file_system("nodev\tproc\nnodev\toverlay\n").state,
            State::Ok
        );
        let missing = file_system("nodev\tproc\n");
        assert_eq!(missing.state, State::Missing);
        assert!(missing.remedy.clone().unwrap().contains("modprobe overlay"));
        assert_eq!(filter("kill_process errno allow").state, State::Ok);
        assert!(!can_run(&[filter("")]));
        // Without it there is less, and it is enough.
        assert!(can_run(&[view(true, false), filter("errno")]));
        assert!(!can_run(&[missing]));
    }
}
