//! Processes that are told apart from later ones with the same number.

use std::fs;
use std::time::{Duration, Instant};

use croft_api::instance::ProcessId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The process with this number, if there is one.
pub fn identify(pid: u32) -> Option<ProcessId> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may contain
    // anything; the third one follows the last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    let started = rest.split_whitespace().nth(22 - 3)?.parse().ok()?;
    Some(ProcessId { pid, started })
}

/// Kills the process, if it is still there, and waits until it is gone;
/// whether it is, after `patience` at most.
pub fn end(process: ProcessId, patience: Duration) -> bool {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
        return true;
    };
    // Identified after it was opened: from then on it is this one.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    if identify(process.pid) != Some(process) {
        return true;
    }
    // It may end in this moment.
    let _ = pidfd_send_signal(&handle, Signal::KILL);
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut wait = [PollFd::new(&handle, PollFlags::IN)];
        match poll(&mut wait, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(1..) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_right_one_is_ended() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = identify(child.id()).unwrap();
        assert_eq!(identify(child.id()), Some(process));
        let earlier = ProcessId {
            started: process.started.wrapping_sub(1),
            ..process
        };
        assert!(end(earlier, Duration::ZERO));
        assert_eq!(child.try_wait().unwrap(), None);
        assert!(end(process, Duration::from_secs(120)));
        assert!(!child.wait().unwrap().success());
        assert!(end(process, Duration::ZERO));
    }
}
