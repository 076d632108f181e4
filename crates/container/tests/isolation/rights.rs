//! What a container may not do, whoever it is inside.

use std::process::{Child, Command, Stdio};

use crate::bundle::{Bundle, assert_refused, possible};

/// A process of the host, as good as one of another container.
struct Other(Child);

impl Other {
    fn new() -> Self {
        // It ends with whoever has the other end.
        let mut command = Command::new("cat");
        Other(command.stdin(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn others_are_not_seen_or_signalled() {
    if !possible() {
        return;
    }
    let other = Other::new();
    let signal = format!("signal={}", other.0.id());
    for bundle in [Bundle::new, Bundle::mapped] {
        let outcomes = bundle(&["processes", &signal]).outcomes();
        assert_eq!(outcomes[0].1, "1", "{outcomes:?}");
        assert!(outcomes[1].1.starts_with("No such process"), "{outcomes:?}");
    }
    let mut bundle = Bundle::new(&[&signal]);
    let list = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|one| one["type"] != "pid");
    assert_eq!(bundle.outcomes()[0].1, "done");
}

#[test]
fn nothing_is_mounted_or_unmounted() {
    if !possible() {
        return;
    }
    let attempts = [
        "mount",
        "new-mount",
        "cgroup-mount",
        "remount=/sys",
        "unmount=/proc/kcore",
        "unshare",
    ];
    for bundle in [Bundle::new, Bundle::mapped] {
        assert_refused(&bundle(&attempts), attempts.len());
    }
    let attempts = [
        "mount",
        "new-mount",
        "remount=/sys",
        "unmount=/tmp",
        "unshare",
    ];
    for (attempt, outcome) in Bundle::new(&attempts).unprotected().outcomes() {
        assert_eq!(outcome, "done", "{attempt}");
    }
}

#[test]
fn modules_and_the_kernels_settings_are_the_hosts() {
    if !possible() {
        return;
    }
    let attempts = [
        "module",
        "write=/proc/sys/kernel/core_pattern",
        "write=/proc/sys/vm/swappiness",
        "write=/proc/sysrq-trigger",
        "write=/sys/kernel/mm/transparent_hugepage/enabled",
        "write=/proc/irq/default_smp_affinity",
    ];
    for bundle in [Bundle::new, Bundle::mapped] {
        assert_refused(&bundle(&attempts), attempts.len());
    }
    let bundle = Bundle::new(&["write=/proc/sys/vm/swappiness"]).unprotected();
    assert_eq!(bundle.outcomes()[0].1, "done");
}

#[test]
fn masked_files_show_nothing() {
    if !possible() {
        return;
    }
    let outcomes = Bundle::new(&["read=/proc/timer_list", "read=/proc/keys"]).outcomes();
    for (attempt, outcome) in outcomes {
        assert!(
            outcome == "0 bytes" || outcome.contains("No such file"),
            "{attempt}: {outcome}"
        );
    }
    let bundle = Bundle::new(&["read=/proc/timer_list"]).unprotected();
    let outcomes = bundle.outcomes();
    assert_ne!(outcomes[0].1, "0 bytes", "{outcomes:?}");
}

#[test]
fn groups_are_not_written() {
    if !possible() {
        return;
    }
    // The mount is of the container's own group; both forms of it.
    let attempts = [
        "group=/sys/fs/cgroup/mine",
        "group=/sys/fs/cgroup/memory/mine",
        "write=/sys/fs/cgroup/cgroup.procs",
        "write=/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "write=/sys/fs/cgroup/memory.max",
        "write=/sys/fs/cgroup/devices/devices.allow",
    ];
    for make in [Bundle::new, Bundle::mapped] {
        let mut bundle = make(&attempts);
        bundle.group = Some(format!("groups-{}", std::process::id()));
        assert_refused(&bundle, attempts.len());
        // Files of either version are there, and refused for what they are.
        let outcomes = bundle.outcomes();
        let refused = outcomes.iter().filter(|(_, one)| !one.contains("No such"));
        assert!(refused.count() >= 2, "{outcomes:?}");
    }
}
