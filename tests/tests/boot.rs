//! Stock Debian kernels, from their first instruction to power-off.

use std::process::{Command, Stdio};
use std::time::Duration;

use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT, UP};
use croft_tests::{Ended, Stage};

/// A boot in lockstep takes a hundred times as long as one without.
const LOCKSTEP: Duration = Duration::from_secs(1800);

/// A guest that reports and powers off; checks what every one of them says.
fn report(stage: &Stage, kernel: Kernel, command: Command) -> Ended {
    let ended = stage.start(command).wait();
    let text = format!("{ended:#?}");
    assert_eq!(ended.code, Some(0), "{text}");
    let lines: Vec<&str> = ended.stdout.lines().map(str::trim_end).collect();
    for line in [UP, &format!("guest: kernel {}", kernel.release())] {
        assert!(lines.contains(&line), "'{line}' is missing: {text}");
    }
    let memory: u64 = value(&ended, "memory").parse().expect("a number");
    assert!((400..512).contains(&memory), "{text}");
    assert!(!ended.stdout.contains("croft"), "{text}");
    assert!(!ended.stderr.contains("guest:"), "{text}");
    for bad in ["BUG", "WARNING: CPU", "Oops", "panic", "rcu", "soft lockup"] {
        assert!(!ended.stdout.contains(bad), "{text}");
    }
    ended
}

/// What the guest said about something.
fn value(ended: &Ended, name: &str) -> String {
    let start = format!("guest: {name} ");
    let mut lines = ended.stdout.lines();
    lines
        .find_map(|line| line.strip_prefix(&start))
        .unwrap_or_else(|| panic!("no {name}: {ended:#?}"))
        .trim()
        .to_owned()
}

fn on_model(kernel: Kernel, model: &str) {
    let stage = Stage::new();
    let mut command = stage.linux(kernel, Act::Report);
    command.args(["--engine", "software", "--cpu", model]);
    let ended = report(&stage, kernel, command);
    assert_eq!(value(&ended, "cpus"), "1");
    assert!(!value(&ended, "cpu").is_empty());
    // Not one that takes an exit for each reading.
    let clock = value(&ended, "clock");
    assert!(["tsc", "kvm-clock"].contains(&clock.as_str()), "{clock}");
    // An engine that was asked for is no news.
    assert_eq!(ended.stderr, "");
}

#[test]
fn cloud_kernel_software_fast() {
    on_model(Kernel::Cloud, "software-fast");
}

#[test]
fn cloud_kernel_portable_v1() {
    on_model(Kernel::Cloud, "portable-v1");
}

#[test]
fn generic_kernel_software_fast() {
    on_model(Kernel::Generic, "software-fast");
}

#[test]
fn generic_kernel_portable_v1() {
    on_model(Kernel::Generic, "portable-v1");
}

#[test]
fn unprivileged_user_without_kvm() {
    let stage = Stage::new();
    let command = stage.unprivileged_linux(Kernel::Cloud, Act::Report);
    let ended = report(&stage, Kernel::Cloud, command);
    // Which engine `auto` took and why, in one line.
    assert!(
        ended.stderr.starts_with("croft: engine software: "),
        "{ended:#?}"
    );
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:#?}");
}

/// Each block by the interpreter and as translated code, with one outcome.
#[test]
fn cloud_kernel_in_lockstep() {
    let stage = Stage::new();
    let mut command = stage.linux(Kernel::Cloud, Act::Report);
    command.arg("--lockstep");
    let ended = stage.start(command).wait_at_most(LOCKSTEP);
    let text = format!("{ended:#?}");
    assert_eq!(ended.code, Some(0), "{text}");
    assert!(ended.stdout.contains(UP), "{text}");
    let counts = ended
        .stderr
        .lines()
        .find(|line| line.contains("lockstep: "))
        .unwrap_or_else(|| panic!("no counts: {text}"));
    println!("{counts}");
}

#[test]
fn two_processors() {
    let stage = Stage::new();
    let mut command = stage.linux(Kernel::Cloud, Act::Report);
    command.args(["--cpus", "2"]);
    let ended = report(&stage, Kernel::Cloud, command);
    assert_eq!(value(&ended, "cpus"), "2");
}

#[test]
fn reboot_boots_again() {
    let stage = Stage::new();
    let mut command = stage.linux(Kernel::Cloud, Act::Shell);
    command.stdin(Stdio::piped());
    let mut machine = stage.start(command);
    machine.expect(PROMPT);
    machine.type_in("reboot -f\n");
    machine.expect(UP);
    machine.expect(PROMPT);
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[test]
fn reboot_ends_under_no_reboot() {
    let stage = Stage::new();
    let mut command = stage.linux(Kernel::Cloud, Act::Reboot);
    command.arg("--no-reboot");
    let ended = stage.start(command).wait();
    assert_eq!(ended.code, Some(3), "{ended:#?}");
    assert_eq!(ended.stdout.matches(UP).count(), 1, "{ended:#?}");
    assert!(ended.stderr.contains("--no-reboot"), "{ended:#?}");
}
