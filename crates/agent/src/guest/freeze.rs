//! Freezing file systems, so that what is copied of the guest's disks is
//! consistent.
//!
//! ```text
//! running ── Freeze ──► frozen ── Thaw, end of the connection, timeout ──► running
//!                         │ the agent dies
//!                         ▼
//!                       left over ── the agent starts again ──► running
//! ```
//!
//! While anything is frozen nothing here writes to a file or a log: it would
//! wait for itself. What is frozen is noted in `/run`, which is memory.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use croft_api::agent::{Control, FREEZE_MAX, FrameKind, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};

use super::task::{Refusal, refuse};
use crate::AgentError;
use crate::connection::{Receiver, Sender};

/// `FIFREEZE`, `FITHAW` (linux/fs.h).
const FREEZE: rustix::ioctl::Opcode = opcode::read_write::<libc::c_int>(b'X', 119);
const THAW: rustix::ioctl::Opcode = opcode::read_write::<libc::c_int>(b'X', 120);

/// There while something is frozen.
const NOTE: &str = "/run/croft-agent.frozen";
/// Most file systems.
const MOST: usize = 1024;

/// Whether something is.
static FROZEN: AtomicBool = AtomicBool::new(false);

/// Freezes until the host says otherwise.
pub fn serve(timeout: u32, mut sender: Sender, mut receiver: Receiver) -> Result<(), AgentError> {
    let deadline = Instant::now() + Duration::from_secs(u64::from(timeout.clamp(1, FREEZE_MAX)));
    let frozen = match Frozen::all() {
        Ok(frozen) => frozen,
        Err(refusal) => return refuse(&mut sender, refusal),
    };
    let filesystems = u32::try_from(frozen.descriptors.len()).unwrap_or(u32::MAX);
    sender.message(&Reply::Frozen { filesystems })?;
    let told = wait(&mut receiver, deadline);
    drop(frozen);
    sender.message(&Reply::Thawed { late: !told? })
}

/// Waits for the word to thaw. False after the deadline.
fn wait(receiver: &mut Receiver, deadline: Instant) -> Result<bool, AgentError> {
    loop {
        if let Some(frame) = receiver.arrived()? {
            if frame.kind == FrameKind::Message
                && receiver.read::<Control>(&frame)? == Control::Thaw
            {
                return Ok(true);
            }
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut waits = [PollFd::from_borrowed_fd(receiver.as_fd(), PollFlags::IN)];
        match poll(&mut waits, Some(&timeout)) {
            Err(Errno::INTR) => {}
            Ok(1..) => {
                if !receiver.fill()? {
                    return Err(AgentError::Closed("the host"));
                }
            }
            _ => return Ok(false),
        }
    }
}

/// Thaws what an agent before this one left frozen.
pub fn thaw_left_over() {
    if fs::metadata(NOTE).is_err() {
        return;
    }
    for path in writable().unwrap_or_default() {
        if let Ok(descriptor) = root_of(&path) {
            // Most of them are not frozen.
            let _ = control(&descriptor, THAW);
        }
    }
    let _ = fs::remove_file(NOTE);
}

/// Frozen file systems. They thaw when this is dropped.
#[derive(Debug)]
struct Frozen {
    descriptors: Vec<OwnedFd>,
}

impl Frozen {
    fn all() -> Result<Self, Refusal> {
        if FROZEN.swap(true, Ordering::AcqRel) {
            return Err(Refusal::other(
                "the guest's file systems are frozen already",
            ));
        }
        // From here on the end of this thaws.
        let mut frozen = Frozen {
            descriptors: Vec::new(),
        };
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Refusal::other(format!("{what} in the guest: {error}"))
        };
        let paths = writable().map_err(|error| failed("/proc/self/mountinfo", &error))?;
        // All are opened before the first one is frozen.
        let opened: Vec<(PathBuf, OwnedFd)> = paths
            .into_iter()
            .filter_map(|path| root_of(&path).ok().map(|descriptor| (path, descriptor)))
            .collect();
        fs::write(NOTE, "").map_err(|error| failed(NOTE, &error))?;
        for (path, descriptor) in opened {
            match control(&descriptor, FREEZE) {
                Ok(()) => frozen.descriptors.push(descriptor),
                // Those that cannot be frozen, or that somebody else froze.
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => {}
                Err(error) => {
                    return Err(failed(&format!("freezing {}", path.display()), &error));
                }
            }
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // In the other order.
        while let Some(descriptor) = self.descriptors.pop() {
            let _ = control(&descriptor, THAW);
        }
        let _ = fs::remove_file(NOTE);
        FROZEN.store(false, Ordering::Release);
    }
}

fn root_of(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open(path, flags, Mode::empty())
}

fn control(descriptor: &OwnedFd, what: rustix::ioctl::Opcode) -> Result<(), Errno> {
    // SAFETY: both requests take an int by pointer and ignore it.
    unsafe {
        match what {
            FREEZE => ioctl(descriptor, Setter::<FREEZE, libc::c_int>::new(0)),
            _ => ioctl(descriptor, Setter::<THAW, libc::c_int>::new(0)),
        }
    }
}

/// Where the file systems on disks that can be written are mounted, each
/// once, the last mounted first: one may be on a file of an earlier one.
fn writable() -> std::io::Result<Vec<PathBuf>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// proc(5), `/proc/pid/mountinfo`.
fn parse(text: &str) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut paths = Vec::new();
    for line in text.lines().take(MOST) {
        let Some((mount, about)) = line.split_once(" - ") else {
            continue;
        };
        let mount: Vec<&str> = mount.split(' ').collect();
        let about: Vec<&str> = about.split(' ').collect();
        let (Some(device), Some(path)) = (mount.get(2), mount.get(4)) else {
            continue;
        };
        let (Some(kind), Some(options)) = (about.first(), about.get(2)) else {
            continue;
        };
        // Those without a device of their own have major number 0; btrfs has
        // too, on its disks.
        let on_disk = !device.starts_with("0:") || *kind == "btrfs";
        let is_writable = options.split(',').any(|option| option == "rw");
        if on_disk && is_writable && seen.insert(device.to_string()) {
            paths.push(PathBuf::from(unescape(path)));
        }
    }
    paths.reverse();
    paths
}

/// Spaces and the like are octal there.
fn unescape(path: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(path.to_owned(), |path, (code, plain)| {
        path.replace(code, plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_can_be_written_are_frozen_once() {
        let text = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw,size=1
24 22 254:16 / /mnt/a\\040b rw - xfs /dev/vdb rw
25 22 254:1 /var /srv rw,relatime - ext4 /dev/vda1 rw
26 22 7:0 / /snap ro - squashfs /dev/loop0 ro
27 22 0:44 / /data rw - btrfs /dev/vdc rw,space_cache
broken line
28 22 0:50 / /share rw - virtiofs tag rw
";
        let expected = ["/data", "/mnt/a b", "/"].map(PathBuf::from);
        assert_eq!(parse(text), expected);
    }
}
