//! Saved state of the console.

use serde::{Deserialize, Serialize};

use crate::virtio::TransportState;

/// Version written by this Croft.
pub(super) const VERSION: u32 = 1;

/// State of a console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioConsoleState {
    /// Version of this type.
    pub version: u32,
    /// The driver knows of ports.
    pub ready: bool,
    /// The terminal's size.
    pub columns: u16,
    /// The same.
    pub rows: u16,
    /// The ports, in order.
    pub ports: Vec<PortState>,
    /// Its transport.
    pub transport: TransportState,
}

/// State of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// The driver has added it.
    pub ready: bool,
    /// A program of the guest has it open.
    pub open: bool,
    /// So many bytes of the buffer that comes next from the guest have gone
    /// on to the host.
    pub sent: u64,
    /// The driver is to hear that it exists.
    pub owes_add: bool,
    /// That it is a terminal.
    pub owes_terminal: bool,
    /// The terminal's size.
    pub owes_size: bool,
    /// Its name.
    pub owes_name: bool,
    /// That the host has it open.
    pub owes_open: bool,
}
