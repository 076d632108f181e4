//! From standard input to the guest's console.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::stdio::stdin;

/// Most bytes held.
const CAPACITY: usize = 16 * 1024;
/// Ctrl-].
const LEAVE: u8 = 0x1d;

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Bytes for the guest, or nothing.
    Input,
    /// Ctrl-] on a terminal.
    Leave,
}

/// Standard input and what the guest has not taken yet.
#[derive(Debug)]
pub struct Input {
    pending: Vec<u8>,
    ended: bool,
    /// Keys: `LEAVE` is ours, and too many are dropped, as a terminal does,
    /// so that `LEAVE` is always heard. Anything else waits instead.
    keys: bool,
}

impl Input {
    /// Standard input; `keys` if it is a terminal of ours.
    pub fn new(keys: bool, readable: bool) -> Self {
        Input {
            pending: Vec::new(),
            ended: !readable,
            keys,
        }
    }

    /// Whether it is worth waiting for standard input.
    pub fn wants_input(&self) -> bool {
        !self.ended && (self.keys || self.pending.is_empty())
    }

    /// Whether it is worth waiting for the console.
    pub fn wants_output(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Reads once.
    pub fn read(&mut self) -> Heard {
        let mut buffer = [0; 4096];
        match rustix::io::read(stdin(), &mut buffer) {
            Ok(count @ 1..) => self.take(buffer.get(..count).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => Heard::Input,
            // End of file, a terminal that is gone, a directory: no more.
            Ok(_) | Err(_) => {
                self.ended = true;
                Heard::Input
            }
        }
    }

    /// What was read is for nobody.
    pub fn forget(&mut self) {
        self.pending.clear();
    }

    fn take(&mut self, bytes: &[u8]) -> Heard {
        if self.keys && bytes.contains(&LEAVE) {
            return Heard::Leave;
        }
        let room = CAPACITY.saturating_sub(self.pending.len());
        self.pending.extend(bytes.iter().take(room));
        Heard::Input
    }

    /// Whether there is no more, and all is given.
    pub fn is_ended(&self) -> bool {
        self.ended && self.pending.is_empty()
    }

    /// Gives the console what it takes.
    pub fn write(&mut self, console: impl AsFd) {
        self.write_by(|bytes| send(console, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL));
    }

    /// As [`write`](Self::write), to what is no socket.
    pub fn write_by(&mut self, give: impl FnOnce(&[u8]) -> Result<usize, Errno>) {
        match give(&self.pending) {
            Ok(count) => drop(self.pending.drain(..count)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The machine is ending.
            Err(_) => {
                self.pending.clear();
                self.ended = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leave_is_heard_even_when_the_guest_listens_to_nothing() {
        let mut input = Input::new(true, true);
        for _ in 0..100 {
            assert_eq!(input.take(&[b'x'; 4096]), Heard::Input);
            assert!(input.wants_input());
        }
        assert_eq!(input.pending.len(), CAPACITY);
        assert_eq!(input.take(b"ab\x1dc"), Heard::Leave);
    }

    #[test]
    fn a_pipe_waits_and_its_bytes_are_the_guests() {
        let mut input = Input::new(false, true);
        assert_eq!(input.take(b"ab\x1dc"), Heard::Input);
        assert_eq!(input.pending, b"ab\x1dc");
        assert!(!input.wants_input());
    }
}
