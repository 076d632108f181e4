//! Instances with a real guest: its console, its reboot, its end, and the
//! deaths of those around it.

use std::fs;
use std::process::{Command, Stdio};

use croft_tests::files::{Kernel, program};
use croft_tests::guest::{Act, PROMPT, UP, initramfs};
use croft_tests::{END, PATIENCE, Stage, eventually};
use rustix::process::{Signal, kill_process};

/// An instance of the stage's name in directories of the stage's own.
struct Instance<'a> {
    stage: &'a Stage,
}

impl<'a> Instance<'a> {
    /// Of a stock kernel and the tests' initial RAM disk.
    fn create(stage: &'a Stage, act: Act, more: &[&str]) -> Self {
        let instance = Instance { stage };
        let initrd = stage.file("initrd", &initramfs());
        let mut command = instance.croft(&["create", "--name", stage.name()]);
        command.arg("--kernel").arg(Kernel::Cloud.path());
        command.arg("--initrd").arg(initrd);
        command.args(["--memory", "256M", "--append", &act.command_line()]);
        command.args(more);
        succeed(command);
        instance
    }

    fn croft(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("croft"));
        command
            .args(words)
            .env("CROFT_DATA_DIR", self.stage.path("data"))
            .env_remove("CROFT_RUNTIME_DIR")
            .current_dir(self.stage.path("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn done(&self, words: &[&str]) -> String {
        let mut command = self.croft(words);
        command.arg(self.stage.name());
        succeed(command)
    }

    /// Its line in `croft list`.
    fn listed(&self) -> String {
        succeed(self.croft(&["list"]))
    }

    fn wait_for_log(&self, text: &str, times: usize) {
        eventually(PATIENCE, text, || {
            self.done(&["logs"]).matches(text).count() >= times
        });
    }

    fn wait_for_state(&self, state: &str) {
        eventually(PATIENCE, state, || self.listed().contains(state));
    }

    /// Nothing is left but what is kept.
    fn assert_quiet(&self) {
        eventually(END, "no process is left", || {
            self.stage.processes().is_empty()
        });
        let left = fs::read_dir(self.stage.path("data/run")).expect("a directory");
        assert_eq!(left.count(), 0);
    }
}

fn succeed(mut command: Command) -> String {
    let output = command.output().expect("croft");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

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
