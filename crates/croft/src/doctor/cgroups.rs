//! Control groups: which hierarchy, with which controllers.

use croft_isolate::cgroups::{Controllers, Hierarchies, Hierarchy, Version};

use super::finding::{Finding, Part};

/// Controllers that limits of instances want.
const WANTED: Controllers = Controllers::CPU
    .union(Controllers::CPUSET)
    .union(Controllers::IO)
    .union(Controllers::MEMORY)
    .union(Controllers::PIDS);

const PART: Part = Part::ControlGroups;

/// Looks at this host.
pub fn findings() -> Vec<Finding> {
    match Hierarchies::find() {
        Ok(hierarchies) => judge(&hierarchies),
        Err(error) => vec![Finding::missing(
            PART,
            "hierarchy",
            error.to_string(),
            "mount -t proc proc /proc",
        )],
    }
}

fn judge(hierarchies: &Hierarchies) -> Vec<Finding> {
    const UNIFY: &str = "pressure is told of, and limits inside of containers are safe, in version 2 alone: boot with systemd.unified_cgroup_hierarchy=1";
    let old = |one: &&Hierarchy| one.version == Version::One;
    let old: Controllers = hierarchies
        .iter()
        .filter(old)
        .map(|one| one.controllers)
        .collect();
    let old_words = old.difference(Controllers::SYSTEMD);
    let place = hierarchies.unified().map(|one| one.mount.display());
    let hierarchy = match place {
        None if old.is_empty() => {
            return vec![Finding::missing(
                PART,
                "hierarchy",
                "none is mounted",
                "mount -t cgroup2 none /sys/fs/cgroup",
            )];
        }
        None => Finding::limited(
            PART,
            "hierarchy",
            format!("version 1 only: {old_words}"),
            UNIFY,
        ),
        Some(place) if old.is_empty() => {
            Finding::ok(PART, "hierarchy", format!("version 2 at {place}"))
        }
        Some(place) => Finding::limited(
            PART,
            "hierarchy",
            format!("hybrid: version 2 at {place}, version 1 has {old_words}"),
            UNIFY,
        ),
    };
    let all: Controllers = hierarchies.iter().map(|one| one.controllers).collect();
    let (there, missing) = (WANTED.intersection(all), WANTED.difference(all));
    let controllers = if missing.is_empty() {
        Finding::ok(PART, "controllers", there.to_string())
    } else {
        let there = match there.is_empty() {
            true => "none".to_owned(),
            false => there.to_string(),
        };
        Finding::limited(
            PART,
            "controllers",
            format!("{there}; the host lacks {missing}"),
            "delegate them to this control group, or boot without cgroup_disable=",
        )
    };
    vec![hierarchy, controllers]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    fn of(mounts: &str, controllers: &str) -> Vec<Finding> {
        judge(&Hierarchies::parse(mounts, "0::/\n", |_| {
            controllers.to_owned()
        }))
    }

    const UNIFIED: &str = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
    const OLD: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";

    #[test]
    fn version_2() {
        let found = of(UNIFIED, "cpuset cpu io memory hugetlb pids\n");
        assert!(found.iter().all(|one| one.state == State::Ok), "{found:?}");
        assert!(found[0].text.contains("/sys/fs/cgroup"));
        let found = of(UNIFIED, "cpu memory pids\n");
        assert_eq!(found[1].state, State::Limited);
        assert!(found[1].text.ends_with("lacks cpuset io"), "{found:?}");
    }

    #[test]
    fn hybrid_and_version_1() {
        let found = of(OLD, "");
        assert!(found[0].text.ends_with("only: memory"), "{found:?}");
        assert!(
            found[1].text.starts_with("memory; the host lacks cpu"),
            "{found:?}"
        );
        let found = of(&format!("{OLD}{UNIFIED}"), "cpu cpuset io pids");
        assert!(found[0].text.starts_with("hybrid"), "{found:?}");
        assert_eq!(found[1].state, State::Ok, "{found:?}");
    }

    #[test]
    fn none() {
        for mounts in ["", "\n \n", "a b\n", "cgroup2\n"] {
            assert_eq!(of(mounts, "")[0].state, State::Missing, "{mounts:?}");
        }
    }
}
