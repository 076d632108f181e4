//! A machine that stands still because the host failed at a disk.
//!
//! ```text
//!        a disk's request fails            after INTERVAL
//! none ─────────────────────────► stands ─────────────────► retries
//!   ▲                               │ ▲                      │   │
//!   │           the operator resumes│ └──────────────────────┘   │
//!   └───────────────────────────────┘      it fails again        │
//!   └────────────────────────────────────────────────────────────┘
//!                            nothing fails for TRIAL
//! ```
//!
//! The guest runs in none of these but the first. While a disk retries, only
//! the devices go on, and what they have done reaches the guest when it runs.

use std::time::{Duration, Instant};

/// Time between two attempts.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// How long an attempt lasts: a request that was possible is done by then, and
/// one that takes longer stops the machine once more.
const TRIAL: Duration = Duration::from_millis(200);

/// See the [module](self).
#[derive(Debug)]
pub struct Fault {
    /// [`INTERVAL`], but in tests.
    interval: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    None,
    Stands { look: Instant },
    Retries { look: Instant },
}

impl Fault {
    /// Nothing has failed yet.
    pub fn new(interval: Duration) -> Self {
        Fault {
            interval,
            state: State::None,
        }
    }

    /// Whether the machine must stand still.
    pub fn holds(&self) -> bool {
        !matches!(self.state, State::None)
    }

    /// When something is to be done.
    pub fn look(&self) -> Option<Instant> {
        match self.state {
            State::None => None,
            State::Stands { look } | State::Retries { look } => Some(look),
        }
    }

    /// A request failed; true if none had before. The devices must not be
    /// retrying.
    pub fn happened(&mut self) -> bool {
        let first = !self.holds();
        let look = Instant::now() + self.interval;
        self.state = State::Stands { look };
        first
    }

    /// The devices begin to try again.
    pub fn retry(&mut self) {
        let look = Instant::now() + TRIAL;
        self.state = State::Retries { look };
    }

    /// Whether they do.
    pub fn retries(&self) -> bool {
        matches!(self.state, State::Retries { .. })
    }

    /// They stop; false if they did not try.
    pub fn retry_ends(&mut self) -> bool {
        let retries = self.retries();
        if retries {
            let look = Instant::now() + self.interval;
            self.state = State::Stands { look };
        }
        retries
    }

    /// The machine goes on; false if it was not standing because of a fault.
    pub fn ends(&mut self) -> bool {
        let held = self.holds();
        self.state = State::None;
        held
    }
}
