//! pvpanic: the guest tells that it panicked. (QEMU, `docs/specs/pvpanic`.)
//!
//! | port | read             | write            |
//! |------|------------------|------------------|
//! | +0   | supported events | events, see below |
//!
//! The ACPI tables name it as `QEMU0001`.

mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::device::{Device, PortDevice, PortRange};
use crate::power::PowerSink;
use crate::saved::{DeviceState, StateError, check_version};
pub use state::PvpanicState;
use state::VERSION;

/// The guest panicked and stands still.
pub const PANICKED: u8 = 1 << 0;
/// The guest panicked and goes on with its own crash kernel.
pub const CRASH_LOADED: u8 = 1 << 1;

/// The device.
pub struct Pvpanic {
    port: u16,
    power: Arc<dyn PowerSink>,
}

impl Pvpanic {
    /// A notification port.
    pub fn new(port: u16, power: Arc<dyn PowerSink>) -> Self {
        Pvpanic { port, power }
    }
}

impl PortDevice for Pvpanic {
    fn port_ranges(&self) -> Vec<PortRange> {
        vec![self.port..=self.port]
    }

    fn port_read(&mut self, _port: u16, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn port_write(&mut self, _port: u16, data: &[u8]) {
        let events = data.first().map_or(0, |v| v & (PANICKED | CRASH_LOADED));
        if events != 0 {
            self.power.panicked(events);
        }
    }
}

impl Device for Pvpanic {
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        Some(self)
    }

    fn reset(&mut self) {}

    fn save(&mut self) -> DeviceState {
        DeviceState::Pvpanic(PvpanicState { version: VERSION })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Pvpanic(state) => check_version("pvpanic", state.version, VERSION),
            other => Err(StateError::WrongDevice {
                device: "pvpanic",
                found: other.kind(),
            }),
        }
    }
}
