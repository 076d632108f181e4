//! Processes that outlive the one that started them, told apart from later
//! ones of the same number.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// A process: its number, and when it started, in the kernel's ticks since
/// boot (proc(5), `/proc/PID/stat`, field 22). No two have both alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number, as the host has it.
    pub pid: i32,
    /// When it started.
    pub start: u64,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    /// `R`, `S`, `Z`…
    state: u8,
    start: u64,
}

impl Process {
    /// The process of that number that there is now.
    pub fn of(pid: Pid) -> Option<Self> {
        let pid = pid.as_raw_nonzero().get();
        let stat = read(pid)?;
        Some(Process {
            pid,
            start: stat.start,
        })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(rustix::process::getpid())
    }

    /// Whether it is there and has not ended: one that nobody has reaped yet
    /// has ended.
    pub fn is_alive(self) -> bool {
        read(self.pid).is_some_and(|stat| {
            stat.start == self.start && !matches!(stat.state, b'Z' | b'X' | b'x')
        })
    }

    /// A descriptor of it; `None` if it has gone.
    pub fn open(self) -> Result<Option<OwnedFd>, Errno> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.pid > 0) else {
            return Ok(None);
        };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Only now: the number cannot go to another any more.
        Ok(self.is_alive().then_some(descriptor))
    }

    /// Waits for its end, at most so long; says whether it has ended.
    pub fn ends_within(self, limit: Duration) -> bool {
        if let Ok(Some(descriptor)) = self.open()
            && let Ok(limit) = Timespec::try_from(limit)
        {
            let mut all = [PollFd::new(&descriptor, PollFlags::IN)];
            // Interrupted or not, it is looked at.
            let _ = poll(&mut all, Some(&limit));
        }
        !self.is_alive()
    }

    /// Sends it a signal; says whether it was there.
    pub fn signal(self, number: i32) -> Result<bool, Errno> {
        let Some(descriptor) = self.open()? else {
            return Ok(false);
        };
        match send(&descriptor, number) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Sends any signal, also those that have no name, and 0, which only asks.
pub fn send(descriptor: &OwnedFd, number: i32) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, no memory is handed over.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            descriptor.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        let error = std::io::Error::last_os_error();
        Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
    }
}

fn read(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name, in brackets, may contain anything: fields are counted from the
/// last bracket.
fn parse(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // The state is field 3.
    let start = fields.nth(22 - 4)?.parse().ok()?;
    Some(Stat { state, start })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn names_do_not_confuse() {
        let text = "7 (a) R 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20\n";
        assert_eq!(
            parse(text),
            Some(Stat {
                state: b'S',
                start: 4242
            })
        );
        assert_eq!(parse("7 (a) S 1 2"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn lives_and_ends() {
        let own = Process::own().unwrap();
        assert!(own.is_alive());
        let other = Process {
            start: own.start + 1,
            ..own
        };
        assert!(!other.is_alive(), "another process of the same number");
        assert_eq!(other.signal(0), Ok(false));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        let process = Process::of(pid).unwrap();
        assert!(process.is_alive());
        assert_eq!(process.signal(0), Ok(true));
        assert!(!process.ends_within(Duration::from_millis(1)));
        drop(child.stdin.take());
        assert!(process.ends_within(Duration::from_secs(120)));
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert_eq!(process.signal(9), Ok(false));
    }
}
