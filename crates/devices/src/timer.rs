//! Device timers.
//!
//! A device with a timer owns an [`Alarm`] and sets its deadline. The bus
//! finds the earliest one without taking any device's lock. The machine runs
//! one thread:
//!
//! ```text
//! loop { wait until bus.next_deadline() or a wake; bus.expire(clock.now_ns()) }
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// No deadline.
const NEVER: u64 = u64::MAX;

/// Wakes the machine's timer thread because a deadline moved nearer. A wake
/// that arrives while the thread is not waiting must not be lost.
pub trait TimerWaker: Send + Sync {
    /// See [`TimerWaker`]. Called under a device's lock; must not block.
    fn wake(&self);
}

/// One device's deadline in guest nanoseconds. Clones are the same alarm.
#[derive(Clone)]
pub struct Alarm {
    deadline: Arc<AtomicU64>,
    waker: Arc<dyn TimerWaker>,
}

impl Alarm {
    /// An alarm without a deadline.
    pub fn new(waker: Arc<dyn TimerWaker>) -> Self {
        Alarm {
            deadline: Arc::new(AtomicU64::new(NEVER)),
            waker,
        }
    }

    /// Replaces the deadline; wakes the timer thread if it moved nearer.
    pub fn set(&self, deadline: Option<u64>) {
        let new = deadline.unwrap_or(NEVER);
        let old = self.deadline.swap(new, Ordering::SeqCst);
        if new < old {
            self.waker.wake();
        }
    }

    /// The deadline, if any.
    pub fn deadline(&self) -> Option<u64> {
        match self.deadline.load(Ordering::SeqCst) {
            NEVER => None,
            ns => Some(ns),
        }
    }

    /// Clears the deadline if it has passed at `now`, and says so.
    pub(crate) fn take_due(&self, now: u64) -> bool {
        self.deadline
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |ns| {
                (ns <= now && ns != NEVER).then_some(NEVER)
            })
            .is_ok()
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Alarm({:?})", self.deadline())
    }
}
