//! Signals to croft.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals, waited for like everything else.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks those that end croft, and SIGCONT, in this thread and in those
    /// that it makes.
    pub fn new() -> io::Result<Self> {
        Self::with(&[])
    }

    /// As [`new`](Self::new), and these too.
    pub fn with(others: &[Signal]) -> io::Result<Self> {
        let own = [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGCONT,
        ];
        let set = SigSet::from_iter(own.into_iter().chain(others.iter().copied()));
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Signals(SignalFd::with_flags(&set, flags)?))
    }

    /// The next one that has come.
    pub fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok()??;
        i32::try_from(info.ssi_signo)
            .ok()
            .and_then(|number| Signal::try_from(number).ok())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
