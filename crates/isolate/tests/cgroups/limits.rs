//! Limits, stopping, ending, events, counts.

use std::process::Command;
use std::time::{Duration, Instant};

use croft_isolate::cgroups::{Controllers, Error, Event, Group, Hierarchies};
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::group::Temporary;

fn device(allow: bool, kind: LinuxDeviceType, numbers: (i64, i64)) -> LinuxDeviceCgroup {
    let builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind);
    let builder = builder.major(numbers.0).minor(numbers.1).access("rwm");
    builder.build().unwrap()
}

#[test]
fn limits_are_set_and_changed() {
    let wanted = Controllers::CPU | Controllers::MEMORY | Controllers::PIDS;
    let Some(one) = Temporary::new("limits", wanted) else {
        return;
    };
    let set = |memory: i64, quota: i64, period: u64| {
        let memory = LinuxMemoryBuilder::default()
            .limit(memory)
            .reservation(1_i64 << 20);
        let cpu = LinuxCpuBuilder::default()
            .quota(quota)
            .period(period)
            .shares(1024_u64);
        let resources = LinuxResourcesBuilder::default()
            .memory(memory.build().unwrap())
            .cpu(cpu.build().unwrap())
            .pids(LinuxPidsBuilder::default().limit(77).build().unwrap());
        one.apply(&resources.build().unwrap());
    };
    for (memory, quota, period) in [
        (64 << 20, 50_000, 100_000),
        (32 << 20, 5_000, 10_000),
        (128 << 20, 300_000, 200_000),
    ] {
        set(memory, quota, period);
        let files = ["memory.max", "memory.limit_in_bytes"];
        assert_eq!(one.read(Controllers::MEMORY, files), memory.to_string());
        let text = one.read(Controllers::CPU, ["cpu.max", "cpu.cfs_quota_us"]);
        assert!(text.starts_with(&quota.to_string()), "{text}");
    }
    assert_eq!(one.read(Controllers::PIDS, ["pids.max", ""]), "77");
    let shares = one.read(Controllers::CPU, ["cpu.weight", "cpu.shares"]);
    assert!(["100", "1024"].contains(&shares.as_str()), "{shares}");
    let wrong = LinuxCpuBuilder::default()
        .cpus("0-4095".to_owned())
        .build()
        .unwrap();
    let wrong = LinuxResourcesBuilder::default().cpu(wrong).build().unwrap();
    if let Ok(left_out) = one.group.apply(&wrong) {
        assert_eq!(left_out[0].what, "cpuset");
    }
}

#[test]
fn processes_are_stopped_listed_and_ended() {
    let Some(one) = Temporary::new("kill", Controllers::FREEZER) else {
        return;
    };
    let mut child = one.spawn("sh", &["-c", "sleep 1000 & sleep 1000 & wait"]);
    let deadline = Instant::now() + Duration::from_secs(120);
    while one.group.processes().unwrap().len() < 3 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    one.group.freeze().unwrap();
    assert!(one.group.is_frozen().unwrap());
    one.group.thaw().unwrap();
    assert!(!one.group.is_frozen().unwrap());
    assert!(matches!(one.group.delete(), Err(Error::Remove { .. })));
    one.group.freeze().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| child.wait().unwrap());
        one.group.kill().unwrap();
    });
    assert!(one.group.processes().unwrap().is_empty());
    one.group.delete().unwrap();
}

#[test]
fn devices_are_denied_and_allowed() {
    let Some(one) = Temporary::new("devices", Controllers::DEVICES) else {
        return;
    };
    let reads = |path: &str| {
        let status = one.spawn("head", &["-c1", path]).wait().unwrap();
        status.success()
    };
    let apply = |list: Vec<LinuxDeviceCgroup>| {
        let resources = LinuxResourcesBuilder::default()
            .devices(list)
            .build()
            .unwrap();
        one.group.apply(&resources).unwrap()
    };
    use LinuxDeviceType::{A, C};
    // `Stdio::null` is a descriptor that was opened outside.
    let left_out = apply(vec![device(false, A, (-1, -1)), device(true, C, (1, 5))]);
    if !left_out.is_empty() {
        eprintln!("skipped: {}", left_out[0]);
        return;
    }
    assert!(reads("/dev/zero") && !reads("/dev/urandom"));
    apply(vec![device(false, A, (-1, -1)), device(true, C, (1, 9))]);
    assert!(!reads("/dev/zero") && reads("/dev/urandom"));
    apply(vec![device(true, A, (-1, -1)), device(false, C, (1, 9))]);
    assert!(reads("/dev/zero") && !reads("/dev/urandom"));
}

