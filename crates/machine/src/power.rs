//! The guest's own requests: power-off, reset, panic, test exit.

use std::sync::Arc;

use croft_devices::PowerSink;
use croft_devices::pvpanic::CRASH_LOADED;

use crate::console::ConsoleBackend;
use crate::events::{Event, Events};
use crate::sync::{Shared, lock};

/// What a guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// S5.
    Off,
    /// A reset of the whole machine.
    Reset,
    /// A test suite's exit status.
    DebugExit(u32),
}

/// Keeps the guest's first request until the owner takes it. Whatever a guest
/// writes again and again costs one event.
pub struct PowerSwitch {
    request: Shared<Option<PowerRequest>>,
    events: Events,
    log: Arc<dyn ConsoleBackend>,
    panicked: Shared<bool>,
}

impl PowerSwitch {
    pub fn new(events: Events, log: Arc<dyn ConsoleBackend>) -> Self {
        PowerSwitch {
            request: Shared::default(),
            events,
            log,
            panicked: Shared::default(),
        }
    }

    /// The guest has panicked since it was started.
    pub fn has_panicked(&self) -> bool {
        *lock(&self.panicked)
    }

    /// The request, if there is one; the next one counts again.
    pub fn take(&self) -> Option<PowerRequest> {
        *lock(&self.panicked) = false;
        lock(&self.request).take()
    }

    fn ask(&self, request: PowerRequest) {
        let mut first = lock(&self.request);
        if first.is_none() {
            *first = Some(request);
            // Without an owner the machine has ended already.
            let _ = self.events.send(Event::Power);
        }
    }
}

impl PowerSink for PowerSwitch {
    fn power_off(&self) {
        self.ask(PowerRequest::Off);
    }

    fn reset(&self) {
        self.ask(PowerRequest::Reset);
    }

    fn panicked(&self, events: u8) {
        // Once for each start: a guest can write the port for ever.
        if !std::mem::replace(&mut *lock(&self.panicked), true) {
            self.log.panicked(events & CRASH_LOADED != 0);
            self.log.log("the guest reported that its kernel panicked");
        }
    }

    fn debug_exit(&self, status: u32) {
        self.ask(PowerRequest::DebugExit(status));
    }
}
