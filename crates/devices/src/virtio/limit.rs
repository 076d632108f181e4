//! How much a device may do in a second: requests, or frames, and bytes.
//!
//! A request is let in while the time that those before it may take is not
//! more than [`BURST`] ahead of the clock; it then adds its own. So the rate
//! holds over any longer time, a request of any size is let in once, and
//! nothing has to count while nothing happens.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock;

/// What may be done at once after a pause.
const BURST: Duration = Duration::from_millis(50);
/// Shortest wait: that of the worker's clock.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// Longest, after which is looked again.
const WAIT_MAX: Duration = Duration::from_secs(1);
const SECOND: u128 = 1_000_000_000;

/// One of them: when what was let in is done at this rate.
#[derive(Debug)]
struct Rate {
    per_second: u64,
    done_at: Mutex<Instant>,
}

impl Rate {
    fn new(per_second: u64, now: Instant) -> Self {
        Rate {
            per_second: per_second.max(1),
            done_at: Mutex::new(now),
        }
    }

    fn wait(&self, now: Instant) -> Option<Duration> {
        let ahead = lock(&self.done_at).saturating_duration_since(now);
        let wait = ahead.checked_sub(BURST)?;
        Some(wait.clamp(WAIT_MIN, WAIT_MAX))
    }

    fn charge(&self, count: u64, now: Instant) {
        let nanoseconds = u128::from(count) * SECOND / u128::from(self.per_second);
        let time = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let mut done_at = lock(&self.done_at);
        let start = (*done_at).max(now);
        *done_at = start.checked_add(time).unwrap_or(start);
    }
}

/// Keeps a device within its limits, for all its queues together.
#[derive(Debug)]
pub struct Limiter {
    requests: Option<Rate>,
    bytes: Option<Rate>,
}

impl Limiter {
    /// With so many requests and bytes per second; `None` is without limit.
    pub fn new(requests: Option<u64>, bytes: Option<u64>) -> Self {
        let now = Instant::now();
        let rate = |limit: Option<u64>| limit.map(|limit| Rate::new(limit, now));
        Limiter {
            requests: rate(requests),
            bytes: rate(bytes),
        }
    }

    /// Lets a request of `bytes` in, or says for how long it has to wait.
    pub fn admit(&self, bytes: u64) -> Result<(), Duration> {
        if self.requests.is_none() && self.bytes.is_none() {
            return Ok(());
        }
        self.admit_at(bytes, Instant::now())
    }

    fn admit_at(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let rates = [(&self.requests, 1), (&self.bytes, bytes)];
        let rates = rates.map(|(rate, count)| rate.as_ref().map(|rate| (rate, count)));
        let rates = || rates.iter().flatten();
        if let Some(wait) = rates().filter_map(|(rate, _)| rate.wait(now)).max() {
            return Err(wait);
        }
        rates().for_each(|(rate, count)| rate.charge(*count, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets requests in for ten seconds; how many there were.
    fn run((requests, per_second): (Option<u64>, Option<u64>), bytes: u64) -> u64 {
        let limiter = Limiter::new(requests, per_second);
        let start = Instant::now();
        let mut now = start;
        let mut count = 0;
        while now < start + Duration::from_secs(10) {
            match limiter.admit_at(bytes, now) {
                Ok(()) => count += 1,
                Err(wait) => now += wait,
            }
        }
        count
    }

    #[test]
    fn rates_hold() {
        let limits = |requests, bytes| (requests, bytes);
        let about = |count: u64, wanted: u64| {
            assert!(
                count.abs_diff(wanted) <= wanted / 50 + 1,
                "{count}, not {wanted}"
            );
        };
        about(run(limits(Some(100), None), 1 << 30), 1000);
        about(run(limits(Some(5), None), 4096), 50);
        about(run(limits(None, Some(1 << 20)), 4096), 2560);
        // Larger than what a second has.
        about(run(limits(None, Some(1 << 20)), 2 << 20), 5);
        about(run(limits(Some(100), Some(1 << 20)), 64 << 10), 160);
        about(run(limits(Some(10), Some(1 << 20)), 64 << 10), 100);
        // A terabyte at a byte in a second is let in once.
        assert_eq!(run(limits(None, Some(1)), 1 << 40), 1);
        assert_eq!(run(limits(None, Some(1)), u64::MAX), 1);
    }
}
