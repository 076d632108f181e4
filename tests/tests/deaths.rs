//! Killing any of the three, while a guest boots, leaves nothing behind.

use croft_tests::files::Kernel;
use croft_tests::guest::Act;
use croft_tests::{END, Stage};
use rustix::process::Signal;

/// Croft's exit code and its last words.
fn kill(victim: &str) -> (Option<i32>, String) {
    let stage = Stage::new();
    let mut command = stage.linux(Kernel::Cloud, Act::Shell);
    command.args(["--gdb", "gdb", "--cpus", "2"]);
    let mut machine = stage.start(command);
    machine.stderr.wait_for("engine", END);
    assert!(stage.path("run/gdb").exists());
    machine.signal(victim, Signal::KILL);
    let ended = machine.wait_at_most(END);
    (ended.code, ended.stderr)
}

#[test]
fn of_croft() {
    let (code, text) = kill("croft");
    assert_eq!(code, None, "{text}");
}

#[test]
fn of_the_monitor() {
    let (code, text) = kill("croft-monitor");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("croft-monitor"), "{text}");
}

#[test]
fn of_the_vmm() {
    let (code, text) = kill("croft-vmm");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("croft-vmm was killed by signal 9"), "{text}");
}
