//! The host side's end of a UART.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::core::Core;
use crate::lock;

/// Used by the console backend from any thread.
#[derive(Clone)]
pub struct UartHandle(Arc<Mutex<Core>>);

impl UartHandle {
    pub(super) fn new(core: Arc<Mutex<Core>>) -> Self {
        UartHandle(core)
    }

    /// Appends everything the guest has sent to `out`; an empty `out` makes
    /// it a swap of buffers. Works while paused too; a state saved later
    /// leaves out what was taken.
    pub fn take_output(&self, out: &mut Vec<u8>) {
        lock(&self.0).take_output(out);
    }

    /// Hands bytes to the guest and says how many were taken (none while
    /// paused). [`UartNotify::input_room`](super::UartNotify::input_room)
    /// follows when it was less than all.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        lock(&self.0).push_input(bytes)
    }

    /// Sends a break condition to the guest; false when there is no room.
    pub fn push_break(&self) -> bool {
        lock(&self.0).push_break()
    }
}

impl fmt::Debug for UartHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UartHandle")
    }
}
