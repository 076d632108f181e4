//! Telling the host that the guest is up.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use croft_api::agent::Ready;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::AgentError;
use crate::connection::halves;

/// Longest time to wait for the system to be up: a unit that does not come up
/// is no reason not to be reachable.
const UP: Duration = Duration::from_secs(90);
/// For how long the host is tried: it may have nobody who listens.
const TRYING: Duration = Duration::from_secs(600);
/// Between two attempts, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What is said.
pub fn state() -> Ready {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    Ready {
        boot_id: boot_id.unwrap_or_default().trim().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Waits until the system is up and says so on what `connect` connects to.
pub fn announce(connect: impl Fn() -> std::io::Result<OwnedFd>) {
    wait_until_up();
    let began = Instant::now();
    let mut pause = PAUSES.0;
    while began.elapsed() < TRYING {
        if connect().is_ok_and(|stream| say(stream).is_ok()) {
            return;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Says it, and waits until it was heard: the host ends the connection.
fn say(stream: OwnedFd) -> Result<(), AgentError> {
    let (mut sender, mut receiver) = halves(stream, "the host")?;
    sender.hello()?;
    sender.message(&state())?;
    while receiver.frame()?.is_some() {}
    Ok(())
}

/// With systemd: until everything that boot starts has been started.
fn wait_until_up() {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let child = Command::new("systemctl")
        .args(["is-system-running", "--wait"])
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let ended = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(ended) = ended {
        let deadline = Instant::now() + UP;
        let mut waits = [PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut waits, Some(&timeout)) {
                Err(Errno::INTR) => {}
                _ => break,
            }
        }
    }
    // Ended already, but for one that waits in vain.
    let _ = child.kill();
    let _ = child.wait();
}
