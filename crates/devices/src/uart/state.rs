//! Saved state of the UART.

use serde::{Deserialize, Serialize};

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// A 16550A.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    /// Version of this type.
    pub version: u32,
    /// Interrupt enable.
    pub ier: u8,
    /// FIFO control as last written.
    pub fcr: u8,
    /// Line control.
    pub lcr: u8,
    /// Modem control.
    pub mcr: u8,
    /// Modem status with its delta bits.
    pub msr: u8,
    /// Scratch.
    pub scr: u8,
    /// Divisor, low byte.
    pub dll: u8,
    /// Divisor, high byte.
    pub dlm: u8,
    /// The "transmitter empty" interrupt is pending.
    pub thr_pending: bool,
    /// An overrun since the last read of line status.
    pub overrun: bool,
    /// Reads of line status since the last register write.
    pub polls: u8,
    /// How many bytes of `input` the guest has been shown in its FIFO.
    pub shown: u8,
    /// Received bytes with their line-status flags, oldest first.
    pub input: Vec<(u8, u8)>,
    /// Sent bytes that the host side had not taken.
    pub output: Vec<u8>,
}
