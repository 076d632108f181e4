//! virtio-console: a terminal, and named byte streams (virtio 1.2, 5.3).
//!
//! | queue        | what                                              |
//! |--------------|---------------------------------------------------|
//! | 0, 1         | port 0, to and from the guest                     |
//! | 2, 3         | control messages, to and from the guest           |
//! | 4, 5 and on  | the further ports                                 |
//!
//! Port 0 is a terminal, the guest's `hvc0`; the others are byte streams with
//! names. Each is a socket that the device is given. `control` has the
//! messages, `ports` the work, `handle` what the host changes. One worker
//! serves everything; no vCPU waits for it, and nothing is held here: what one
//! side does not take stays with the other one.
//!
//! A device with the terminal alone does not offer MULTIPORT: its size is then
//! in the configuration. The message that tells it otherwise has columns
//! before rows (5.3.6.2), which Linux read the other way round before 6.16.

mod control;
mod handle;
mod ports;
mod state;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::{Kind, Notifier, Service, TransportState, VirtioDevice, copy_config};
use crate::lock;
use crate::saved::{DeviceState, StateError, check_version, damaged};
use control::Control;
pub use handle::ConsoleHandle;
use handle::Hub;
use ports::Ports;
use state::VERSION;
pub use state::{PortState, VirtioConsoleState};

const NAME: &str = "virtio-console";
const QUEUE_SIZE: u16 = 64;
/// Feature bits (5.3.3).
const F_SIZE: u64 = 1 << 0;
const F_MULTIPORT: u64 = 1 << 1;
/// Most ports: one message between processes carries all their sockets.
pub const PORTS_MAX: usize = 8;
/// Longest name of a port in bytes.
pub const NAME_MAX: usize = 64;

/// A port that a console is made with.
#[derive(Debug)]
pub struct PortConfig {
    /// What the guest finds it by; the terminal's is not used.
    pub name: String,
    /// The host's side: a connected stream that nobody else reads or writes.
    pub socket: OwnedFd,
}

/// The device.
pub struct VirtioConsole {
    ports: Vec<Arc<PortConfig>>,
    hub: Arc<Hub>,
}

impl VirtioConsole {
    /// With a terminal, the first of `ports`, and up to [`PORTS_MAX`] ports
    /// in all.
    pub fn new(ports: Vec<PortConfig>) -> Self {
        let ports: Vec<_> = ports.into_iter().take(PORTS_MAX).map(Arc::new).collect();
        VirtioConsole {
            hub: Hub::new(ports.len()),
            ports,
        }
    }

    /// For changing the terminal's size.
    pub fn handle(&self) -> ConsoleHandle {
        self.hub.handle()
    }

    fn is_multiport(&self) -> bool {
        self.ports.len() > 1
    }
}

impl VirtioDevice for VirtioConsole {
    const KIND: Kind = Kind {
        name: NAME,
        id: VIRTIO_ID_CONSOLE as u16,
        // A communication controller, of another kind than those listed.
        class: 0x07_80_00,
    };

    fn features(&self) -> u64 {
        F_SIZE | if self.is_multiport() { F_MULTIPORT } else { 0 }
    }

    fn queues(&self) -> u16 {
        if self.is_multiport() {
            2 * (self.ports.len() as u16 + 1)
        } else {
            2
        }
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn config_len(&self) -> usize {
        // Columns, rows, ports; what an emergency writes is not offered.
        8
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let size = lock(&self.hub.control).size();
        let mut config = [0; 8];
        config[..2].copy_from_slice(&size.0.to_le_bytes());
        config[2..4].copy_from_slice(&size.1.to_le_bytes());
        config[4..].copy_from_slice(&(self.ports.len() as u32).to_le_bytes());
        copy_config(&config, offset, data);
    }

    fn connect(&mut self, notifier: Notifier) {
        self.hub.set_notifier(notifier);
    }

    fn one_worker(&self) -> bool {
        true
    }

    fn service(&self, _queue: u16, features: u64) -> Box<dyn Service> {
        let multiport = features & F_MULTIPORT != 0;
        self.hub.set_multiport(multiport);
        Box::new(Ports::new(&self.ports, self.hub.clone(), multiport))
    }

    fn reset(&mut self) {
        lock(&self.hub.control).reset();
    }

    fn save(&self, transport: TransportState) -> DeviceState {
        let control = lock(&self.hub.control);
        DeviceState::VirtioConsole(VirtioConsoleState {
            version: VERSION,
            ready: control.ready,
            columns: control.size().0,
            rows: control.size().1,
            ports: control.ports.clone(),
            transport,
        })
    }

    fn check<'a>(&self, state: &'a DeviceState) -> Result<&'a TransportState, StateError> {
        let DeviceState::VirtioConsole(state) = state else {
            return Err(StateError::WrongDevice {
                device: NAME,
                found: state.kind(),
            });
        };
        check_version(NAME, state.version, VERSION)?;
        if state.ports.len() != self.ports.len() {
            return Err(damaged(NAME, "it has another number of ports"));
        }
        Ok(&state.transport)
    }

    fn restore(&mut self, state: &DeviceState) {
        if let DeviceState::VirtioConsole(state) = state {
            *lock(&self.hub.control) = Control::from_state(state);
        }
    }
}
