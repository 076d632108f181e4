//! When something that has ended is started again.

use std::time::{Duration, Instant};

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST: Duration = Duration::from_secs(30);
/// Who lived so long has nothing to do with earlier ends.
const WELL: Duration = Duration::from_secs(60);

/// Longer and longer waits, until it lives for a while.
///
/// ```text
///   started ──► lives ──ended──► waits 100 ms, 200 ms, … 30 s ──► started
///                 │ 60 s: the next wait is the first again
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    started: Instant,
    next: Duration,
}

impl Retry {
    /// Of something that is started now.
    pub fn new(now: Instant) -> Self {
        Retry {
            started: now,
            next: FIRST,
        }
    }

    /// It has ended: how long to wait before it is started again.
    pub fn ended(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.started) >= WELL {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = self.next.saturating_mul(2).min(LONGEST);
        wait
    }

    /// It is started again.
    pub fn started(&mut self, now: Instant) {
        self.started = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_start_again() {
        let mut now = Instant::now();
        let mut retry = Retry::new(now);
        let waits: Vec<Duration> = (0..10).map(|_| retry.ended(now)).collect();
        assert_eq!(waits[..3], [1, 2, 4].map(|n| FIRST * n));
        assert_eq!(waits[9], LONGEST);
        retry.started(now);
        now += WELL;
        assert_eq!(retry.ended(now), FIRST);
    }
}
