//! The terminal as the guest's serial console.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

/// The terminal on standard input. Its modes are given back when this is
/// dropped, and so on every return and on a panic; signals are waited for, not
/// suffered; and when croft is killed the monitor gives them back.
#[derive(Debug)]
pub struct Terminal {
    descriptor: OwnedFd,
    before: Termios,
    raw: bool,
}

impl Terminal {
    /// The terminal, if standard input is one and is ours to read.
    pub fn open() -> Option<Terminal> {
        // A background job that touched the modes would be stopped.
        if !isatty(stdin()) || tcgetpgrp(stdin()).ok()? != getpgrp() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let descriptor = stdin().try_clone_to_owned().ok()?;
        Some(Terminal {
            descriptor,
            before,
            raw: false,
        })
    }

    /// A descriptor of it for the monitor.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }

    /// Every key is the guest's from here on.
    pub fn make_raw(&mut self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        self.raw = true;
        Ok(tcsetattr(&self.descriptor, OptionalActions::Now, &raw)?)
    }

    /// After a stop a shell has set its own modes.
    pub fn make_raw_again(&mut self) {
        if self.raw && tcgetpgrp(&self.descriptor) == Ok(getpgrp()) {
            // The session goes on without it.
            let _ = self.make_raw();
        }
    }

    /// Whether a line end needs a carriage return of its own.
    pub fn is_raw(&self) -> bool {
        self.raw
    }

    /// Gives the modes back.
    pub fn restore(&mut self) {
        if std::mem::take(&mut self.raw) {
            // The terminal may be gone.
            let _ = tcsetattr(&self.descriptor, OptionalActions::Now, &self.before);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}
