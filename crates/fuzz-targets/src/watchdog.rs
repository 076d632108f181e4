//! Ends runs that would not end by themselves.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use croft_engine::Kicker;

/// Longest a vCPU may take to follow a kick, on a busy host too.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Flag {
    over: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the run is over within `time`.
    fn over_within(&self, time: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), time, |over| !*over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Kicks a vCPU once `time` has passed, unless dropped before. A vCPU that
/// does not follow ends the process, which a fuzzer records.
pub struct Watchdog {
    flag: Arc<Flag>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts to count.
    pub fn new(kicker: Kicker, time: Duration) -> Self {
        let flag = Arc::new(Flag::default());
        let shared = flag.clone();
        let thread = thread::spawn(move || {
            if shared.over_within(time) {
                return;
            }
            kicker.kick();
            if !shared.over_within(PATIENCE) {
                eprintln!("a vCPU did not follow a kick for {PATIENCE:?}");
                std::process::abort();
            }
        });
        Watchdog {
            flag,
            thread: Some(thread),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.flag.lock() = true;
        self.flag.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
