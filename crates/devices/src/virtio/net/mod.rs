//! virtio-net: a NIC (virtio 1.2, 5.1).
//!
//! | queue          | what                                        |
//! |----------------|---------------------------------------------|
//! | 0, 2, …        | frames for the driver, of pair 0, 1, …      |
//! | 1, 3, …        | frames of the driver's                      |
//! | the last       | commands                                    |
//!
//! Each queue has a worker. `receive` and `transmit` carry frames between
//! their queue and a [`Backend`], `port` hears when that is ready, `filter`
//! has which frames the driver wants, `control` what else it asks for,
//! `handle` what they share and what the host changes: the cable, the limits,
//! and the backend itself, at any time.
//!
//! # The link
//!
//! ```text
//!                   set_backend
//!  nothing behind it ─────────────► something ──┐
//!        ▲                             │        │ cable in: up,
//!        └──── its other end is gone ──┘        │ and the driver is asked
//!                (NicHost::lost)                ▼ to announce itself
//! ```
//!
//! Without a link frames of both directions are thrown away, so that nobody
//! waits and nothing stale arrives later. A restored driver announces itself
//! too (GUEST_ANNOUNCE).
//!
//! # Frames
//!
//! What a driver leaves to its NIC is in each frame's header; `croft-net` has
//! who does it. A frame that does not fit its header is dropped, one without
//! a complete header stops the device.

mod config;
mod control;
mod filter;
mod handle;
mod port;
mod receive;
mod state;
#[cfg(test)]
mod tests;
mod transmit;

use std::sync::Arc;

use croft_isolate::Role;
use croft_net::Backend;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use super::{
    Kind, Notifier, QueueHandler, Service, TransportState, VirtioDevice, copy_config, service,
};
use crate::saved::{DeviceState, StateError, check_version, damaged};
use config::Features;
use control::Control;
pub use filter::{Addresses, Filter};
use handle::Hub;
pub use handle::NicHandle;
use receive::Receive;
use state::VERSION;
pub use state::VirtioNetState;
use transmit::Transmit;

const NAME: &str = "virtio-net";
/// Most pairs of queues of a NIC.
pub const PAIRS_MAX: u16 = 16;
/// What a worker carries before it looks around: not so long that a machine
/// that is paused waits.
const TURN_FRAMES: usize = 64;
const TURN_BYTES: usize = 512 << 10;

/// How much may pass in one direction; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second, not 0.
    pub bytes_per_second: Option<u64>,
    /// Frames per second, not 0.
    pub frames_per_second: Option<u64>,
}

/// How much a NIC may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// To the guest.
    pub inbound: Rate,
    /// From the guest.
    pub outbound: Rate,
}

/// What a NIC is to the guest.
#[derive(Debug)]
pub struct NicOptions {
    /// Its name for the host.
    pub name: String,
    /// Its address.
    pub mac: [u8; 6],
    /// The MTU that the driver is told.
    pub mtu: u16,
    /// Pairs of queues, 1 to [`PAIRS_MAX`].
    pub pairs: u16,
    /// How much it may do.
    pub limits: Limits,
    /// Its cable is plugged in.
    pub link: bool,
    /// Where frames go.
    pub backend: Option<Backend>,
}

/// Hears of a NIC's misfortune.
pub trait NicHost: Send + Sync {
    /// What was behind NIC `name` is gone; the link is down until something
    /// else comes ([`NicHandle::set_backend`]). Comes on a worker's thread
    /// and must not block.
    fn lost(&self, name: &str);
}

/// The device.
pub struct VirtioNet {
    hub: Arc<Hub>,
}

impl VirtioNet {
    /// A NIC as `options` say; `host` hears what becomes of it.
    pub fn new(options: NicOptions, host: Arc<dyn NicHost>) -> Self {
        let pairs = options.pairs.clamp(1, PAIRS_MAX);
        VirtioNet {
            hub: Hub::new(options, pairs, host),
        }
    }

    /// For changing it later.
    pub fn handle(&self) -> NicHandle {
        self.hub.handle()
    }

    fn pairs(&self) -> u16 {
        self.hub.pairs_max()
    }
}

impl VirtioDevice for VirtioNet {
    const KIND: Kind = Kind {
        name: NAME,
        id: VIRTIO_ID_NET as u16,
        // A network controller, Ethernet.
        class: 0x02_00_00,
    };

    fn role(&self) -> Role {
        Role::Net
    }

    fn features(&self) -> u64 {
        config::features(self.pairs())
    }

    fn queues(&self) -> u16 {
        2 * self.pairs() + 1
    }

    fn queue_size(&self) -> u16 {
        config::QUEUE_SIZE
    }

    fn config_len(&self) -> usize {
        config::LEN
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let hub = &self.hub;
        let config = config::bytes(hub.filter().mac, hub.status(), self.pairs(), hub.mtu());
        copy_config(&config, offset, data);
    }

    fn connect(&mut self, notifier: Notifier) {
        self.hub.set_notifier(notifier);
    }

    fn handler(&self, _queue: u16, features: u64) -> Box<dyn QueueHandler> {
        Box::new(Control {
            hub: self.hub.clone(),
            features: Features(features),
        })
    }

    fn service(&self, queue: u16, features: u64) -> Box<dyn Service> {
        let accepted = Features(features);
        self.hub.activate(accepted);
        let (hub, pair) = (self.hub.clone(), queue / 2);
        if queue >= 2 * accepted.pairs(self.pairs()) {
            // Without MQ the third queue is the one of commands (5.1.2).
            Box::new(service::Requests::new(queue, self.handler(queue, features)))
        } else if queue.is_multiple_of(2) {
            Box::new(Receive::new(hub, pair, accepted))
        } else {
            Box::new(Transmit::new(hub, pair, accepted))
        }
    }

    fn reset(&mut self) {
        self.hub.reset();
    }

    fn save(&self, transport: TransportState) -> DeviceState {
        let hub = &self.hub;
        let (offloads, announce) = hub.with_settings(|set| (set.offloads, set.announce));
        DeviceState::VirtioNet(VirtioNetState {
            version: VERSION,
            mtu: hub.mtu(),
            filter: Filter::clone(&hub.filter()),
            pairs: hub.pairs(),
            offloads,
            announce,
            transport,
        })
    }

    fn check<'a>(&self, state: &'a DeviceState) -> Result<&'a TransportState, StateError> {
        let DeviceState::VirtioNet(state) = state else {
            return Err(StateError::WrongDevice {
                device: NAME,
                found: state.kind(),
            });
        };
        check_version(NAME, state.version, VERSION)?;
        if !(1..=self.pairs()).contains(&state.pairs) {
            return Err(damaged(NAME, "it has another number of queues"));
        }
        if !state.filter.is_sound() {
            return Err(damaged(NAME, "its filter cannot be"));
        }
        if state.offloads & !self.features() != 0 {
            return Err(damaged(NAME, "its driver takes over what is not here"));
        }
        Ok(&state.transport)
    }

    fn restore(&mut self, state: &DeviceState) {
        if let DeviceState::VirtioNet(state) = state {
            self.hub.restore(state);
        }
    }
}
