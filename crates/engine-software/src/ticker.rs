//! Wakes vCPUs up when their timers are due.
//!
//! A vCPU that interprets compares its timer with the clock every few blocks.
//! Translated code does not: it looks at its attention word only. One thread
//! for all vCPUs of a partition sleeps until the first timer is due and sets
//! the word.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use croft_isolate::{Role, spawn};

use crate::shared::{VcpuShared, attention, lock};

#[derive(Default)]
struct State {
    /// When each vCPU's timer is due.
    due: Vec<Option<Instant>>,
    /// When the thread will look next by itself.
    next: Option<Instant>,
    over: bool,
}

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

/// The thread, until this is dropped.
pub struct Ticker(Arc<Inner>);

impl Ticker {
    /// Starts it for `vcpus`.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn start(vcpus: Vec<Arc<VcpuShared>>) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            state: Mutex::new(State {
                due: vec![None; vcpus.len()],
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        let ticker = Ticker(inner.clone());
        spawn(Role::Timers, "ticker", move || inner.run(&vcpus))?;
        Ok(ticker)
    }

    /// vCPU `index` wants attention in `after`, or never.
    pub fn set(&self, index: u32, after: Option<Duration>) {
        // A timer centuries ahead is none.
        let due = after.and_then(|after| Instant::now().checked_add(after));
        let mut state = lock(&self.0.state);
        let Some(slot) = state.due.get_mut(index as usize) else {
            return;
        };
        *slot = due;
        if due.is_some_and(|due| state.next.is_none_or(|next| due < next)) {
            state.next = due;
            self.0.changed.notify_one();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        lock(&self.0.state).over = true;
        self.0.changed.notify_one();
    }
}

impl Inner {
    fn run(&self, vcpus: &[Arc<VcpuShared>]) {
        let mut state = lock(&self.state);
        while !state.over {
            let now = Instant::now();
            for (due, vcpu) in state.due.iter_mut().zip(vcpus) {
                if due.is_some_and(|due| due <= now) {
                    *due = None;
                    vcpu.notify(attention::INTERRUPT);
                }
            }
            state.next = state.due.iter().flatten().min().copied();
            state = match state.next {
                Some(next) => {
                    let waited = self.changed.wait_timeout(state, next - now);
                    waited.unwrap_or_else(|e| e.into_inner()).0
                }
                None => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(|e| e.into_inner())
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;
    use std::thread;

    #[test]
    fn the_earlier_timer_comes_first_and_a_dropped_one_not_at_all() {
        let vcpus: Vec<_> = (0..3)
            .map(|n| Arc::new(VcpuShared::new(n, 40).unwrap()))
            .collect();
        let ticker = Ticker::start(vcpus.clone()).unwrap();
        ticker.set(0, Some(Duration::from_millis(30)));
        ticker.set(1, Some(Duration::from_millis(5)));
        // Not due yet when it is dropped, however late that is.
        ticker.set(2, Some(Duration::from_secs(3600)));
        ticker.set(2, None);
        assert_eq!(lock(&ticker.0.state).due[2], None);
        let seen = |n: usize| vcpus[n].attention().load(Ordering::SeqCst) != 0;
        while !seen(1) {
            thread::yield_now();
        }
        while !seen(0) {
            thread::yield_now();
        }
        assert!(!seen(2));
    }
}
