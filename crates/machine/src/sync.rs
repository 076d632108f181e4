//! Locks and signals whose holders may have panicked: what they guard stays
//! consistent, since every change to it is one assignment.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A value shared by threads.
pub type Shared<T> = Mutex<T>;

/// Takes a lock.
pub fn lock<T: ?Sized>(shared: &Shared<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value with a wait for its change.
#[derive(Debug, Default)]
pub struct Signal<T> {
    value: Shared<T>,
    changed: Condvar,
}

impl<T> Signal<T> {
    /// Changes the value and wakes whoever waits.
    pub fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut lock(&self.value));
        self.changed.notify_all();
    }

    /// Waits until `ready` has an answer.
    pub fn wait<R>(&self, mut ready: impl FnMut(&mut T) -> Option<R>) -> R {
        let mut value = lock(&self.value);
        loop {
            if let Some(answer) = ready(&mut value) {
                return answer;
            }
            let waited = self.changed.wait(value);
            value = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until `ready` has an answer, `timeout` at most.
    pub fn wait_for<R>(
        &self,
        timeout: Duration,
        mut ready: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        let end = std::time::Instant::now() + timeout;
        let mut value = lock(&self.value);
        loop {
            if let Some(answer) = ready(&mut value) {
                return Some(answer);
            }
            let left = end.checked_duration_since(std::time::Instant::now())?;
            let waited = self.changed.wait_timeout(value, left);
            (value, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
