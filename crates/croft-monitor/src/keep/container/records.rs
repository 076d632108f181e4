//! What a container prints, as records: when, by which stream, what.
//!
//! ```text
//! 2026-11-20T22:43:37.123456789Z stdout F a whole line, or the end of one
//! 2026-11-20T22:43:38.000000001Z stderr P the beginning of one
//! ```
//!
//! The form of the Kubernetes container runtime interface's logs, which other
//! programs read too. A piece is written when it comes: nothing waits in memory
//! for the end of its line.

use std::time::{SystemTime, UNIX_EPOCH};

use super::super::log::Log;

/// Most bytes of each of the two files.
const LENGTH: u64 = 8 << 20;
/// Longest piece of a line in a record.
const PIECE: usize = 16 << 10;

/// Of what stream something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Stream::Out => "stdout",
            Stream::Err => "stderr",
        }
    }
}

/// The records of a container.
#[derive(Debug)]
pub struct Records {
    log: Log,
}

impl Records {
    /// In the instance's directory.
    pub fn new(directory: &std::path::Path) -> Self {
        Records {
            log: Log::new(directory, "console.log", LENGTH),
        }
    }

    /// Appends what a stream has printed now.
    pub fn append(&mut self, stream: Stream, bytes: &[u8]) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = since.unwrap_or_default();
        let stamp = stamp(since.as_secs(), since.subsec_nanos());
        // Whole records in each write, so that a file ends with one.
        let mut text = Vec::with_capacity(bytes.len().saturating_add(64));
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in line.chunks(PIECE) {
                let (piece, whole) = match piece.strip_suffix(b"\n") {
                    Some(piece) => (piece, 'F'),
                    None => (piece, 'P'),
                };
                text.extend_from_slice(format!("{stamp} {} {whole} ", stream.word()).as_bytes());
                text.extend_from_slice(piece);
                text.push(b'\n');
            }
        }
        self.log.append(&text);
    }
}

/// Seconds after 1970, and nanoseconds, as RFC 3339 writes them.
fn stamp(seconds: u64, nanoseconds: u32) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hours, minutes, seconds) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{nanoseconds:09}Z")
}

/// The date so many days after 1970-01-01, of the Gregorian calendar: counted
/// in years that begin with March, so that leap days are their last.
fn civil(days: u64) -> (u64, u64, u64) {
    // Days from 0000-03-01 to 1970-01-01, of a span of 400 years, of 4.
    const EPOCH: u64 = 719_468;
    const SPAN: u64 = 146_097;
    let days = days.saturating_add(EPOCH);
    let (span, day) = (days / SPAN, days % SPAN);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // March to January are 31, 30, 31, 30, 31 days, again and again.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (span * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339_says() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000005Z"),
            (951_782_400, "2000-02-29T00:00:00.000000005Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000005Z"),
            (1_772_323_200, "2026-03-01T00:00:00.000000005Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000005Z"),
        ] {
            assert_eq!(stamp(seconds, 5), text);
        }
    }

    #[test]
    fn lines_and_what_is_none_yet() {
        let place = tempfile::tempdir().unwrap();
        let mut records = Records::new(place.path());
        records.append(Stream::Out, b"one\ntwo");
        records.append(Stream::Err, b"three\n\n");
        let text = fs::read_to_string(place.path().join("console.log")).unwrap();
        let rest: Vec<&str> = text
            .lines()
            .map(|line| line.split_once(' ').unwrap().1)
            .collect();
        assert_eq!(
            rest,
            [
                "stdout F one",
                "stdout P two",
                "stderr F three",
                "stderr F "
            ]
        );
    }
}
