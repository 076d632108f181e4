//! The files as a container reads them: the server's own processes, a real
//! group, namespaces by unshare(1).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use croft_isolate::cgroups::{Controllers, Group, Hierarchies};
use croft_procview::{View, mounts_of};
use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, mount_change, move_mount};
use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes longer, on a slow and busy machine either.
const PATIENCE: Duration = Duration::from_secs(600);

/// The program that scripts/build-static makes; tests are in `deps` beside it.
fn program() -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap();
    let program = own.parent()?.parent()?.join("croft-procview");
    program.exists().then_some(program)
}

/// Processes of the server, by what they were started with.
fn processes(part: &str, directory: &Path) -> Vec<Pid> {
    let wanted = format!("croft-procview\0{part}\0{}\0", directory.display());
    let is = |id: &i32| {
        fs::read_to_string(format!("/proc/{id}/cmdline")).is_ok_and(|line| line == wanted)
    };
    let ids = fs::read_dir("/proc").unwrap().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(is).filter_map(Pid::from_raw).collect()
}

/// Ends what the test made.
struct Ending {
    directory: tempfile::TempDir,
    group: PathBuf,
}

impl Drop for Ending {
    fn drop(&mut self) {
        for server in processes("serve", self.directory.path()) {
            let _ = kill_process(server, Signal::KILL);
        }
        let hierarchies = Hierarchies::find().unwrap();
        let group = Group::open(&hierarchies, &self.group).unwrap();
        let _ = group.kill();
        let _ = group.delete();
    }
}

/// Puts the files over the kernel's, in a mount namespace of this thread's
/// own.
fn put(views: &[View]) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let all = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", all).unwrap();
    for view in views {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&view.mount, "", CWD, view.destination, flags).unwrap();
    }
}

/// What the first process of a container that has the group reads.
fn read(group: &Group, file: &str) -> String {
    let enter = |path: &Path| format!("echo $$ > {}/cgroup.procs\n", path.display());
    let enter: String = group.paths().map(enter).collect();
    let script = format!("set -e\n{enter}exec unshare --pid --fork cat {file}");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{file}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_container_sees_its_own_limits() {
    let Some(program) = program() else {
        eprintln!("skipped: no croft-procview beside the tests (scripts/build-static)");
        return;
    };
    if !rustix::process::geteuid().is_root() || fs::File::open("/dev/fuse").is_err() {
        eprintln!("skipped: needs root and /dev/fuse");
        return;
    }
    let hierarchies = Hierarchies::find().unwrap();
    let ending = Ending {
        directory: tempfile::tempdir().unwrap(),
        group: PathBuf::from(format!("croft-test-view-{}", std::process::id())),
    };
    let wanted = Controllers::MEMORY | Controllers::CPU | Controllers::CPUACCT | Controllers::PIDS;
    let group = Group::create(&hierarchies, &ending.group, wanted).unwrap();
    if !group.left_out().is_empty() {
        eprintln!("skipped: {}", group.left_out()[0]);
        return;
    }
    let memory = LinuxMemoryBuilder::default()
        .limit(96_i64 << 20)
        .build()
        .unwrap();
    let cpu = LinuxCpuBuilder::default()
        .quota(50_000_i64)
        .period(100_000_u64)
        .build()
        .unwrap();
    let limits = LinuxResourcesBuilder::default()
        .memory(memory)
        .cpu(cpu)
        .build()
        .unwrap();
    group.apply(&limits).unwrap();
    let directory = ending.directory.path();
    let table = || fs::read_to_string("/proc/self/mounts").unwrap();
    let host = fs::read_to_string("/proc/cpuinfo").unwrap();
    let views = mounts_of(directory, &program).unwrap();
    assert!(
        !table().contains(directory.to_str().unwrap()),
        "{}",
        table()
    );
    put(&views);
    let meminfo = read(&group, "/proc/meminfo");
    assert!(
        meminfo.starts_with("MemTotal:          98304 kB\n"),
        "{meminfo}"
    );
    let cpuinfo = read(&group, "/proc/cpuinfo");
    assert_eq!(cpuinfo.matches("processor\t").count(), 1, "{cpuinfo}");
    assert_eq!(read(&group, "/sys/devices/system/cpu/online"), "0\n");
    let began = Instant::now();
    let uptime = read(&group, "/proc/uptime");
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    // Of a process that was not there before; its start is counted in ticks.
    assert!(seconds < began.elapsed().as_secs_f64() + 1.0, "{uptime}");
    let stat = read(&group, "/proc/stat");
    assert!(
        stat.contains("\ncpu0 ") && !stat.contains("\ncpu1 "),
        "{stat}"
    );
    let load = read(&group, "/proc/loadavg");
    assert_eq!(load.split(' ').count(), 5, "{load}");
    // A process of the host sees the host, through the same files.
    let seen = fs::read_to_string("/proc/cpuinfo").unwrap();
    let count = |text: &str| text.matches("processor\t").count();
    assert_eq!(count(&seen), count(&host));
    // Another worker takes over, and mounts that are there go on.
    // One that has begun is its parent once more until it has become itself.
    let first = |part: &str| {
        let start = Instant::now();
        loop {
            match processes(part, directory).as_slice() {
                [one] => return *one,
                other => assert!(start.elapsed() < PATIENCE, "{part}: {other:?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    kill_process(first("work"), Signal::KILL).unwrap();
    let meminfo = read(&group, "/proc/meminfo");
    assert!(
        meminfo.starts_with("MemTotal:          98304 kB\n"),
        "{meminfo}"
    );
    // The server is killed: who has the files keeps them, and so it is when all
    // that is left is killed too, one after the other.
    for part in ["serve", "work", "hold", "work"] {
        let one = first(part);
        kill_process(one, Signal::KILL).unwrap();
        let start = Instant::now();
        while processes(part, directory).contains(&one) {
            assert!(start.elapsed() < PATIENCE, "{part} does not end");
        }
        // Whoever takes over is there before the next one is killed.
        first("work");
        first("hold");
        let meminfo = read(&group, "/proc/meminfo");
        assert!(
            meminfo.starts_with("MemTotal:          98304 kB\n"),
            "{part}: {meminfo}"
        );
    }
    // Those who come are served by another one.
    let others = mounts_of(directory, &program).unwrap();
    assert_eq!(others.len(), views.len());
    let server = first("serve");
    drop(others);
    // One server for all who ask.
    assert_eq!(mounts_of(directory, &program).unwrap().len(), views.len());
    assert_eq!(first("serve"), server);
}
