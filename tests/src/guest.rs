//! The guest of the tests: a busybox and a script.

use std::fs;

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
    /// Reboot.
    Reboot,
    /// A shell on the console; power off at its end.
    Shell,
}

impl Act {
    /// The kernel's command line for it, with its console on the serial port
    /// and nothing else there.
    pub fn command_line(self) -> String {
        let act = match self {
            Act::Report => "report",
            Act::Reboot => "reboot",
            Act::Shell => "shell",
        };
        format!("console=ttyS0 quiet act={act}")
    }
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
        .program("init", include_bytes!("init"))
        .finish()
}
