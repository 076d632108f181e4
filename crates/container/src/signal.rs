//! Signals to a container's processes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Largest number of a signal (signal(7)).
pub const SIGNAL_MAX: i32 = 64;

/// Sends a process a signal by its number, real-time ones too: an init that
/// is systemd is asked to power off by one (`SIGRTMIN+3`).
///
/// # Errors
/// As pidfd_send_signal(2); a number that is no signal is invalid input.
pub fn signal(process: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    if !(1..=SIGNAL_MAX).contains(&number) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the descriptor is open for the call, and no pointer is passed
    // but a null one, which is allowed.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn real_time_signals_are_sent_and_nonsense_is_not() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        for bad in [0, -1, 65, i32::MIN] {
            assert!(signal(pidfd.as_fd(), bad).is_err());
        }
        signal(pidfd.as_fd(), 37).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(37));
        assert!(signal(pidfd.as_fd(), 9).is_err());
    }
}
