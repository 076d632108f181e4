//! 8042 keyboard controller with nothing attached, and port 0x92. (IBM PC/AT
//! Technical Reference, "Keyboard Controller"; IBM PS/2 Hardware Interface
//! Technical Reference, "System Control Port A".)
//!
//! | port | read             | write                                  |
//! |------|------------------|----------------------------------------|
//! | 0x60 | output buffer    | byte for the keyboard, or a parameter  |
//! | 0x64 | status           | command                                |
//! | 0x92 | A20 (1), reset (0) | A20 (1); reset on a rising bit 0     |
//!
//! | command   | answer                                                    |
//! |-----------|-----------------------------------------------------------|
//! | 0x20 0x60 | read, write configuration byte                            |
//! | 0xA7 0xA8 | disable, enable auxiliary interface                       |
//! | 0xA9      | 0x01: auxiliary clock line stuck, there is none           |
//! | 0xAA      | 0x55: self-test passed                                    |
//! | 0xAB      | 0x00: keyboard interface works                            |
//! | 0xAD 0xAE | disable, enable keyboard                                  |
//! | 0xC0      | input port                                                |
//! | 0xD0 0xD1 | read, write output port (A20 bit 1; bit 0 low resets)     |
//! | 0xD2 0xD3 | the parameter comes back, never as an auxiliary byte      |
//! | 0xD4      | 0xFE with the time-out bit: no auxiliary device           |
//! | 0xF0–0xFF | pulse outputs; bit 0 low resets (0xFE)                    |
//!
//! A byte for the keyboard is answered by 0xFE with the time-out bit, which
//! is what the controller says when nobody answers it. Every probe thus gets
//! an answer at once, and drivers give up without waiting.

mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::device::{Device, PortDevice, PortRange};
use crate::interrupt::IrqLine;
use crate::platform::{I8042_COMMAND_PORT, I8042_DATA_PORT, PORT_92};
use crate::power::PowerSink;
use crate::saved::{DeviceState, StateError, check_version};
pub use state::I8042State;
use state::VERSION;

const STATUS_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_AUX: u8 = 0x20;
const STATUS_TIMEOUT: u8 = 0x40;

const CONFIG_KEYBOARD_IRQ: u8 = 0x01;
const CONFIG_SYSTEM: u8 = 0x04;
const CONFIG_KEYBOARD_OFF: u8 = 0x10;
const CONFIG_AUX_OFF: u8 = 0x20;
/// As firmware leaves it: system flag, translation, interfaces off.
const CONFIG_DEFAULT: u8 = CONFIG_SYSTEM | CONFIG_KEYBOARD_OFF | CONFIG_AUX_OFF | 0x40;

const OUTPUT_NOT_RESET: u8 = 0x01;
const OUTPUT_A20: u8 = 0x02;
/// Keyboard not locked, colour display.
const INPUT_PORT: u8 = 0x80 | 0x40;
const PORT_92_RESET: u8 = 0x01;
const PORT_92_A20: u8 = 0x02;

/// "Send again": what comes of talking to nobody.
const NO_ANSWER: u8 = 0xFE;

/// The device.
pub struct I8042 {
    irq: IrqLine,
    power: Arc<dyn PowerSink>,
    config: u8,
    output_port: u8,
    port_92: u8,
    command: Option<u8>,
    last_was_command: bool,
    /// Byte for the guest and the status bits that come with it.
    output: Option<(u8, u8)>,
}

impl I8042 {
    /// The controller at its ports of [`crate::platform`].
    pub fn new(irq: IrqLine, power: Arc<dyn PowerSink>) -> Self {
        I8042 {
            irq,
            power,
            config: CONFIG_DEFAULT,
            output_port: OUTPUT_NOT_RESET | OUTPUT_A20,
            port_92: PORT_92_A20,
            command: None,
            last_was_command: false,
            output: None,
        }
    }

    fn asserted(&self) -> bool {
        let keyboard = self
            .output
            .is_some_and(|(_, status)| status & STATUS_AUX == 0);
        keyboard && self.config & CONFIG_KEYBOARD_IRQ != 0
    }

    fn answer(&mut self, byte: u8, status: u8) {
        self.output = Some((byte, status));
    }

