//! The thread on which devices' timers expire.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use croft_devices::{Bus, Clock, TimerWaker};
use croft_isolate::{Role, spawn};

use crate::sync::Signal;

#[derive(Debug, Default)]
struct Flags {
    woken: bool,
    running: bool,
    closed: bool,
}

/// Wakes the timer thread.
#[derive(Debug, Default)]
pub struct TimerSignal(Signal<Flags>);

impl TimerWaker for TimerSignal {
    fn wake(&self) {
        self.0.change(|flags| flags.woken = true);
    }
}

impl TimerSignal {
    /// Whether guest time runs; while it does not, nothing expires.
    pub fn set_running(&self, running: bool) {
        self.0.change(|flags| {
            flags.running = running;
            flags.woken = true;
        });
    }
}

/// The timer thread.
pub struct Timers {
    signal: Arc<TimerSignal>,
    thread: JoinHandle<()>,
}

impl Timers {
    /// Starts it, with guest time standing still.
    pub fn start(
        bus: Arc<Bus>,
        clock: Arc<dyn Clock>,
        signal: Arc<TimerSignal>,
    ) -> std::io::Result<Self> {
        let shared = signal.clone();
        let thread = spawn(Role::Timers, "timers", move || run(&bus, &*clock, &shared))?;
        Ok(Timers { signal, thread })
    }

    /// Ends it.
    pub fn finish(self) {
        self.signal.0.change(|flags| flags.closed = true);
        let _ = self.thread.join();
    }
}

fn run(bus: &Bus, clock: &dyn Clock, signal: &TimerSignal) {
    enum Next {
        Look,
        Close,
    }
    let next = |flags: &mut Flags| {
        if flags.closed {
            return Some(Next::Close);
        }
        let look = flags.running && std::mem::take(&mut flags.woken);
        look.then_some(Next::Look)
    };
    loop {
        // The deadline is read before the wait: a nearer one that is set
        // meanwhile leaves `woken` behind.
        let wait = bus
            .next_deadline()
            .map(|deadline| Duration::from_nanos(deadline.saturating_sub(clock.now_ns())));
        let running = signal
            .0
            .wait_for(Duration::ZERO, |flags| Some(flags.running));
        let answer = match wait {
            Some(wait) if running == Some(true) => signal.0.wait_for(wait, next),
            _ => Some(signal.0.wait(next)),
        };
        match answer {
            Some(Next::Close) => return,
            Some(Next::Look) | None => bus.expire(clock.now_ns()),
        }
    }
}