#[test]
fn an_end_for_want_of_memory_is_an_event_and_counted() {
    let Some(one) = Temporary::new("oom", Controllers::MEMORY) else {
        return;
    };
    let memory = LinuxMemoryBuilder::default().limit(24_i64 << 20);
    let memory = memory.build().unwrap();
    one.apply(
        &LinuxResourcesBuilder::default()
            .memory(memory)
            .build()
            .unwrap(),
    );
    let mut events = one.group.events().unwrap();
    assert_eq!(events.take().unwrap(), []);
    // tail keeps the last line, which never ends.
    let mut child = one.spawn("tail", &["-n1", "/dev/zero"]);
    let mut found = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !found.contains(&Event::OomKill(1)) && Instant::now() < deadline {
        let mut polled = [PollFd::new(&events, PollFlags::IN)];
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        poll(&mut polled, Some(&second)).unwrap();
        found.extend(events.take().unwrap());
    }
    let status = child.wait().unwrap();
    assert!(found.contains(&Event::OomKill(1)), "{found:?}, {status}");
    let stats = one.group.stats().unwrap();
    assert_eq!(stats.memory.oom_kills, 1);
    assert_eq!(stats.memory.limit, Some(24 << 20));
    assert!(stats.memory.limit_met > 0);
}

#[test]
fn what_was_taken_is_counted() {
    let wanted = Controllers::CPUACCT | Controllers::PIDS;
    let Some(one) = Temporary::new("stats", wanted) else {
        return;
    };
    let pids = LinuxPidsBuilder::default().limit(4).build().unwrap();
    one.apply(&LinuxResourcesBuilder::default().pids(pids).build().unwrap());
    // A fifth process is one too many.
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; for i in 1 2 3 4 5; do sleep 1000 & done; wait";
    let status = one.spawn("sh", &["-c", script]).wait().unwrap();
    assert!(!status.success());
    let stats = one.group.stats().unwrap();
    assert!(stats.cpu.usage > 1_000, "{:?}", stats.cpu);
    assert_eq!(stats.pids.limit, Some(4));
}

#[test]
fn a_group_in_use_is_not_taken_over() {
    let Some(one) = Temporary::new("use", Controllers::PIDS) else {
        return;
    };
    let hierarchies = Hierarchies::find().unwrap();
    // An empty one is replaced.
    let again = Group::create(&hierarchies, &one.path, Controllers::PIDS).unwrap();
    assert!(!again.is_nowhere());
    let one = Temporary {
        group: again,
        path: one.path.clone(),
    };
    let mut child = one.spawn("sleep", &["1000"]);
    let error = Group::create(&hierarchies, &one.path, Controllers::PIDS).unwrap_err();
    assert!(matches!(error, Error::InUse(_)), "{error}");
    std::thread::scope(|scope| {
        scope.spawn(|| child.wait().unwrap());
        one.group.kill().unwrap();
    });
}

#[test]
fn a_group_with_limits_inside_takes_programs_beneath_it() {
    let Some(one) = Temporary::new("program", Controllers::FREEZER) else {
        return;
    };
    let hierarchies = Hierarchies::find().unwrap();
    let Some(unified) = hierarchies
        .unified()
        .filter(|one| !one.controllers.is_empty())
    else {
        eprintln!("skipped: version 2 has no controllers here");
        return;
    };
    // What systemd does in a container: a controller for groups beneath it.
    let inner = Group::create(&hierarchies, &one.path.join("service"), unified.controllers);
    assert!(inner.unwrap().left_out().is_empty());
    let directory = unified.mount.join(&one.path);
    let procs = std::fs::write(
        directory.join("cgroup.procs"),
        std::process::id().to_string(),
    );
    assert!(procs.is_err());
    let group = one.group.for_program().unwrap();
    let program = Temporary {
        group,
        path: one.path.join("croft.exec"),
    };
    let mut child = program.spawn("sleep", &["1000"]);
    assert_eq!(one.group.processes().unwrap().len(), 1);
    one.group.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_empty_group_that_is_taken_keeps_its_limits() {
    let Some(one) = Temporary::new("taken", Controllers::PIDS) else {
        return;
    };
    let pids = LinuxPidsBuilder::default().limit(33).build().unwrap();
    one.apply(&LinuxResourcesBuilder::default().pids(pids).build().unwrap());
    let hierarchies = Hierarchies::find().unwrap();
    Group::take(&hierarchies, &one.path, Controllers::PIDS).unwrap();
    assert_eq!(one.read(Controllers::PIDS, ["pids.max", ""]), "33");
    let mut child = one.spawn("sleep", &["1000"]);
    let error = Group::take(&hierarchies, &one.path, Controllers::PIDS).unwrap_err();
    assert!(matches!(error, Error::InUse(_)), "{error}");
    std::thread::scope(|scope| {
        scope.spawn(|| child.wait().unwrap());
        one.group.kill().unwrap();
    });
}

/// What a container made beneath its group goes with it, however deep.
#[test]
fn groups_deeper_than_a_path_go_too() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    const DEPTH: usize = 2500;
    let Some(one) = Temporary::new("deep", Controllers::PIDS) else {
        return;
    };
    let top = one.group.path_of(Controllers::PIDS).unwrap().to_owned();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = openat(CWD, &top, flags, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        mkdirat(&here, "aa", Mode::RWXU).unwrap();
        here = openat(&here, "aa", flags, Mode::empty()).unwrap();
    }
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let procs = openat(&here, "cgroup.procs", OFlags::WRONLY, Mode::empty()).unwrap();
    rustix::io::write(procs, child.id().to_string().as_bytes()).unwrap();
    drop(here);
    assert_eq!(one.group.processes().unwrap().len(), 1);
    one.group.kill().unwrap();
    child.wait().unwrap();
    one.group.delete().unwrap();
    assert!(!top.exists());
}
