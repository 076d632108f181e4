//! Filters of containers on real processes.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output};

use croft_isolate::capabilities;
use croft_isolate::seccomp::{Program, compile, default_profile};
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompBuilder, LinuxSyscallBuilder,
};

/// Runs a command under a filter.
fn run(program: &Program, command: &[&str]) -> Output {
    let filter = program.clone();
    let mut command_line = Command::new(command[0]);
    command_line.args(&command[1..]);
    // SAFETY: only system calls are made.
    unsafe {
        command_line.pre_exec(move || {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            filter.install()?;
            Ok(())
        });
    }
    command_line.output().unwrap()
}

fn usual() -> Program {
    let profile = default_profile(&capabilities::DEFAULT, Arch::ScmpArchNative);
    compile(&profile).unwrap()
}

fn denying(names: &[&str], action: LinuxSeccompAction) -> LinuxSeccomp {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let rule = LinuxSyscallBuilder::default().names(names).action(action);
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .syscalls(vec![rule.build().unwrap()])
        .build()
        .unwrap()
}

#[test]
fn programs_run_under_the_default_profile_and_leave_no_namespace() {
    let output = run(
        &usual(),
        &["sh", "-c", "ls /proc/self | wc -l; sleep 0; echo done"],
    );
    assert!(output.status.success(), "{output:?}");
    let output = run(&usual(), &["unshare", "--user", "true"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{output:?}");
    assert!(complaint.contains("not permitted"), "{complaint}");
    let mut all = capabilities::DEFAULT.to_vec();
    all.push(Capability::SysAdmin);
    let admin = compile(&default_profile(&all, Arch::ScmpArchNative)).unwrap();
    // The profile lets it through; whether the kernel does is its business.
    let output = run(&admin, &["unshare", "--user", "true"]);
    let plain = Command::new("unshare")
        .args(["--user", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.success(), plain.status.success());
}

#[test]
fn actions_are_the_kernels() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new");
    let path = path.to_str().unwrap();
    let program = compile(&denying(
        &["mkdir", "mkdirat"],
        LinuxSeccompAction::ScmpActErrno,
    ))
    .unwrap();
    let output = run(&program, &["mkdir", path]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for action in [
        LinuxSeccompAction::ScmpActKillProcess,
        LinuxSeccompAction::ScmpActTrap,
    ] {
        let program = compile(&denying(&["mkdir", "mkdirat"], action)).unwrap();
        let output = run(&program, &["mkdir", path]);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
    }
}

#[test]
fn a_filter_that_asks_has_a_listener() {
    let mut profile = denying(&["mkdir"], LinuxSeccompAction::ScmpActNotify);
    assert!(compile(&profile).is_err());
    profile.set_listener_path(Some("/run/asked".into()));
    profile.set_listener_metadata(Some("who".to_owned()));
    let program = compile(&profile).unwrap();
    let listener = program.listener().unwrap();
    assert_eq!(
        (listener.path.to_str(), listener.metadata.as_str()),
        (Some("/run/asked"), "who")
    );
    // In a thread of its own, which then ends.
    std::thread::spawn(move || {
        // SAFETY: takes no pointers.
        let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(result, 0);
        let descriptor = program.install().unwrap().unwrap();
        let link = std::fs::read_link(format!("/proc/thread-self/fd/{}", descriptor.as_raw_fd()));
        assert_eq!(link.unwrap().to_str(), Some("anon_inode:seccomp notify"));
    })
    .join()
    .unwrap();
}
