//! Registers and queues, shared by the device and its handle.

use std::collections::VecDeque;
use std::sync::Arc;

use super::state::{UartState, VERSION};
use super::{INPUT_CAPACITY, OUTPUT_CAPACITY, UartNotify};
use crate::interrupt::IrqLine;
use crate::saved::{StateError, check_version, damaged};

// PC16550D data sheet, table II.
const IER_RECEIVED: u8 = 0x01;
const IER_EMPTY: u8 = 0x02;
const IER_LINE: u8 = 0x04;
const IER_MODEM: u8 = 0x08;
const IER_MASK: u8 = 0x0F;

const IIR_MODEM: u8 = 0x00;
const IIR_NONE: u8 = 0x01;
const IIR_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0C;
const IIR_FIFOS: u8 = 0xC0;

const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_INPUT: u8 = 0x02;
/// Bits kept: enable, DMA mode, trigger level.
const FCR_KEPT: u8 = 0xC9;

const LCR_BREAK: u8 = 0x40;
const LCR_DLAB: u8 = 0x80;

const MCR_DTR: u8 = 0x01;
const MCR_RTS: u8 = 0x02;
const MCR_OUT1: u8 = 0x04;
/// On a PC this output gates the interrupt line.
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
const MCR_MASK: u8 = 0x1F;

const LSR_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_BREAK: u8 = 0x10;
/// Transmit holding register and shift register empty.
const LSR_EMPTY: u8 = 0x60;
const LSR_FIFO_ERROR: u8 = 0x80;
/// Flags that travel with a received byte: parity, framing, break.
const LSR_BYTE_FLAGS: u8 = 0x1C;

const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;
const MSR_DELTAS: u8 = 0x0F;
/// A terminal is connected and ready.
const MSR_CONNECTED: u8 = MSR_CTS | MSR_DSR | MSR_DCD;

const FIFO_DEPTH: usize = 16;
/// 9600 baud, the usual state after firmware.
const RESET_DIVISOR: u8 = 12;
/// Reads of line status, with nothing written between them, after which the
/// guest is taken to poll for input. A driver that only waits to send reads
/// it once or twice for each byte.
const POLL_READS: u8 = 8;

pub(super) struct Core {
    irq: IrqLine,
    notify: Arc<dyn UartNotify>,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    dll: u8,
    dlm: u8,
    thr_pending: bool,
    overrun: bool,
    polls: u8,
    /// Bytes at the front of `input` that are in the guest's FIFO.
    shown: usize,
    /// Line-status flags and byte.
    input: VecDeque<(u8, u8)>,
    output: Vec<u8>,
    /// Input was refused: the host side waits for room.
    refused: bool,
    paused: bool,
}

impl Core {
    pub fn new(irq: IrqLine, notify: Arc<dyn UartNotify>) -> Self {
        Core {
            irq,
            notify,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr: MSR_CONNECTED,
            scr: 0,
            dll: RESET_DIVISOR,
            dlm: 0,
            thr_pending: false,
            overrun: false,
            polls: 0,
            shown: 0,
            input: VecDeque::new(),
            output: Vec::new(),
            refused: false,
            paused: false,
        }
    }

    pub fn read(&mut self, register: u16) -> u8 {
        let divisor = self.lcr & LCR_DLAB != 0;
        match register & 7 {
            0 if divisor => self.dll,
            0 => self.read_byte(),
            1 if divisor => self.dlm,
            1 => self.ier,
            2 => self.read_cause(),
            3 => self.lcr,
            4 => self.mcr,
            5 => self.read_line_status(),
            6 => {
                let value = self.msr;
                self.msr &= !MSR_DELTAS;
                self.update_irq();
                value
            }
            _ => self.scr,
        }
    }

