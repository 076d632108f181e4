//! Timing.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::lines::Line;

/// Calls that are timed, at least; one more goes before them, untimed.
const LEAST: usize = 3;
/// Calls that are timed, at most.
const MOST: usize = 31;
/// Enough time for a line that can be repeated within it.
const ENOUGH: Duration = Duration::from_millis(60);

/// What a line gave.
pub struct Result {
    /// Of one operation; the median of the calls.
    pub nanoseconds: f64,
    pub checksum: u64,
}

/// Does a line's work until it is known how long it takes.
pub fn measure(line: &Line, directory: &Path) -> io::Result<Result> {
    let mut work = (line.prepare)(directory)?;
    let checksum = work()?;
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < LEAST || (times.len() < MOST && begin.elapsed() < ENOUGH) {
        let start = Instant::now();
        let again = work()?;
        times.push(start.elapsed());
        if again != checksum {
            let text = format!("checksum {again:016x} after {checksum:016x}");
            return Err(io::Error::other(text));
        }
    }
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(Result {
        nanoseconds: median.as_nanos() as f64 / line.operations as f64,
        checksum,
    })
}
