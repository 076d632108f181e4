//! Virtio devices on PCI (Virtual I/O Device Version 1.2, "virtio 1.2").
//!
//! A device of one kind ([`blk`], [`net`], [`rng`], [`balloon`], [`fs`],
//! [`vsock`], [`console`]) is a [`VirtioDevice`]: what it offers, and a [`QueueHandler`]
//! that serves one request, or a [`Service`] for all its queues together.
//! Everything that is
//! the same in all of them is [`transport`]: configuration space, registers,
//! negotiation, interrupts, saving.
//!
//! # Threads
//!
//! ```text
//! vCPU threads ──registers──► VirtioPci        worker, one per queue
//!      │                          │ activate, reset     │
//!      └────────doorbell──────────┼────────────────────►│ pop ─► serve ─► push
//!                                 ▼                      │
//!                        Link (slot, wake) ◄─────────────┘ interrupt
//! ```
//!
//! Requests are served on worker threads only, one for each queue or one for
//! all of a device's. A worker holds its queue's
//! lock while it serves; a vCPU thread never waits for that lock while a
//! queue is in use. What needs the queue (a reset by the guest) is therefore
//! finished by whichever of the guest's following accesses finds it free,
//! and until then the status register does not read as zero. A request that
//! cannot be served yet (a rate limit, a host whose disk is full) is put back
//! ([`QueueError::Later`]) and the lock let go, so that nothing waits for it.
//!
//! # Guests that break the rules
//!
//! A ring or descriptor that points outside RAM, a chain that loops or is
//! longer than its queue, an index that runs ahead, registers of an enabled
//! queue that change: the device stops, says so in the log and in its status
//! (DEVICE_NEEDS_RESET), and works again after a reset (2.1.2).

pub mod balloon;
pub mod blk;
pub mod console;
pub mod fs;
mod limit;
mod log;
pub mod net;
pub mod queue;
pub mod rng;
pub mod service;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod vsock;
mod worker;

use std::sync::Arc;

use croft_isolate::Role;
use croft_memory::GuestRam;
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::{InterruptSink, LineInput};
use crate::saved::{DeviceState, StateError};
pub use log::{LogSink, RateLimitedLog};
pub use queue::{Buffers, Chain, QueueError};
pub use service::{Next, Queues, Service};
pub use transport::{Notifier, TransportState, VirtioPci};

/// Gives out event objects for writes to guest-physical addresses:
/// implemented by the machine over its partition. Called under a device's
/// lock, also on vCPU threads.
pub trait DoorbellRegistry: Send + Sync {
    /// An event object that guest writes of any size to `address` signal
    /// instead of reaching the bus; `None` when there can be none, and they
    /// reach the bus.
    fn add(&self, address: u64) -> Option<EventFd>;

    /// Writes to `address` reach the bus again.
    fn remove(&self, address: u64);
}

/// What a virtio device needs of its machine.
pub struct VirtioHost {
    /// For messages: the name under which the device is added to the bus.
    pub name: String,
    /// Guest memory.
    pub ram: GuestRam,
    /// Where messages go.
    pub interrupts: Arc<dyn InterruptSink>,
    /// The line of the slot's pin A, for drivers without MSI-X.
    pub line: Option<LineInput>,
    /// Event objects for notifications.
    pub doorbells: Arc<dyn DoorbellRegistry>,
    /// Lines for the operator.
    pub log: Arc<dyn LogSink>,
}

/// What a device of one kind is on PCI (4.1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Kind of [`DeviceState`].
    pub name: &'static str,
    /// Virtio device type.
    pub id: u16,
    /// PCI class, subclass, programming interface.
    pub class: u32,
}

/// A virtio device of one kind, apart from its transport.
pub trait VirtioDevice: Send {
    /// What it is.
    const KIND: Kind;

    /// What the threads that serve its queues may do.
    fn role(&self) -> Role {
        Role::Device
    }

    /// Feature bits of this kind (0–23, 50–127); the transport adds its own.
    fn features(&self) -> u64;

    /// Number of queues, at least 1.
    fn queues(&self) -> u16;

    /// Size of its queues, a power of two.
    fn queue_size(&self) -> u16;

    /// Length of the device-specific configuration in bytes, constant.
    fn config_len(&self) -> usize;

    /// Reads the device-specific configuration from byte `offset` on; what
    /// lies behind its end reads as zeros, as `data` does before. Who changes
    /// it says so ([`Notifier::config_changed`]).
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// The driver writes to the device-specific configuration. What it may
    /// not write is ignored.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// Gets the means to reach the driver without being asked; once, before
    /// anything else.
    fn connect(&mut self, _notifier: Notifier) {}

    /// Whether one worker serves all queues together, by one
    /// [`service`](Self::service). Otherwise each queue has its own.
    fn one_worker(&self) -> bool {
        false
    }

    /// What serves the requests of queue `queue` from now on, under the
    /// negotiated `features`. Every reset asks for new ones. Either this or
    /// [`service`](Self::service) is a device's own.
    fn handler(&self, _queue: u16, _features: u64) -> Box<dyn QueueHandler> {
        Box::new(Unserved)
    }

    /// What a worker runs from now on for queue `queue`, or for all of them
    /// (`queue` is then 0), under the negotiated `features`. Every reset asks
    /// for new ones.
    fn service(&self, queue: u16, features: u64) -> Box<dyn Service> {
        Box::new(service::Requests::new(queue, self.handler(queue, features)))
    }

    /// The driver or the machine reset it: no handler is in use any more.
    fn reset(&mut self) {}

    /// The state of device and transport together.
    fn save(&self, transport: TransportState) -> DeviceState;

    /// The transport's part of a state that this device could have saved.
    fn check<'a>(&self, state: &'a DeviceState) -> Result<&'a TransportState, StateError>;

    /// Takes its own part of a state over that [`check`](Self::check) found
    /// good. No handler is in use; new ones are asked for afterwards.
    fn restore(&mut self, _state: &DeviceState) {}
}

/// Leaves all requests where they are.
struct Unserved;

impl QueueHandler for Unserved {
    fn ready(&mut self) -> bool {
        false
    }

    fn serve(&mut self, _ram: &GuestRam, _chain: &Chain) -> Result<u32, QueueError> {
        Ok(0)
    }
}

/// Copies what `config` has from byte `offset` on.
pub(crate) fn copy_config(config: &[u8], offset: usize, data: &mut [u8]) {
    let rest = config.get(offset..).unwrap_or_default();
    data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
}

/// Serves the requests of one queue, on the queue's worker thread.
pub trait QueueHandler: Send {
    /// Whether the next request would be served now. One that waits for
    /// something of the device's own stays in the queue, until the worker is
    /// woken ([`Notifier::wake`]).
    fn ready(&mut self) -> bool {
        true
    }

    /// Serves one request and returns how many bytes it wrote to the
    /// request's device-writable part. An error says that the driver broke
    /// the rules: the device stops. Requests that fail for another reason
    /// say so to the driver in their own way. [`QueueError::Later`] is the
    /// exception: the request stays in the queue and is served once more.
    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> Result<u32, QueueError>;
}
