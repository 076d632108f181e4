//! How a device reaches its driver without being asked.

use std::sync::Weak;
use std::sync::atomic::Ordering;

use super::Shared;
use crate::virtio::worker::Waker;

/// Tells a driver of changes and wakes the workers, from any thread. One
/// whose device is gone does nothing.
#[derive(Clone)]
pub struct Notifier {
    shared: Weak<Shared>,
    wakers: Vec<Waker>,
}

impl Notifier {
    pub(super) fn new(shared: Weak<Shared>, wakers: Vec<Waker>) -> Self {
        Notifier { shared, wakers }
    }

    /// The device-specific configuration is another one now (2.5.2, 4.1.4.3):
    /// the driver is interrupted, once it is at work and the machine runs.
    pub fn config_changed(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.config_generation.fetch_add(1, Ordering::SeqCst);
            shared.config_changed.store(true, Ordering::SeqCst);
            shared.tell_config();
        }
    }

    /// Something of the device's own happened that queue `queue`'s handler
    /// waits for ([`QueueHandler::ready`](crate::virtio::QueueHandler::ready)).
    pub fn wake(&self, queue: u16) {
        if let Some(waker) = self.wakers.get(usize::from(queue)) {
            waker.wake();
        }
    }
}
