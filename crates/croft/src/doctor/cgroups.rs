//! Control groups: which hierarchy, with which controllers.

use std::fs;

use super::finding::{Finding, Part};

/// Controllers that limits of instances want.
const WANTED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Looks at this host.
pub fn findings() -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    judge(&Mounted::new(&mounts), |path| {
        fs::read_to_string(path).unwrap_or_default()
    })
}

/// Where control groups are mounted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mounted {
    /// The unified hierarchy.
    unified: Option<String>,
    /// Controllers of version 1.
    old: Vec<String>,
}

impl Mounted {
    /// Reads a list of mounts (fstab(5)).
    fn new(mounts: &str) -> Self {
        let mut found = Mounted::default();
        for line in mounts.lines() {
            let mut words = line.split(' ').skip(1);
            let (Some(place), Some(kind), Some(options)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            match kind {
                "cgroup2" => found.unified = found.unified.or_else(|| Some(place.to_owned())),
                "cgroup" => found.old.extend(
                    options
                        .split(',')
                        .filter(|option| WANTED.contains(option) || *option == "blkio")
                        .map(str::to_owned),
                ),
                _ => {}
            }
        }
        found
    }
}

fn judge(mounted: &Mounted, read: impl Fn(&str) -> String) -> Vec<Finding> {
    const PART: Part = Part::ControlGroups;
    const UNIFY: &str = "limits want version 2 alone: boot with systemd.unified_cgroup_hierarchy=1";
    let old = mounted.old.join(" ");
    let Some(place) = &mounted.unified else {
        return vec![if mounted.old.is_empty() {
            Finding::missing(
                PART,
                "hierarchy",
                "none is mounted",
                "mount -t cgroup2 none /sys/fs/cgroup",
            )
        } else {
            Finding::limited(PART, "hierarchy", format!("version 1 only: {old}"), UNIFY)
        }];
    };
    let hierarchy = if mounted.old.is_empty() {
        Finding::ok(PART, "hierarchy", format!("version 2 at {place}"))
    } else {
        Finding::limited(
            PART,
            "hierarchy",
            format!("hybrid: version 2 at {place}, version 1 has {old}"),
            UNIFY,
        )
    };
    let listed = read(&format!("{place}/cgroup.controllers"));
    let (there, missing): (Vec<&str>, Vec<&str>) = WANTED
        .iter()
        .partition(|wanted| listed.split_whitespace().any(|word| word == **wanted));
    let controllers = if missing.is_empty() {
        Finding::ok(PART, "controllers", there.join(" "))
    } else {
        let there = if there.is_empty() {
            "none".to_owned()
        } else {
            there.join(" ")
        };
        Finding::limited(
            PART,
            "controllers",
            format!("{there}; version 2 lacks {}", missing.join(" ")),
            if mounted.old.is_empty() {
                "delegate them to this control group, or boot without cgroup_disable="
            } else {
                "version 1 holds them"
            },
        )
    };
    vec![hierarchy, controllers]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    fn of(mounts: &str, controllers: &str) -> Vec<Finding> {
        judge(&Mounted::new(mounts), |path| {
            assert!(path.ends_with("/cgroup.controllers"), "{path}");
            controllers.to_owned()
        })
    }

    #[test]
    fn version_2() {
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let found = of(mounts, "cpuset cpu io memory hugetlb pids\n");
        assert!(found.iter().all(|one| one.state == State::Ok), "{found:?}");
        assert!(found[0].text.contains("/sys/fs/cgroup"));
        let found = of(mounts, "cpu memory pids\n");
        assert_eq!(found[1].state, State::Limited);
        assert!(found[1].text.ends_with("lacks cpuset io"), "{found:?}");
    }

    #[test]
    fn hybrid_and_version_1() {
        let old = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                   cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n";
        let found = of(old, "");
        assert_eq!(found.len(), 1);
        assert!(found[0].text.ends_with("only: memory"), "{found:?}");
        let both = format!("{old}cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n");
        let found = of(&both, "");
        assert!(found[0].text.starts_with("hybrid"), "{found:?}");
        assert!(found[1].text.starts_with("none"), "{found:?}");
    }

    #[test]
    fn none() {
        for mounts in ["", "\n \n", "a b\n", "cgroup2\n"] {
            assert_eq!(of(mounts, "")[0].state, State::Missing, "{mounts:?}");
        }
    }
}
