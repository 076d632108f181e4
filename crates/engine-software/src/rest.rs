//! What a vCPU gives back that has nothing to do.
//!
//! A guest's start fills the caches of decoded and translated code; a server
//! that then waits for work uses little of it. Most hosts have many of those.
//!
//! ```text
//!             awake for more than 1/200 of a span
//!            ┌──────────────────────────────────┐
//!            ▼                                  │
//!  ┌──► span begins ── it is over ──► was it quiet? ── yes, LONG in all,
//!  │                                            │      and much is cached
//!  └──────────────── yes, not for LONG ◄────────┤            │
//!  └───────────────────────────────────────◄────┼── give all back
//! ```
//!
//! What such a guest goes on using is cached again and stays, unless it is
//! much: then the cost of making it anew is spread over `LONG`.

use std::time::{Duration, Instant};

use crate::cpu::Cpu;
use crate::stub;

/// How long a vCPU is watched before it is judged.
const SPAN: Duration = Duration::from_secs(5);
/// For how long it must have had nothing to do.
const LONG: Duration = Duration::from_secs(30);
/// Awake for more than this part of a span, it has something to do.
const AWAKE: u32 = 200;
/// Bytes of code, and instructions decoded, that are worth it.
const CODE: usize = 2 << 20;
const DECODED: usize = 1 << 15;

/// How much a vCPU sleeps.
#[derive(Debug)]
pub struct Rest {
    /// When the span began.
    start: Instant,
    /// Of it, asleep so far.
    asleep: Duration,
    /// Quiet spans before it, together.
    quiet: Duration,
}

impl Rest {
    /// Of a vCPU that is made at `now`.
    pub fn new(now: Instant) -> Self {
        Rest {
            start: now,
            asleep: Duration::ZERO,
            quiet: Duration::ZERO,
        }
    }

    /// It slept for `time`, until `now`. Whether it has had nothing to do for
    /// long, which is said once for each time it was.
    pub fn slept(&mut self, time: Duration, now: Instant) -> bool {
        self.asleep += time;
        let span = now.saturating_duration_since(self.start);
        if span < SPAN {
            return false;
        }
        let awake = span.saturating_sub(self.asleep);
        self.start = now;
        self.asleep = Duration::ZERO;
        if awake > span / AWAKE {
            self.quiet = Duration::ZERO;
            return false;
        }
        self.quiet += span;
        if self.quiet < LONG {
            return false;
        }
        self.quiet = Duration::ZERO;
        true
    }

    /// The longest sleep after which to ask again, from `now` on.
    pub fn patience(&self, now: Instant) -> Duration {
        let span = now.saturating_duration_since(self.start);
        (LONG - SPAN)
            .saturating_sub(self.quiet)
            .saturating_add(SPAN.saturating_sub(span))
            .max(SPAN)
    }
}

impl Cpu {
    /// Much is cached.
    pub fn has_much(&self) -> bool {
        let code = self.translator.as_ref().map_or(0, |t| t.bytes());
        code >= CODE || self.blocks.instructions() >= DECODED
    }

    /// Gives the memory of all decoded and translated code back to the host.
    pub fn give_back(&mut self) {
        self.flush_code();
        self.blocks.drop_old();
        if let Some(translator) = &mut self.translator {
            translator.drop_old();
        }
        stub::forget_unused();
        #[cfg(target_env = "gnu")]
        // SAFETY: a plain call of the C library's.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Sleeps that end each second, for `seconds`, `awake` of each. When rest
    /// was due, in seconds.
    fn watch(seconds: u32, awake: Duration) -> Vec<u32> {
        let start = Instant::now();
        let mut rest = Rest::new(start);
        (1..=seconds)
            .filter(|&n| rest.slept(SECOND - awake, start + n * SECOND))
            .collect()
    }

    #[test]
    fn who_sleeps_long_rests() {
        assert_eq!(watch(100, Duration::from_millis(1)), [30, 60, 90]);
    }

    #[test]
    fn who_works_a_little_does_not() {
        assert!(watch(1000, Duration::from_millis(10)).is_empty());
    }

    #[test]
    fn one_long_sleep_is_enough() {
        let start = Instant::now();
        let mut rest = Rest::new(start);
        let patience = rest.patience(start);
        assert_eq!(patience, LONG);
        assert!(rest.slept(patience, start + patience));
    }

    #[test]
    fn work_begins_it_anew() {
        let start = Instant::now();
        let mut rest = Rest::new(start);
        assert!(!rest.slept(29 * SECOND, start + 29 * SECOND));
        assert!(!rest.slept(4 * SECOND, start + 34 * SECOND));
        assert!(!rest.slept(29 * SECOND, start + 63 * SECOND));
        assert!(rest.slept(6 * SECOND, start + 69 * SECOND));
    }
}
