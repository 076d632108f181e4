//! Control messages (virtio 1.2, 5.3.6.2), and what they are about.
//!
//! ```text
//! message: port (4) · event (2) · value (2) · name, or columns (2) rows (2)
//!
//! driver                 device
//!   │── DEVICE_READY ─────►│
//!   │◄──── DEVICE_ADD ─────│   for each port
//!   │── PORT_READY ───────►│   of each
//!   │◄── CONSOLE_PORT, RESIZE (the terminal), PORT_NAME (others), PORT_OPEN
//!   │── PORT_OPEN ────────►│   data may flow
//! ```
//!
//! What the driver is to be told is a few flags of each port: however often
//! it asks, no more waits than there are flags.

use super::PortConfig;
use super::state::{PortState, VirtioConsoleState};

/// Bytes of a message, without what follows.
pub const LEN: usize = 8;

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// The port that is a terminal.
pub const TERMINAL: usize = 0;

/// What the messages are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The driver knows of ports.
    pub ready: bool,
    columns: u16,
    rows: u16,
    pub ports: Vec<PortState>,
}

impl Control {
    /// Of `ports` ports, the terminal's size not known.
    pub fn new(ports: usize) -> Self {
        Control {
            ports: vec![PortState::default(); ports],
            ..Control::default()
        }
    }

    /// As saved.
    pub fn from_state(state: &VirtioConsoleState) -> Self {
        Control {
            ready: state.ready,
            columns: state.columns,
            rows: state.rows,
            ports: state.ports.clone(),
        }
    }

    /// The driver is gone; the terminal's size stays.
    pub fn reset(&mut self) {
        self.ready = false;
        self.ports.fill(PortState::default());
    }

    /// The terminal's columns and rows.
    pub fn size(&self) -> (u16, u16) {
        (self.columns, self.rows)
    }

    /// The terminal has another size. True if that is news.
    pub fn set_size(&mut self, columns: u16, rows: u16) -> bool {
        if self.size() == (columns, rows) {
            return false;
        }
        (self.columns, self.rows) = (columns, rows);
        if let Some(terminal) = self.ports.get_mut(TERMINAL) {
            terminal.owes_size = terminal.ready;
        }
        true
    }

    /// A message of the driver's. One about what is not there is ignored.
    pub fn hear(&mut self, message: &[u8; LEN]) {
        let [p0, p1, p2, p3, e0, e1, v0, v1] = *message;
        let index = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
        let value = u16::from_le_bytes([v0, v1]);
        match u16::from_le_bytes([e0, e1]) {
            DEVICE_READY if value == 1 => {
                self.ready = true;
                self.ports.iter_mut().for_each(|port| port.owes_add = true);
            }
            PORT_READY if value == 1 => {
                let known = self.columns > 0 && self.rows > 0;
                if let Some(port) = self.ports.get_mut(index) {
                    port.ready = true;
                    port.owes_terminal = index == TERMINAL;
                    port.owes_size = index == TERMINAL && known;
                    port.owes_name = index != TERMINAL;
                    port.owes_open = true;
                }
            }
            PORT_READY => {
                if let Some(port) = self.ports.get_mut(index) {
                    port.ready = false;
                    port.open = false;
                }
            }
            PORT_OPEN => {
                if let Some(port) = self.ports.get_mut(index) {
                    port.open = value != 0;
                }
            }
            _ => {}
        }
    }

    /// Whether the driver is to be told something.
    pub fn owes(&self) -> bool {
        self.ports.iter().any(|port| {
            port.owes_add
                || port.owes_terminal
                || port.owes_size
                || port.owes_name
                || port.owes_open
        })
    }

    /// The next message for the driver, of which ports `configs` tell more.
    pub fn next_message<'a>(
        &mut self,
        configs: impl Iterator<Item = &'a PortConfig>,
    ) -> Option<Vec<u8>> {
        let size = [self.columns.to_le_bytes(), self.rows.to_le_bytes()].concat();
        for ((index, port), config) in (0u32..).zip(&mut self.ports).zip(configs) {
            let name = config.name.as_bytes();
            let flags = [
                (&mut port.owes_add, DEVICE_ADD, &[][..]),
                (&mut port.owes_terminal, CONSOLE_PORT, &[]),
                (&mut port.owes_size, RESIZE, &size),
                (&mut port.owes_name, PORT_NAME, name),
                (&mut port.owes_open, PORT_OPEN, &[]),
            ];
            for (owed, event, more) in flags {
                if std::mem::take(owed) {
                    let mut message = index.to_le_bytes().to_vec();
                    message.extend(event.to_le_bytes());
                    message.extend(1u16.to_le_bytes());
                    message.extend(more);
                    return Some(message);
                }
            }
        }
        None
    }
}