    fn read(&mut self, port: u16) -> u8 {
        match port {
            I8042_DATA_PORT => {
                let byte = self.output.take().map_or(0, |(byte, _)| byte);
                self.irq.set(false);
                byte
            }
            I8042_COMMAND_PORT => self.status(),
            _ => self.port_92,
        }
    }

    fn status(&self) -> u8 {
        let output = self.output.map_or(0, |(_, status)| status | STATUS_FULL);
        let command = match self.last_was_command {
            true => STATUS_COMMAND,
            false => 0,
        };
        STATUS_UNLOCKED | self.config & STATUS_SYSTEM | command | output
    }

    fn write(&mut self, port: u16, value: u8) {
        match port {
            I8042_DATA_PORT => self.write_data(value),
            I8042_COMMAND_PORT => self.write_command(value),
            _ => {
                let resets = value & !self.port_92 & PORT_92_RESET != 0;
                self.port_92 = value & (PORT_92_A20 | PORT_92_RESET);
                if resets {
                    self.power.reset();
                }
            }
        }
        self.irq.set(self.asserted());
    }

    fn write_command(&mut self, value: u8) {
        self.last_was_command = true;
        self.command = None;
        match value {
            // The rest of the controller's memory, of which only the first
            // byte means anything.
            0x20 => self.answer(self.config, 0),
            0x21..=0x3F => self.answer(0, 0),
            0x60..=0x7F | 0xD1..=0xD4 => self.command = Some(value),
            0xA7 => self.config |= CONFIG_AUX_OFF,
            0xA8 => self.config &= !CONFIG_AUX_OFF,
            0xA9 => self.answer(0x01, 0),
            0xAA => {
                self.config |= CONFIG_SYSTEM;
                self.answer(0x55, 0);
            }
            0xAB => self.answer(0x00, 0),
            0xAD => self.config |= CONFIG_KEYBOARD_OFF,
            0xAE => self.config &= !CONFIG_KEYBOARD_OFF,
            0xC0 => self.answer(INPUT_PORT, 0),
            0xD0 => self.answer(self.output_port, 0),
            0xF0..=0xFF if value & OUTPUT_NOT_RESET == 0 => self.power.reset(),
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.last_was_command = false;
        match self.command.take() {
            Some(0x60) => self.config = value,
            Some(0xD1) => {
                self.output_port = value | OUTPUT_NOT_RESET;
                if value & OUTPUT_NOT_RESET == 0 {
                    self.power.reset();
                }
            }
            Some(0xD2 | 0xD3) => self.answer(value, 0),
            Some(0xD4) => self.answer(NO_ANSWER, STATUS_AUX | STATUS_TIMEOUT),
            Some(_) => {}
            None => self.answer(NO_ANSWER, STATUS_TIMEOUT),
        }
    }

    fn state(&self) -> I8042State {
        I8042State {
            version: VERSION,
            config: self.config,
            output_port: self.output_port,
            port_92: self.port_92,
            command: self.command,
            last_was_command: self.last_was_command,
            output: self.output,
        }
    }

    fn set_state(&mut self, state: &I8042State) -> Result<(), StateError> {
        check_version("i8042", state.version, VERSION)?;
        self.config = state.config;
        self.output_port = state.output_port;
        self.port_92 = state.port_92;
        self.command = state.command;
        self.last_was_command = state.last_was_command;
        self.output = state.output;
        self.irq.force(self.asserted());
        Ok(())
    }
}

impl PortDevice for I8042 {
    fn port_ranges(&self) -> Vec<PortRange> {
        [I8042_DATA_PORT, I8042_COMMAND_PORT, PORT_92]
            .map(|port| port..=port)
            .to_vec()
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            *byte = self.read(port);
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            self.write(port, *byte);
        }
    }
}

impl Device for I8042 {
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        Some(self)
    }

    fn reset(&mut self) {
        self.irq.set(false);
        *self = I8042::new(self.irq.clone(), self.power.clone());
    }

    fn save(&mut self) -> DeviceState {
        DeviceState::I8042(self.state())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::I8042(state) => self.set_state(state),
            other => Err(StateError::WrongDevice {
                device: "i8042",
                found: other.kind(),
            }),
        }
    }
}
