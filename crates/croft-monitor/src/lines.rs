//! What the payload says outside the protocol, line by line.

use std::io::{ErrorKind, Read};

use croft_isolate::trap;

/// Longest line passed on, in bytes.
const LINE: usize = 1000;

/// A reader of lines of bounded length.
#[derive(Debug, Default)]
pub struct Lines {
    /// The beginning of a line.
    rest: Vec<u8>,
    ended: bool,
    /// What the payload's jail said that it refused.
    refused: Option<String>,
}

impl Lines {
    /// Whether everything was read.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// What the payload's jail said that it refused; not among the lines.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Reads once, and returns the lines that are complete: what could upset
    /// a terminal is escaped.
    pub fn read(&mut self, mut source: impl Read) -> Vec<String> {
        let mut buffer = [0; 4096];
        match source.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => self.rest.extend(buffer.iter().take(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.ended = true,
        }
        let mut lines = Vec::new();
        while !self.rest.is_empty() {
            let end = self.rest.iter().position(|byte| *byte == b'\n');
            let line: Vec<u8> = match end {
                Some(end) => self.rest.drain(..=end).collect(),
                None if self.rest.len() > LINE || self.ended => std::mem::take(&mut self.rest),
                None => break,
            };
            let text = String::from_utf8_lossy(&line);
            let text: String = text.trim_end().chars().take(LINE).collect();
            if let Some(what) = trap::refused(&text) {
                self.refused = Some(what.escape_debug().to_string());
            } else if !text.is_empty() {
                lines.push(text.escape_debug().to_string());
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_complete_bounded_and_plain() {
        let mut lines = Lines::default();
        assert_eq!(lines.read(&b"one\ntw"[..]), ["one"]);
        assert_eq!(lines.read(&b"o\x1b[2J\n\n"[..]), ["two\\u{1b}[2J"]);
        assert!(lines.read(&[b'x'; 900][..]).is_empty());
        let long = lines.read(&[b'x'; 900][..]);
        assert_eq!(long.len(), 1);
        assert_eq!(long[0].len(), LINE);
        assert!(lines.read(&b"last"[..]).is_empty());
        assert_eq!(lines.read(&b""[..]), ["last"]);
        assert!(lines.ended());
    }

    #[test]
    fn the_jails_word_is_kept_apart() {
        let mut lines = Lines::default();
        let text = b"one\njail: thread a called b\n";
        assert_eq!(lines.read(&text[..]), ["one"]);
        assert_eq!(lines.refused(), Some("thread a called b"));
    }
}
