//! What the host changes of a console.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::control::Control;
use crate::lock;
use crate::virtio::Notifier;

/// The operator's side of a console; clones are of the same one.
#[derive(Clone)]
pub struct ConsoleHandle(Arc<Hub>);

impl ConsoleHandle {
    /// The terminal has this size now; the guest's programs hear of it.
    pub fn resize(&self, columns: u16, rows: u16) {
        if lock(&self.0.control).set_size(columns, rows)
            && let Some(notifier) = self.0.notifier.get()
        {
            if self.0.multiport.load(Ordering::SeqCst) {
                notifier.wake(0);
            } else {
                notifier.config_changed();
            }
        }
    }
}

impl std::fmt::Debug for ConsoleHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConsoleHandle")
    }
}

/// What device, service and handle share.
pub struct Hub {
    pub control: Mutex<Control>,
    /// The driver takes messages.
    multiport: AtomicBool,
    notifier: OnceLock<Notifier>,
}

impl Hub {
    pub fn new(ports: usize) -> Arc<Self> {
        Arc::new(Hub {
            control: Mutex::new(Control::new(ports)),
            multiport: AtomicBool::new(false),
            notifier: OnceLock::new(),
        })
    }

    pub fn handle(self: &Arc<Self>) -> ConsoleHandle {
        ConsoleHandle(self.clone())
    }

    pub fn set_multiport(&self, multiport: bool) {
        self.multiport.store(multiport, Ordering::SeqCst);
    }

    pub fn set_notifier(&self, notifier: Notifier) {
        // It comes once.
        let _ = self.notifier.set(notifier);
    }
}
