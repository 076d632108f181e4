//! 16550A UART. (National PC16550D data sheet, section 8.)
//!
//! | offset | DLAB | read                 | write              |
//! |--------|------|----------------------|--------------------|
//! | 0      | 0    | RBR received byte    | THR byte to send   |
//! | 1      | 0    | IER interrupt enable | IER                |
//! | 0, 1   | 1    | DLL, DLM divisor     | DLL, DLM           |
//! | 2      | –    | IIR interrupt cause  | FCR FIFO control   |
//! | 3      | –    | LCR line control     | LCR                |
//! | 4      | –    | MCR modem control    | MCR                |
//! | 5      | –    | LSR line status      | –                  |
//! | 6      | –    | MSR modem status     | –                  |
//! | 7      | –    | SCR scratch          | SCR                |
//!
//! # Time
//!
//! A character takes no time: the divisor is kept but means nothing, and the
//! receive time-out (data below the trigger level) is due at once.
//!
//! # Output
//!
//! Sent bytes go to a buffer of [`OUTPUT_CAPACITY`] bytes that the host side
//! drains. When fewer than 16 bytes are free, THRE stays clear and the guest
//! waits; draining sets THRE and raises its interrupt.
//!
//! # Input
//!
//! A FIFO shows at most 16 bytes (1 when disabled); the rest waits behind it,
//! [`INPUT_CAPACITY`] bytes in all. Waiting bytes enter the FIFO only when
//! somebody listens: the received-data interrupt is enabled, or the guest
//! polls line status again and again. A driver clears the FIFO while it probes
//! and opens the port; what the host sent earlier is not lost by that.

mod core;
mod handle;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use self::core::Core;
use crate::device::{Device, PortDevice, PortRange};
use crate::interrupt::IrqLine;
use crate::lock;
use crate::saved::{DeviceState, StateError};
pub use handle::UartHandle;
pub use state::UartState;

/// Bytes that wait for the host side at most.
pub const OUTPUT_CAPACITY: usize = 64 << 10;
/// Bytes that wait for the guest at most.
pub const INPUT_CAPACITY: usize = 1024;

/// Tells the host side about a UART. Called under the UART's lock, on vCPU
/// threads among others: wake a thread (an eventfd, a condition variable) and
/// return; the [`UartHandle`] must not be used from inside.
pub trait UartNotify: Send + Sync {
    /// Output became available where there was none.
    fn output_ready(&self);

    /// There is room for input again after a [`UartHandle::push_input`] that
    /// took less than it was given.
    fn input_room(&self);
}

/// The device.
pub struct Uart {
    base: u16,
    core: Arc<Mutex<Core>>,
}

impl Uart {
    /// A UART on eight ports from `base`.
    pub fn new(base: u16, irq: IrqLine, notify: Arc<dyn UartNotify>) -> Self {
        Uart {
            base,
            core: Arc::new(Mutex::new(Core::new(irq, notify))),
        }
    }

    /// The host side's end.
    pub fn handle(&self) -> UartHandle {
        UartHandle::new(self.core.clone())
    }
}

impl PortDevice for Uart {
    fn port_ranges(&self) -> Vec<PortRange> {
        vec![self.base..=self.base.saturating_add(7)]
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        let mut core = lock(&self.core);
        for (port, byte) in (port..=u16::MAX).zip(data) {
            *byte = core.read(port.wrapping_sub(self.base));
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        let mut core = lock(&self.core);
        for (port, byte) in (port..=u16::MAX).zip(data) {
            core.write(port.wrapping_sub(self.base), *byte);
        }
    }
}

impl Device for Uart {
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        Some(self)
    }

    fn pause(&mut self) {
        lock(&self.core).pause();
    }

    fn resume(&mut self) {
        lock(&self.core).resume();
    }

    fn reset(&mut self) {
        lock(&self.core).reset();
    }

    fn save(&mut self) -> DeviceState {
        DeviceState::Uart(lock(&self.core).save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Uart(state) => lock(&self.core).restore(state),
            other => Err(StateError::WrongDevice {
                device: "uart",
                found: other.kind(),
            }),
        }
    }
}
