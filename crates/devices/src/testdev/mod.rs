//! Test device of kvm-unit-tests, as QEMU's `pc-testdev`.
//!
//! | place                  | read               | write                     |
//! |------------------------|--------------------|---------------------------|
//! | ports 0xE0–0xE3        | what was written   | kept                      |
//! | ports 0xE4–0xE7        | all ones           | nothing: QEMU unmaps a page |
//! | ports 0x2000–0x2017    | all ones           | drives line `port - 0x2000`: high unless zero |
//! | 64 KiB at 0xFF00_0000  | memory             | memory                    |

mod state;
#[cfg(test)]
mod tests;

use crate::device::{Device, MmioDevice, MmioRange, PortDevice, PortRange};
use crate::interrupt::IrqLine;
use crate::platform::TESTDEV_MMIO_BASE;
use crate::saved::{DeviceState, StateError, check_version, damaged};
pub use state::TestDevState;
use state::VERSION;

/// Number of interrupt lines that the device drives.
pub const LINES: u32 = 24;

const RAM_PORT: u16 = 0xE0;
const FLUSH_PORT: u16 = 0xE4;
const FLUSH_LAST: u16 = 0xE7;
const LINE_PORT: u16 = 0x2000;
const LINE_LAST: u16 = LINE_PORT + LINES as u16 - 1;
const MEMORY_LEN: usize = 64 << 10;

/// The device.
pub struct TestDev {
    lines: Vec<IrqLine>,
    ports: [u8; 4],
    memory: Vec<u8>,
}

impl TestDev {
    /// A test device that drives the lines `line` makes for each number below
    /// [`LINES`]. Other devices drive some of them too: this one only ever
    /// touches a line when the guest asks.
    pub fn new(line: impl FnMut(u32) -> IrqLine) -> Self {
        TestDev {
            lines: (0..LINES).map(line).collect(),
            ports: [0; 4],
            memory: vec![0; MEMORY_LEN],
        }
    }

    fn levels(&self) -> u32 {
        (0..)
            .zip(&self.lines)
            .fold(0, |levels, (i, line)| levels | u32::from(line.level()) << i)
    }
}

impl PortDevice for TestDev {
    fn port_ranges(&self) -> Vec<PortRange> {
        vec![RAM_PORT..=FLUSH_LAST, LINE_PORT..=LINE_LAST]
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            if (RAM_PORT..FLUSH_PORT).contains(&port) {
                *byte = self.ports[usize::from(port - RAM_PORT)];
            }
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        // A wide write drives one line, the first.
        if let Some(line) = port.checked_sub(LINE_PORT)
            && let Some(line) = self.lines.get(usize::from(line))
        {
            line.force(data.iter().any(|byte| *byte != 0));
            return;
        }
        for (port, byte) in (port..=u16::MAX).zip(data) {
            if (RAM_PORT..FLUSH_PORT).contains(&port) {
                self.ports[usize::from(port - RAM_PORT)] = *byte;
            }
        }
    }
}

impl MmioDevice for TestDev {
    fn mmio_ranges(&self) -> Vec<MmioRange> {
        vec![TESTDEV_MMIO_BASE..=TESTDEV_MMIO_BASE + (MEMORY_LEN as u64 - 1)]
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        let offset = address.wrapping_sub(TESTDEV_MMIO_BASE) as usize;
        for (byte, cell) in data.iter_mut().zip(self.memory.iter().skip(offset)) {
            *byte = *cell;
        }
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        let offset = address.wrapping_sub(TESTDEV_MMIO_BASE) as usize;
        for (byte, cell) in data.iter().zip(self.memory.iter_mut().skip(offset)) {
            *cell = *byte;
        }
    }
}

impl Device for TestDev {
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioDevice> {
        Some(self)
    }

    fn reset(&mut self) {
        self.ports = [0; 4];
        self.memory.fill(0);
        self.lines.iter().for_each(|line| line.set(false));
    }

    fn save(&mut self) -> DeviceState {
        let used = self
            .memory
            .iter()
            .rposition(|b| *b != 0)
            .map_or(0, |i| i + 1);
        DeviceState::TestDev(TestDevState {
            version: VERSION,
            ports: self.ports,
            lines: self.levels(),
            memory: self.memory.iter().take(used).copied().collect(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::TestDev(state) = state else {
            return Err(StateError::WrongDevice {
                device: "test device",
                found: state.kind(),
            });
        };
        check_version("test device", state.version, VERSION)?;
        if state.memory.len() > MEMORY_LEN {
            return Err(damaged("test device", "its memory is too large"));
        }
        self.ports = state.ports;
        self.memory.clone_from(&state.memory);
        self.memory.resize(MEMORY_LEN, 0);
        for (i, line) in (0..).zip(&self.lines) {
            // Lines that were never driven may be other devices'.
            let level = state.lines >> i & 1 != 0;
            if level {
                line.force(true);
            } else {
                line.set(false);
            }
        }
        Ok(())
    }
}
