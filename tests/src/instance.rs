//! Instances: machines that are kept, in directories of a stage's own.

use std::fs;
use std::process::{Command, Stdio};

use crate::files::{Kernel, program};
use crate::guest::{Act, initramfs};
use crate::{END, PATIENCE, Stage, eventually};

/// An instance of the stage's name in directories of the stage's own.
#[derive(Debug)]
pub struct Instance<'a> {
    stage: &'a Stage,
}

impl<'a> Instance<'a> {
    /// Of a stock kernel and the tests' initial RAM disk.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn create(stage: &'a Stage, act: Act, more: &[&str]) -> Self {
        Instance::create_of(stage, Kernel::Cloud, &initramfs(), act, more)
    }

    /// Of this kernel and initial RAM disk.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn create_of(
        stage: &'a Stage,
        kernel: Kernel,
        initrd: &[u8],
        act: Act,
        more: &[&str],
    ) -> Self {
        let instance = Instance { stage };
        let initrd = stage.file("initrd", initrd);
        let mut command = instance.croft(&["create", "--name", stage.name()]);
        command.arg("--kernel").arg(kernel.path());
        command.arg("--initrd").arg(initrd);
        command.args(["--memory", "256M", "--append", &act.command_line()]);
        command.args(more);
        succeed(command);
        instance
    }

    /// `croft` with these words.
    pub fn croft(&self, words: &[&str]) -> Command {
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

    /// The same, for this instance, to its end: what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn done(&self, words: &[&str]) -> String {
        let mut command = self.croft(words);
        command.arg(self.stage.name());
        succeed(command)
    }

    /// What `croft list` prints.
    ///
    /// # Panics
    /// When it fails.
    pub fn listed(&self) -> String {
        succeed(self.croft(&["list"]))
    }

    /// Waits until its log has that so often.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_for_log(&self, text: &str, times: usize) {
        eventually(PATIENCE, text, || {
            self.done(&["logs"]).matches(text).count() >= times
        });
    }

    /// Waits until it is in this state.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn wait_for_state(&self, state: &str) {
        eventually(PATIENCE, state, || self.listed().contains(state));
    }

    /// Nothing is left but what is kept.
    ///
    /// # Panics
    /// When something is.
    pub fn assert_quiet(&self) {
        eventually(END, "no process is left", || {
            self.stage.processes().is_empty()
        });
        let left = fs::read_dir(self.stage.path("data/run")).expect("a directory");
        assert_eq!(left.count(), 0);
    }
}

/// Runs a command that succeeds: what it printed.
///
/// # Panics
/// When it fails.
pub fn succeed(mut command: Command) -> String {
    let output = command.output().expect("croft");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
