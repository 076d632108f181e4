//! Its process.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use croft_api::instance::ProcessId;
use croft_host::process;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::managed::error::NetworkError;
use crate::managed::name::NetworkName;
use crate::managed::program;

const PROGRAM: &str = "dnsmasq";
/// How its configuration is named in its arguments.
const OPTION: &[u8] = b"--conf-file=";
/// How long a killed process may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often processes are looked for that appear while others are ended.
const ATTEMPTS: u32 = 10;

/// A process of ours.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// Which one.
    pub id: ProcessId,
    /// It is in this process's network namespace.
    pub here: bool,
}

/// Starts it, and waits until it serves or has said why not.
pub fn start(conf: &Path) -> Result<(), NetworkError> {
    let failed = |message: String| NetworkError::Program {
        program: PROGRAM,
        message,
    };
    let mut option = std::ffi::OsString::from("--conf-file=");
    option.push(conf);
    let output = Command::new(program::path(PROGRAM))
        .arg(option)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // It goes into the background by itself when it serves.
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NetworkError::Missing {
                program: PROGRAM,
                package: "dnsmasq-base",
            },
            _ => failed(error.to_string()),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| !line.trim().is_empty());
    Err(failed(
        line.unwrap_or("failed without a word").trim().to_owned(),
    ))
}

/// Has it read what changes while it runs.
pub fn reload(id: ProcessId) {
    let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    // Identified after it was opened: from then on it is this one. If it has
    // ended, the next reconcile starts another, which reads all of it.
    if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
        && process::identify(id.pid) == Some(id)
    {
        let _ = pidfd_send_signal(&handle, Signal::HUP);
    }
}

/// Ends those that `find` finds, until it finds none: one that goes into the
/// background has a child for a moment.
pub fn end_all(find: impl Fn() -> Vec<ProcessId>) {
    for _ in 0..ATTEMPTS {
        let found = find();
        if found.is_empty() {
            return;
        }
        for id in found {
            // SIGTERM would do no more: its leases are on disk as soon as
            // they are given.
            process::end(id, PATIENCE);
        }
    }
}

/// The processes with the configuration `conf`.
pub fn find(conf: &Path) -> Vec<Running> {
    let here = namespace(std::process::id());
    let ours = all().into_iter().filter(|(_, of)| of == conf);
    ours.map(|(id, _)| Running {
        id,
        here: namespace(id.pid) == here,
    })
    .collect()
}

/// Those with a configuration below `root`, and the networks that these are
/// of.
pub fn all_below(root: &Path) -> Vec<(Option<NetworkName>, ProcessId)> {
    let below = all().into_iter().filter_map(|(id, conf)| {
        let rest = conf.strip_prefix(root).ok()?;
        let name = rest.iter().next()?.to_str()?.parse().ok();
        Some((name, id))
    });
    below.collect()
}

/// All processes of dnsmasq's that have been given a configuration.
fn all() -> Vec<(ProcessId, PathBuf)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            // Before and after: a number is used anew.
            let id = process::identify(pid)?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let conf = configuration(&line)?;
            (process::identify(pid) == Some(id)).then_some((id, conf))
        })
        .collect()
}

/// The configuration in a command line of dnsmasq's.
fn configuration(line: &[u8]) -> Option<PathBuf> {
    let mut arguments = line.split(|byte| *byte == 0);
    let program = Path::new(std::ffi::OsStr::from_bytes(arguments.next()?));
    if program.file_name()? != PROGRAM {
        return None;
    }
    let conf = arguments.find_map(|argument| argument.strip_prefix(OPTION))?;
    Some(std::ffi::OsStr::from_bytes(conf).into())
}

fn namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_command_line_says_whose_it_is() {
        let line = b"/usr/sbin/dnsmasq\0--conf-file=/a/b\0";
        assert_eq!(configuration(line), Some("/a/b".into()));
        assert_eq!(configuration(b"/usr/bin/cat\0--conf-file=/a/b\0"), None);
        assert_eq!(configuration(b"dnsmasq\0-k\0"), None);
        assert_eq!(configuration(b""), None);
    }
}
