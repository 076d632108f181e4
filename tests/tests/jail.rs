//! The jail around a real machine.
//!
//! What each role's thread is refused is tested where the jail is made, in
//! `crates/isolate/tests/jail.rs`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT};
use croft_tests::{END, Stage};
use rustix::process::{Pid, geteuid};

/// A line of a `status` file (proc_pid_status(5)).
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
        .to_owned()
}

fn proc(pid: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()))
}

/// The names and `status` files of all threads that have not ended meanwhile.
fn threads(pid: Pid) -> Vec<(String, String)> {
    fs::read_dir(proc(pid).join("task"))
        .expect("threads")
        .flatten()
        .filter_map(|task| {
            let read = |file| fs::read_to_string(task.path().join(file)).ok();
            Some((read("comm")?.trim().to_owned(), read("status")?))
        })
        .collect()
}

/// What is missing of the machine's threads, or of what each of them is in: one
/// that has only begun is not there yet.
fn missing(pid: Pid) -> Option<String> {
    let threads = threads(pid);
    for name in [
        "maker",
        "cpu0",
        "timers",
        "console",
        "console-in",
        "control",
        "gdb",
        "counts",
    ] {
        if !threads.iter().any(|(one, _)| one == name) {
            return Some(format!("no {name}"));
        }
    }
    threads.iter().find_map(|(name, status)| {
        // The answers', setup's, and the owner's or the maker's; of all
        // threads that the maker makes their own besides.
        let least = match name.as_str() {
            "croft-vmm" | "maker" => 3,
            _ => 4,
        };
        let filters: u32 = field(status, "Seccomp_filters:").parse().expect("a number");
        let right = field(status, "Seccomp:") == "2"
            && field(status, "NoNewPrivs:") == "1"
            && field(status, "CapEff:") == "0000000000000000"
            && filters >= least;
        (!right).then(|| format!("{name}: {status}"))
    })
}

#[test]
fn every_thread_of_a_machine_is_in_it() {
    let stage = Stage::new();
    let disk = stage.file("disk", &vec![0; 1 << 20]);
    let mut command = stage.linux(Kernel::Cloud, Act::Shell);
    command
        .stdin(Stdio::piped())
        .args(["--gdb", "gdb", "--stats"]);
    command.arg("--disk").arg(disk);
    let mut machine = stage.start(command);
    machine.expect(PROMPT);
    let pid = stage.wait_for("croft-vmm");
    let deadline = Instant::now() + END;
    while let Some(missing) = missing(pid) {
        assert!(Instant::now() < deadline, "{missing}");
        thread::sleep(Duration::from_millis(10));
    }
    if geteuid().is_root() {
        let maps = fs::read_to_string(proc(pid).join("maps")).expect("mappings");
        let rights = maps.lines().filter_map(|line| line.split(' ').nth(1));
        let both = |rights: &str| rights.contains('w') && rights.contains('x');
        assert!(!rights.clone().any(both), "{maps}");
        assert!(maps.contains("croft-code"), "the machine translates");
        let mut root = fs::read_dir(proc(pid).join("root")).expect("a root");
        let entry = root
            .next()
            .map(|entry| entry.map(|entry| entry.file_name()));
        assert!(entry.is_none(), "its root has {entry:?}");
    } else {
        println!("skipped in part: who is not root cannot look into it");
    }
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(!ended.stderr.contains("the jail has no "), "{ended:#?}");
}

/// A debugger of the host's makes the real process call what it may not.
#[test]
fn a_refused_call_ends_the_machine_and_is_named() {
    let has_gdb = Command::new("gdb").arg("--version").output().is_ok();
    if !geteuid().is_root() || !has_gdb {
        println!("skipped: needs root and gdb");
        return;
    }
    // execve, connect and ptrace (asm/unistd_64.h).
    for (number, name) in [(59, "execve"), (42, "connect"), (101, "ptrace")] {
        let stage = Stage::new();
        let command = stage.linux(Kernel::Cloud, Act::Shell);
        let mut machine = stage.start(command);
        machine.expect(PROMPT);
        let pid = stage.wait_for("croft-vmm").as_raw_nonzero().to_string();
        // The main thread waits in the kernel: RIP is behind its SYSCALL,
        // which is two bytes long.
        let output = Command::new("gdb")
            .args(["-nx", "-batch", "-iex", "set sysroot /nonexistent"])
            .args(["-iex", "set auto-load off", "-p", &pid])
            .args(["-ex", "set $orig_rax = -1"])
            .args(["-ex", &format!("set $rax = {number}")])
            .args(["-ex", "set $rip = $rip - 2", "-ex", "detach"])
            .stdin(Stdio::null())
            .output()
            .expect("gdb");
        let ended = machine.wait_at_most(END);
        let expected = format!("croft-vmm was ended by its jail: thread croft-vmm called {name}");
        assert!(ended.stderr.contains(&expected), "{ended:#?}\n{output:?}");
        assert_eq!(ended.code, Some(1), "{ended:#?}");
    }
}

#[test]
fn without_it_there_is_a_warning() {
    let stage = Stage::new();
    let mut command = stage.linux(Kernel::Cloud, Act::Shell);
    command.stdin(Stdio::piped()).arg("--no-jail");
    let mut machine = stage.start(command);
    machine.expect(PROMPT);
    for (name, status) in threads(stage.wait_for("croft-vmm")) {
        assert_eq!(field(&status, "Seccomp:"), "0", "{name}");
    }
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stderr.contains("warning: --no-jail"), "{ended:#?}");
}
