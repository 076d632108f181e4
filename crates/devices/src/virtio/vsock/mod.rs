//! virtio-vsock: streams between guest and host, without a network (virtio
//! 1.2, 5.10).
//!
//! | queue | what                                             |
//! |-------|--------------------------------------------------|
//! | 0     | rx: packets for the guest, into its buffers      |
//! | 1     | tx: packets of the guest's                       |
//! | 2     | event: after a restore, that connections are gone |
//!
//! `packet` has the format, `connection` what is true of one connection,
//! `switchboard` the table of them and the work, `handle` the host's side: each
//! connection is a socket that the device is given. One worker serves all
//! queues and sockets; no vCPU waits for it.
//!
//! Connections do not outlive a driver, nor a save: a restored guest is told
//! (TRANSPORT_RESET) and closes its own ends.

mod connection;
mod handle;
mod packet;
mod state;
mod switchboard;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::{Kind, Notifier, Service, TransportState, VirtioDevice, copy_config};
use crate::saved::{DeviceState, StateError, check_version};
use handle::Hub;
pub use handle::{VsockHandle, VsockHost};
use state::VERSION;
pub use state::VirtioVsockState;
use switchboard::{QUEUES, Switchboard};

const NAME: &str = "virtio-vsock";
const QUEUE_SIZE: u16 = 128;
/// Streams are supported (5.10.3).
const F_STREAM: u64 = 1 << 0;
/// The least context id that a guest can have (5.10.4).
pub const CID_MIN: u32 = 3;
/// The greatest: the one above is reserved.
pub const CID_MAX: u32 = u32::MAX - 1;

/// The device.
pub struct VirtioVsock {
    cid: u32,
    hub: Arc<Hub>,
    /// The driver must hear that its connections are gone.
    restored: AtomicBool,
}

impl VirtioVsock {
    /// For a guest with context id `cid`, [`CID_MIN`] to [`CID_MAX`]; `host`
    /// is asked for the connections that the guest wants.
    pub fn new(cid: u32, host: Arc<dyn VsockHost>) -> Self {
        VirtioVsock {
            cid: cid.clamp(CID_MIN, CID_MAX),
            hub: Hub::new(host),
            restored: AtomicBool::new(false),
        }
    }

    /// For handing sockets to it.
    pub fn handle(&self) -> VsockHandle {
        self.hub.handle()
    }
}

impl VirtioDevice for VirtioVsock {
    const KIND: Kind = Kind {
        name: NAME,
        id: VIRTIO_ID_VSOCK as u16,
        // A communication controller, of another kind than those listed.
        class: 0x07_80_00,
    };

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queues(&self) -> u16 {
        QUEUES
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn config_len(&self) -> usize {
        8
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn connect(&mut self, notifier: Notifier) {
        self.hub.set_notifier(notifier);
    }

    fn one_worker(&self) -> bool {
        true
    }

    fn service(&self, _queue: u16, _features: u64) -> Box<dyn Service> {
        let restored = self.restored.swap(false, Ordering::SeqCst);
        Box::new(Switchboard::new(self.cid, self.hub.clone(), restored))
    }

    fn restore(&mut self, state: &DeviceState) {
        // One that comes later never had a connection.
        let at_work = match state {
            DeviceState::VirtioVsock(state) => state.transport.driver_at_work(),
            _ => false,
        };
        self.restored.store(at_work, Ordering::SeqCst);
    }

    fn save(&self, transport: TransportState) -> DeviceState {
        DeviceState::VirtioVsock(VirtioVsockState {
            version: VERSION,
            transport,
        })
    }

    fn check<'a>(&self, state: &'a DeviceState) -> Result<&'a TransportState, StateError> {
        match state {
            DeviceState::VirtioVsock(state) => {
                check_version(NAME, state.version, VERSION)?;
                Ok(&state.transport)
            }
            other => Err(StateError::WrongDevice {
                device: NAME,
                found: other.kind(),
            }),
        }
    }
}
