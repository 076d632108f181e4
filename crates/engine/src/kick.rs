//! Getting a running vCPU's attention.

use std::fmt;
use std::sync::Arc;

/// What an engine does to make one vCPU return from `run`.
pub trait Kick: Send + Sync {
    /// Makes the vCPU's current, else its next, `run` return
    /// [`Stop::Kicked`](crate::Stop::Kicked), out of HLT too. Sticky: a kick
    /// that arrives between two runs is not lost; several count as one.
    fn kick(&self);
}

/// A cloneable handle that kicks one vCPU from any thread.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Kick>);

impl Kicker {
    /// Wraps an engine's kick.
    pub fn new(kick: Arc<dyn Kick>) -> Self {
        Kicker(kick)
    }

    /// See [`Kick::kick`].
    pub fn kick(&self) {
        self.0.kick();
    }
}

impl fmt::Debug for Kicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kicker")
    }
}
