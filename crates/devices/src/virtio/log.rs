//! Lines for the operator, of which a guest cannot cause too many.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lock;

/// Takes lines for the operator. Called from any thread under a device's
/// lock; must not block.
pub trait LogSink: Send + Sync {
    /// One line, without its end.
    fn log(&self, line: &str);
}

/// Lines at once.
const BURST: u32 = 10;
/// One more line each.
const REFILL: Duration = Duration::from_secs(5);

struct Budget {
    left: u32,
    refilled: Instant,
    dropped: u64,
}

/// A device's own log: each line begins with its name, and lines that come
/// too fast are counted instead.
pub struct RateLimitedLog {
    name: String,
    sink: Arc<dyn LogSink>,
    budget: Mutex<Budget>,
}

impl RateLimitedLog {
    /// For device `name`.
    pub fn new(name: String, sink: Arc<dyn LogSink>) -> Self {
        RateLimitedLog {
            name,
            sink,
            budget: Mutex::new(Budget {
                left: BURST,
                refilled: Instant::now(),
                dropped: 0,
            }),
        }
    }

    /// Logs a line, or drops it.
    pub fn log(&self, text: &str) {
        self.log_at(text, Instant::now());
    }

    fn log_at(&self, text: &str, now: Instant) {
        let mut budget = lock(&self.budget);
        let since = now.saturating_duration_since(budget.refilled);
        let periods = since.as_secs() / REFILL.as_secs();
        if periods > 0 {
            let more = u32::try_from(periods).unwrap_or(BURST);
            budget.left = budget.left.saturating_add(more).min(BURST);
            budget.refilled = now;
        }
        if budget.left == 0 {
            budget.dropped += 1;
            return;
        }
        budget.left -= 1;
        let name = &self.name;
        match std::mem::take(&mut budget.dropped) {
            0 => self.sink.log(&format!("{name}: {text}")),
            n => self
                .sink
                .log(&format!("{name}: {text} ({n} lines were left out before)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(Mutex<Vec<String>>);

    impl LogSink for Count {
        fn log(&self, line: &str) {
            lock(&self.0).push(line.to_owned());
        }
    }

    #[test]
    fn a_flood_is_cut_off() {
        let sink = Arc::new(Count(Mutex::default()));
        let log = RateLimitedLog::new("disk0".into(), sink.clone());
        let now = lock(&log.budget).refilled;
        for _ in 0..1000 {
            log.log_at("no", now);
        }
        assert_eq!(lock(&sink.0).len(), BURST as usize);
        log.log_at("yes", now + REFILL);
        let last = lock(&sink.0).pop().unwrap();
        assert_eq!(last, "disk0: yes (990 lines were left out before)");
    }
}
