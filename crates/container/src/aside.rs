//! What a container could make last for ever, done aside.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal,
    set_parent_process_death_signal, waitid,
};

use crate::sys;

/// Bytes moved at once.
const PIECE: usize = 64 << 10;
/// How long a child that was killed may take to be gone; it is given up then,
/// and gone when the file system that it is in answers, or ends.
const KILLED: Duration = Duration::from_secs(1);

/// Has a process of its own do `work`, and returns what that returns: `most`
/// bytes, within `patience`. In files that a container has a hand in: its file
/// systems may be programs of its own (FUSE), which need not answer. `work` has
/// the memory of this process, which must have one thread.
///
/// # Errors
/// `TimedOut` after `patience`, `InvalidData` for too many bytes, and others as
/// the host gives them.
pub fn aside(
    patience: Duration,
    most: usize,
    work: impl FnOnce() -> Vec<u8>,
) -> io::Result<Vec<u8>> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some((_, child)) = sys::clone3(0, None)? else {
        drop(ours);
        // Its maker may be gone, and then this is for nobody.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        // A panic must not run what is the maker's.
        let done = catch_unwind(AssertUnwindSafe(work));
        let sent = done.is_ok_and(|bytes| send(&theirs, &bytes).is_ok());
        sys::leave(if sent { 0 } else { 1 });
    };
    drop(theirs);
    let answer = receive(&ours, Instant::now() + patience, most);
    if answer.is_err() {
        end(child.as_fd());
        return answer;
    }
    // One that has answered ends by itself.
    match waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) if status.exit_status() == Some(0) => answer,
        _ => Err(io::Error::other("a fault of Croft's own")),
    }
}

fn send(pipe: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(pipe, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads to the end.
fn receive(pipe: &OwnedFd, end: Instant, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        if !is_ready(pipe.as_fd(), end)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match read(pipe, piece.as_mut_slice()) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if bytes.len() > most {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Waits until something can be read.
fn is_ready(file: BorrowedFd<'_>, end: Instant) -> io::Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut wanted = [PollFd::from_borrowed_fd(file, PollFlags::IN)];
        match poll(&mut wanted, Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills a child, and reaps it: one that is gone by then.
pub fn end(child: BorrowedFd<'_>) -> Option<WaitIdStatus> {
    // It may have ended by itself.
    let _ = pidfd_send_signal(child, Signal::KILL);
    if !is_ready(child, Instant::now() + KILLED).ok()? {
        return None;
    }
    waitid(WaitId::PidFd(child), WaitIdOptions::EXITED).ok()?
}
