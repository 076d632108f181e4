//! Exit port of test suites, as QEMU's `isa-debug-exit`.
//!
//! | port   | read     | write                                        |
//! |--------|----------|----------------------------------------------|
//! | +0..+3 | all ones | end with exit status `(value << 1) \| 1`      |

mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::device::{Device, PortDevice, PortRange};
use crate::power::PowerSink;
use crate::saved::{DeviceState, StateError, check_version};
pub use state::DebugExitState;
use state::VERSION;

/// The device.
pub struct DebugExit {
    port: u16,
    power: Arc<dyn PowerSink>,
}

impl DebugExit {
    /// An exit port on four ports from `port`.
    pub fn new(port: u16, power: Arc<dyn PowerSink>) -> Self {
        DebugExit { port, power }
    }
}

impl PortDevice for DebugExit {
    fn port_ranges(&self) -> Vec<PortRange> {
        vec![self.port..=self.port.saturating_add(3)]
    }

    fn port_read(&mut self, _port: u16, _data: &mut [u8]) {}

    fn port_write(&mut self, _port: u16, data: &[u8]) {
        let mut value = [0; 4];
        for (byte, data) in value.iter_mut().zip(data) {
            *byte = *data;
        }
        self.power.debug_exit(u32::from_le_bytes(value) << 1 | 1);
    }
}

impl Device for DebugExit {
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        Some(self)
    }

    fn reset(&mut self) {}

    fn save(&mut self) -> DeviceState {
        DeviceState::DebugExit(DebugExitState { version: VERSION })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::DebugExit(state) => check_version("debug exit", state.version, VERSION),
            other => Err(StateError::WrongDevice {
                device: "debug exit",
                found: other.kind(),
            }),
        }
    }
}
