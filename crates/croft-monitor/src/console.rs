//! One direction of the console: a bounded queue between two sockets.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Most bytes held. When full, nothing more is read, the sender's socket
/// fills, and a UART at its other end says that it is not ready.
const CAPACITY: usize = 64 * 1024;
/// Bytes read at once.
const READ: usize = 16 * 1024;

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    bytes: VecDeque<u8>,
    ended: bool,
    broken: bool,
}

impl Queue {
    /// Whether it is worth waiting for its source.
    pub fn wants_input(&self) -> bool {
        !self.ended && self.bytes.len() + READ <= CAPACITY
    }

    /// Whether it is worth waiting for its sink.
    pub fn wants_output(&self) -> bool {
        !self.broken && !self.bytes.is_empty()
    }

    /// Nothing comes from its source any more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Its source has ended and its sink has everything (or is gone).
    pub fn is_done(&self) -> bool {
        self.ended && !self.wants_output()
    }

    /// Takes what is there, and shows it to `tap`.
    pub fn read_from(&mut self, source: impl AsFd, tap: impl FnOnce(&[u8])) {
        let mut buffer = [0; READ];
        match recv(source, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.ended = true,
            Ok((count, _)) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                tap(bytes);
                if !self.broken {
                    self.bytes.extend(bytes);
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.ended = true,
        }
    }

    /// Gives what is taken.
    pub fn write_to(&mut self, sink: impl AsFd) {
        let (first, _) = self.bytes.as_slices();
        match send(sink, first, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => drop(self.bytes.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The reader is gone; the rest is for nobody.
            Err(_) => {
                self.broken = true;
                self.bytes.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_api::pair;

    use super::*;

    #[test]
    fn is_bounded_and_loses_nothing() {
        let (source, far_source) = pair().unwrap();
        let (sink, far_sink) = pair().unwrap();
        let mut queue = Queue::default();
        let mut sent: Vec<u8> = Vec::new();
        // Nobody reads: in the end neither queue nor source take more.
        loop {
            let piece: Vec<u8> = (0..1000).map(|i| (sent.len() + i) as u8).collect();
            match send(&far_source, &piece, SendFlags::DONTWAIT) {
                Ok(count) => sent.extend(&piece[..count]),
                Err(_) if !queue.wants_input() => break,
                Err(_) => queue.read_from(&source, |_| {}),
            }
            queue.write_to(&sink);
            assert!(queue.bytes.len() <= CAPACITY);
        }
        drop(far_source);
        let mut got: Vec<u8> = Vec::new();
        while !queue.is_done() {
            if queue.wants_input() {
                queue.read_from(&source, |_| {});
            }
            if queue.wants_output() {
                queue.write_to(&sink);
            }
            let mut buffer = [0; 4096];
            if let Ok((count, _)) = recv(&far_sink, &mut buffer, RecvFlags::DONTWAIT) {
                got.extend(&buffer[..count]);
            }
        }
        drop(sink);
        let mut buffer = [0; 4096];
        while let Ok((count @ 1.., _)) = recv(&far_sink, &mut buffer, RecvFlags::DONTWAIT) {
            got.extend(&buffer[..count]);
        }
        assert!(got == sent);
    }
}
