//! Waiting for descriptors.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// What a descriptor is for, it, and what is waited for.
pub type Interest<'a, S> = (S, BorrowedFd<'a>, PollFlags);

/// Whether anything is waited for. A hang-up is reported even where nothing
/// is asked for, and would make a loop spin that does not act on it: such
/// descriptors are left out.
pub fn asked<S>(interest: &Interest<'_, S>) -> bool {
    !interest.2.is_empty()
}

/// Waits at most `timeout` for any of these. None is ready when a signal came
/// first.
pub fn ready<S: Copy>(
    interests: &[Interest<'_, S>],
    timeout: Option<Duration>,
) -> Result<Vec<(S, PollFlags)>, Errno> {
    let mut descriptors: Vec<PollFd<'_>> = interests
        .iter()
        .map(|(_, descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags))
        .collect();
    let timeout = timeout.map(|left| Timespec::try_from(left).unwrap_or_default());
    match poll(&mut descriptors, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    Ok(interests
        .iter()
        .zip(&descriptors)
        .map(|((source, _, _), descriptor)| (*source, descriptor.revents()))
        .filter(|(_, ready)| !ready.is_empty())
        .collect())
}
