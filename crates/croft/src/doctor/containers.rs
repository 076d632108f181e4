//! Containers: whether they can run, and what they would have to do without.

use std::fs;
use std::path::Path;

use croft_host::store::{IdsError, container_ids};
use rustix::process::geteuid;

use super::finding::{Finding, Part, State};

const PART: Part = Part::Containers;
/// How many inotify instances a user's programs can have, its containers'
/// among them.
const WATCHES: &str = "/proc/sys/fs/inotify/max_user_instances";
/// So many of them a system of Debian has when it is up.
const WATCHES_EACH: u64 = 5;
/// Enough for so many systems is enough.
const SYSTEMS: u64 = 100;
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
    found.extend(watches(&read(WATCHES)));
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
        Err(error @ IdsError::NotGiven { .. }) => {
            let text = "no ids of their own: those of one program have no users but root, who is \
                        this user, and there are none of whole systems";
            return Finding::limited(PART, "ids", text, error.to_string());
        }
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

/// All containers of a user share the user's, whatever ids are theirs. Without
/// inotify there is nothing to say.
fn watches(limit: &str) -> Option<Finding> {
    let limit: u64 = limit.trim().parse().ok()?;
    let systems = limit / WATCHES_EACH;
    let text = format!(
        "{limit} inotify instances for all programs of a user and its containers: some {systems} \
         systems at once"
    );
    Some(if systems >= SYSTEMS {
        Finding::ok(PART, "watches", text)
    } else {
        Finding::limited(
            PART,
            "watches",
            text,
            "for more of them, as root: sysctl fs.inotify.max_user_instances=1024, and the same \
             in /etc/sysctl.d",
        )
    })
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
        assert_eq!(watches("1024\n").unwrap().state, State::Ok);
        let few = watches("128\n").unwrap();
        assert_eq!(few.state, State::Limited);
        assert!(few.remedy.clone().unwrap().contains("max_user_instances"));
        assert!(watches("").is_none());
        // Without it there is less, and it is enough.
        assert!(can_run(&[view(true, false), filter("errno")]));
        assert!(!can_run(&[missing]));
    }
}
