//! Where devices read the time.

use std::sync::atomic::{AtomicU64, Ordering};

/// The machine's two clocks.
pub trait Clock: Send + Sync {
    /// Guest time in nanoseconds since the machine started. It stands still
    /// while the machine is paused, and never runs backwards.
    fn now_ns(&self) -> u64;

    /// Wall-clock time: nanoseconds since 1970-01-01 00:00:00 UTC. It may
    /// jump.
    fn unix_ns(&self) -> u64;
}

/// A clock that only moves when told, for tests.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: AtomicU64,
    unix: AtomicU64,
}

impl ManualClock {
    /// Guest time 0 at wall-clock time `unix_ns`.
    pub fn new(unix_ns: u64) -> Self {
        ManualClock {
            now: AtomicU64::new(0),
            unix: AtomicU64::new(unix_ns),
        }
    }

    /// Moves both clocks by `ns`.
    pub fn advance(&self, ns: u64) {
        self.now.fetch_add(ns, Ordering::Relaxed);
        self.unix.fetch_add(ns, Ordering::Relaxed);
    }

    /// Moves only the wall clock, as during a pause.
    pub fn advance_wall(&self, ns: u64) {
        self.unix.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now_ns(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn unix_ns(&self) -> u64 {
        self.unix.load(Ordering::Relaxed)
    }
}
