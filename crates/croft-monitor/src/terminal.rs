//! The terminal's modes, for the case that croft is killed.

use std::os::fd::OwnedFd;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal as it was before croft touched it.
#[derive(Debug)]
pub struct Terminal {
    descriptor: OwnedFd,
    before: Option<Termios>,
}

impl Terminal {
    /// Remembers its modes.
    pub fn new(descriptor: OwnedFd) -> Self {
        let before = tcgetattr(&descriptor).ok();
        Terminal { descriptor, before }
    }

    /// Gives the modes back if they are still what croft made of them; a
    /// shell may have set its own by now.
    pub fn restore(&self) {
        let (Some(before), Ok(now)) = (&self.before, tcgetattr(&self.descriptor)) else {
            return;
        };
        let mut raw = before.clone();
        raw.make_raw();
        let same = now.input_modes == raw.input_modes
            && now.output_modes == raw.output_modes
            && now.local_modes == raw.local_modes;
        if same {
            // The terminal may be gone; nobody is left to be told.
            let _ = tcsetattr(&self.descriptor, OptionalActions::Now, before);
        }
    }
}
