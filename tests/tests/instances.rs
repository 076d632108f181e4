//! Instances with a real guest: its console, its reboot, its end, and the
//! deaths of those around it.

use std::process::Stdio;

use croft_tests::guest::{Act, PROMPT, UP};
use croft_tests::{END, Instance, PATIENCE, Stage, eventually};
use rustix::process::{Signal, kill_process};

#[test]
fn a_console_is_left_and_come_back_to() {
    let stage = Stage::new();
    let instance = Instance::create(&stage, Act::Shell, &[]);
    instance.done(&["start"]);
    let console = |name: &str| {
        let mut command = instance.croft(&["console", name]);
        command.stdin(Stdio::piped());
        stage.start(command)
    };
    let mut first = console(stage.name());
    first.expect(PROMPT);
    first.type_in("echo one$((1 + 1))\n");
    first.expect("one2");
    // Whoever looked goes without a word; the guest stays.
    kill_process(first.pid(), Signal::KILL).expect("a process");
    drop(first);
    let mut second = console(stage.name());
    second.expect("one2");
    second.type_in("exit\n");
    second.stdout.wait_for_end(PATIENCE);
    instance.wait_for_state("stopped");
    drop(second);
    instance.assert_quiet();
    instance.done(&["delete"]);
}

#[test]
fn a_guest_that_reboots_runs_on() {
    let stage = Stage::new();
    let instance = Instance::create(&stage, Act::Reboot, &[]);
    instance.done(&["start"]);
    instance.wait_for_log(UP, 3);
    let shown = instance.done(&["show"]);
    assert!(shown.contains("running"), "{shown}");
    assert!(shown.contains("1 times"), "one payload: {shown}");
    instance.done(&["pause"]);
    assert!(instance.listed().contains("paused"));
    instance.done(&["stop", "--force"]);
    instance.wait_for_state("stopped");
    instance.assert_quiet();
}

#[test]
fn deaths() {
    let stage = Stage::new();
    let instance = Instance::create(&stage, Act::Shell, &["--restart", "on-failure"]);
    instance.done(&["start"]);
    instance.wait_for_log(PROMPT, 1);
    kill_process(stage.wait_for("croft-vmm"), Signal::KILL).expect("a process");
    instance.wait_for_log(PROMPT, 2);
    assert!(instance.listed().contains("running"));
    kill_process(stage.wait_for("croft-monitor"), Signal::KILL).expect("a process");
    eventually(END, "the vmm goes with its monitor", || {
        stage.processes().is_empty()
    });
    let listed = instance.listed();
    assert!(listed.contains("stopped (its monitor died)"), "{listed}");
    instance.done(&["start"]);
    instance.wait_for_log(PROMPT, 3);
    instance.done(&["stop", "--force"]);
    instance.assert_quiet();
    instance.done(&["delete"]);
}
