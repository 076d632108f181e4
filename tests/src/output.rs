//! What a process writes, as it comes.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Everything that was read from a process so far.
#[derive(Debug)]
pub struct Output {
    name: &'static str,
    pieces: Receiver<Vec<u8>>,
    bytes: Vec<u8>,
    /// What was waited for lies before this.
    seen: usize,
}

impl Output {
    /// Reads `source`, called `name` in messages, to its end.
    pub fn new(name: &'static str, mut source: impl Read + Send + 'static) -> Self {
        let (sender, pieces) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The other side of a terminal that is closed reads as an error.
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Output {
            name,
            pieces,
            bytes: Vec::new(),
            seen: 0,
        }
    }

    /// Waits for `text` behind what was waited for before, or says why it did
    /// not come within `patience`.
    pub fn find(&mut self, text: &str, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            let wanted = text.as_bytes();
            let news = &self.bytes[self.seen..];
            if let Some(at) = position(news, wanted) {
                self.seen += at + wanted.len();
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let problem = match self.pieces.recv_timeout(left) {
                Ok(piece) => {
                    self.bytes.extend(piece);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => "did not come in time",
                Err(RecvTimeoutError::Disconnected) => "did not come before the end",
            };
            let text = format!("'{text}' {problem} on {}", self.name);
            return Err(format!("{text}:\n{}", self.text()));
        }
    }

    /// As [`find`](Self::find), for tests.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_for(&mut self, text: &str, patience: Duration) {
        if let Err(problem) = self.find(text, patience) {
            panic!("{problem}");
        }
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When it does not come within `patience`.
    pub fn wait_for_end(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.bytes.extend(piece),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let name = self.name;
                    panic!("no end of {name} in time:\n{}", self.text())
                }
            }
        }
    }

    /// All of it so far.
    pub fn text(&mut self) -> String {
        self.bytes.extend(self.pieces.try_iter().flatten());
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
