//! The guest of the tests: a busybox and a script.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::Archive;
use crate::files;

/// What the guest prints first.
pub const UP: &str = "guest: init";

/// What its shell prints when it waits for a command.
pub const PROMPT: &str = "guest# ";

/// What the guest does once it is up: the kernel's command line selects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Print what it finds and power off.
    Report,
    /// Compute for that many steps, and wait for a line of input before the
    /// result; see [`result`].
    Compute(u32),
    /// Reboot.
    Reboot,
    /// A shell on the console; power off at its end.
    Shell,
    /// Croft's agent, which the initial RAM disk must have.
    Agent,
}

impl Act {
    /// The kernel's command line for it, with its console on the serial port
    /// and nothing else there.
    pub fn command_line(self) -> String {
        let act = match self {
            Act::Report => "report".to_owned(),
            Act::Compute(steps) => format!("compute steps={steps} hold=1"),
            Act::Reboot => "reboot".to_owned(),
            Act::Shell => "shell".to_owned(),
            Act::Agent => "agent".to_owned(),
        };
        // A host that stands still for some seconds looks like a processor
        // that hangs, which would be told on the console.
        let patient = "rcupdate.rcu_cpu_stall_timeout=120 watchdog_thresh=60";
        format!("console=ttyS0 quiet {patient} act={act}")
    }
}

/// What a guest that computes for `steps` prints at last: this host runs the
/// same script with the same busybox.
///
/// # Panics
/// When busybox was not fetched, or does not run.
pub fn result(steps: u32) -> String {
    let busybox = files::busybox();
    // The script calls it by name.
    let path = busybox.parent().map(Path::to_owned).unwrap_or_default();
    let output = Command::new(&busybox)
        .args(["sh", "-s", &steps.to_string()])
        .env("PATH", path)
        .stdin(File::open(files::root().join("tests/src/compute")).expect("the script"))
        .output()
        .expect("busybox");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.contains("result"));
    line.unwrap_or_else(|| panic!("no result: {output:?}"))
        .to_owned()
}

/// Its initial RAM disk, not compressed: a guest copies faster than it
/// unpacks.
///
/// # Panics
/// When busybox was not fetched.
pub fn initramfs() -> Vec<u8> {
    initramfs_with(Archive::new())
}

/// The same, and what `more` has already.
///
/// # Panics
/// As [`initramfs`].
pub fn initramfs_with(more: Archive) -> Vec<u8> {
    let busybox = fs::read(files::busybox()).expect("busybox");
    more.directory("bin")
        .directory("dev")
        .directory("proc")
        .directory("sys")
        .program("bin/busybox", &busybox)
        .link("bin/sh", "busybox")
        .directory("tmp")
        .program("compute", include_bytes!("compute"))
        .program("init", include_bytes!("init"))
        .finish()
}