    pub fn write(&mut self, register: u16, value: u8) {
        self.polls = 0;
        let divisor = self.lcr & LCR_DLAB != 0;
        match register & 7 {
            0 if divisor => self.dll = value,
            0 => self.send(value),
            1 if divisor => self.dlm = value,
            1 => {
                let enabled = value & !self.ier & IER_EMPTY != 0;
                self.ier = value & IER_MASK;
                // Enabling the interrupt of an empty transmitter raises it.
                if enabled {
                    self.thr_pending = self.can_send();
                }
            }
            2 => self.write_fifo_control(value),
            3 => {
                let started = value & !self.lcr & LCR_BREAK != 0;
                self.lcr = value;
                if started && self.mcr & MCR_LOOP != 0 {
                    self.loop_back(LSR_BREAK, 0);
                }
            }
            4 => {
                self.mcr = value & MCR_MASK;
                self.update_modem();
            }
            7 => self.scr = value,
            _ => {}
        }
        self.update_irq();
    }

    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        let blocked = !self.can_send();
        if out.is_empty() {
            std::mem::swap(out, &mut self.output);
        } else {
            out.append(&mut self.output);
        }
        if blocked {
            self.thr_pending = true;
            self.update_irq();
        }
    }

    pub fn push_input(&mut self, bytes: &[u8]) -> usize {
        let room = match self.paused {
            true => 0,
            false => INPUT_CAPACITY.saturating_sub(self.input.len()),
        };
        let taken = bytes.len().min(room);
        self.input
            .extend(bytes.iter().take(taken).map(|byte| (0, *byte)));
        self.refused |= taken < bytes.len();
        self.update_irq();
        taken
    }

    pub fn push_break(&mut self) -> bool {
        if self.paused || self.input.len() >= INPUT_CAPACITY {
            return false;
        }
        self.input.push_back((LSR_BREAK, 0));
        self.update_irq();
        true
    }

    pub fn pause(&mut self) {
        self.paused = true;
    }

    pub fn resume(&mut self) {
        self.paused = false;
        self.update_irq();
        self.offer_room();
    }

    /// What is on its way between host and guest stays.
    pub fn reset(&mut self) {
        let fresh = Core::new(self.irq.clone(), self.notify.clone());
        let old = std::mem::replace(self, fresh);
        self.input = old.input;
        self.output = old.output;
        self.refused = old.refused;
        self.paused = old.paused;
        self.irq.set(false);
    }

    pub fn save(&self) -> UartState {
        UartState {
            version: VERSION,
            ier: self.ier,
            fcr: self.fcr,
            lcr: self.lcr,
            mcr: self.mcr,
            msr: self.msr,
            scr: self.scr,
            dll: self.dll,
            dlm: self.dlm,
            thr_pending: self.thr_pending,
            overrun: self.overrun,
            polls: self.polls,
            shown: self.shown as u8,
            input: self.input.iter().copied().collect(),
            output: self.output.clone(),
        }
    }

    pub fn restore(&mut self, state: &UartState) -> Result<(), StateError> {
        check_version("uart", state.version, VERSION)?;
        if state.input.len() > INPUT_CAPACITY || state.output.len() > OUTPUT_CAPACITY {
            return Err(damaged("uart", "more queued bytes than fit"));
        }
        let shown = usize::from(state.shown);
        if shown > state.input.len().min(FIFO_DEPTH) {
            return Err(damaged("uart", "more bytes in the FIFO than received"));
        }
        self.ier = state.ier & IER_MASK;
        self.fcr = state.fcr & FCR_KEPT;
        self.lcr = state.lcr;
        self.mcr = state.mcr & MCR_MASK;
        self.msr = state.msr;
        self.scr = state.scr;
        self.dll = state.dll;
        self.dlm = state.dlm;
        self.thr_pending = state.thr_pending;
        self.overrun = state.overrun;
        self.polls = state.polls;
        self.shown = shown;
        self.input = state.input.iter().copied().collect();
        self.output = state.output.clone();
        self.irq.force(self.wants_interrupt());
        if !self.output.is_empty() {
            self.notify.output_ready();
        }
        self.offer_room();
        Ok(())
    }

    fn depth(&self) -> usize {
        match self.fcr & FCR_ENABLE {
            0 => 1,
            _ => FIFO_DEPTH,
        }
    }

    /// A driver that finds THRE set sends 16 bytes without looking again.
    fn can_send(&self) -> bool {
        self.output.len() + FIFO_DEPTH <= OUTPUT_CAPACITY
    }

    fn send(&mut self, value: u8) {
        if self.mcr & MCR_LOOP != 0 {
            self.loop_back(0, value);
        } else if self.output.len() < OUTPUT_CAPACITY {
            self.output.push(value);
            if self.output.len() == 1 {
                self.notify.output_ready();
            }
        }
        // Beyond that the guest ignored THRE: the byte is overwritten, as in
        // the real one.
        self.thr_pending = self.can_send();
    }

    fn loop_back(&mut self, flags: u8, value: u8) {
        if self.shown < self.depth() && self.input.len() < INPUT_CAPACITY {
            self.input.insert(self.shown, (flags, value));
            self.shown += 1;
        } else {
            self.overrun = true;
        }
    }

    fn listening(&self) -> bool {
        let polling = self.polls >= POLL_READS && self.can_send();
        self.mcr & MCR_LOOP == 0 && (self.ier & IER_RECEIVED != 0 || polling)
    }

    /// Bytes that the guest would find in its FIFO if it looked.
    fn available(&self) -> usize {
        match self.listening() {
            true => self.shown.max(self.input.len().min(self.depth())),
            false => self.shown,
        }
    }

    fn show(&mut self) {
        self.shown = self.available();
    }

    fn read_byte(&mut self) -> u8 {
        self.show();
        if self.shown == 0 {
            return 0;
        }
        let (_, byte) = self.input.pop_front().unwrap_or_default();
        self.shown -= 1;
        self.offer_room();
        self.update_irq();
        byte
    }

    fn read_cause(&mut self) -> u8 {
        self.show();
        let cause = self.cause();
        if cause == IIR_EMPTY {
            self.thr_pending = false;
            self.update_irq();
        }
        match self.fcr & FCR_ENABLE {
            0 => cause,
            _ => cause | IIR_FIFOS,
        }
    }

    fn read_line_status(&mut self) -> u8 {
        self.polls = self.polls.saturating_add(1);
        self.show();
        let mut value = self.line_errors();
        if self.shown > 0 {
            value |= LSR_READY;
            if let Some(front) = self.input.front_mut() {
                front.0 = 0;
            }
        }
        let fifo = self.fcr & FCR_ENABLE != 0;
        if fifo && value & LSR_BYTE_FLAGS != 0 {
            value |= LSR_FIFO_ERROR;
        }
        if self.can_send() {
            value |= LSR_EMPTY;
        }
        self.overrun = false;
        self.update_irq();
        value
    }

    fn line_errors(&self) -> u8 {
        let overrun = if self.overrun { LSR_OVERRUN } else { 0 };
        match self.input.front() {
            Some((flags, _)) if self.available() > 0 => overrun | flags & LSR_BYTE_FLAGS,
            _ => overrun,
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & FCR_ENABLE != 0;
        // Only an enabled FIFO takes the other bits.
        self.fcr = match value & FCR_ENABLE {
            0 => 0,
            _ => value & FCR_KEPT,
        };
        if toggled || value & FCR_CLEAR_INPUT != 0 {
            self.input.drain(..self.shown.min(self.input.len()));
            self.shown = 0;
            self.offer_room();
        }
    }

    fn update_modem(&mut self) {
        let lines = if self.mcr & MCR_LOOP != 0 {
            let pairs = [
                (MCR_RTS, MSR_CTS),
                (MCR_DTR, MSR_DSR),
                (MCR_OUT1, MSR_RI),
                (MCR_OUT2, MSR_DCD),
            ];
            pairs
                .iter()
                .filter(|(output, _)| self.mcr & output != 0)
                .fold(0, |lines, (_, input)| lines | input)
        } else {
            MSR_CONNECTED
        };
        let changed = (lines ^ self.msr) & !MSR_DELTAS;
        let mut deltas = changed >> 4;
        // The ring bit tells the trailing edge only.
        if lines & MSR_RI != 0 {
            deltas &= !(MSR_RI >> 4);
        }
        self.msr = lines | self.msr & MSR_DELTAS | deltas;
    }

    fn trigger(&self) -> usize {
        match (self.fcr & FCR_ENABLE, self.fcr >> 6) {
            (0, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    /// The pending interrupt of the highest priority.
    fn cause(&self) -> u8 {
        let available = self.available();
        if self.ier & IER_LINE != 0 && self.line_errors() != 0 {
            IIR_LINE
        } else if self.ier & IER_RECEIVED != 0 && available >= self.trigger() {
            IIR_RECEIVED
        } else if self.ier & IER_RECEIVED != 0 && available > 0 {
            IIR_TIMEOUT
        } else if self.ier & IER_EMPTY != 0 && self.thr_pending {
            IIR_EMPTY
        } else if self.ier & IER_MODEM != 0 && self.msr & MSR_DELTAS != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    fn wants_interrupt(&self) -> bool {
        self.mcr & MCR_OUT2 != 0 && self.cause() != IIR_NONE
    }

    fn update_irq(&self) {
        if !self.paused {
            self.irq.set(self.wants_interrupt());
        }
    }

    fn offer_room(&mut self) {
        if self.refused && !self.paused && self.input.len() <= INPUT_CAPACITY / 2 {
            self.refused = false;
            self.notify.input_room();
        }
    }
}
