//! A function's interrupts: MSI-X, or its pin with the ISR status byte.
//!
//! ```text
//! queue(i) ─┬─ MSI-X on ──► vector ─┬─ not masked ──► message
//! config() ─┘                       └─ masked ──► pending ──unmask──► message
//!           └─ MSI-X off ─► ISR bit ──► pin high ──(ISR read)──► pin low
//! ```
//!
//! (virtio 1.2, 4.1.4.5 and 4.1.5; PCI 3.0, 6.8.2.) A function that is not
//! bus master sends nothing: its vectors count as masked.

use std::sync::{Arc, Mutex};

use super::layout::{MSIX_ENABLE, MSIX_MASK};
use super::state::VectorState;
use crate::interrupt::{InterruptSink, LineInput};
use crate::lock;
use crate::pci::COMMAND_MASTER;

/// No vector (4.1.4.3).
pub const NO_VECTOR: u16 = 0xFFFF;
/// ISR status: a queue was used; the configuration or status changed.
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;
/// Vector control: masked (PCI 3.0, 6.8.2.9).
const VECTOR_MASKED: u32 = 1 << 0;
/// Command register: no INTx.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// A function's interrupts; used from any thread.
pub struct Interrupts(Mutex<Inner>);

struct Inner {
    sink: Arc<dyn InterruptSink>,
    line: Option<LineInput>,
    enabled: bool,
    masked: bool,
    master: bool,
    line_disabled: bool,
    vectors: Vec<VectorState>,
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

impl Interrupts {
    /// As at power-on.
    pub fn new(
        sink: Arc<dyn InterruptSink>,
        line: Option<LineInput>,
        vectors: u16,
        queues: u16,
    ) -> Self {
        Interrupts(Mutex::new(Inner {
            sink,
            line,
            enabled: false,
            masked: false,
            master: false,
            line_disabled: false,
            vectors: vec![VectorState::default(); usize::from(vectors)],
            isr: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; usize::from(queues)],
        }))
    }

    /// Something was handed back in a queue.
    pub fn queue(&self, queue: u16) {
        let mut inner = lock(&self.0);
        let vector = inner.queue_vectors.get(usize::from(queue)).copied();
        inner.signal(ISR_QUEUE, vector.unwrap_or(NO_VECTOR));
    }

    /// Configuration or status changed.
    pub fn config(&self) {
        let mut inner = lock(&self.0);
        let vector = inner.config_vector;
        inner.signal(ISR_CONFIG, vector);
    }

    /// Reads the ISR status, which clears it.
    pub fn take_isr(&self) -> u8 {
        let mut inner = lock(&self.0);
        let isr = std::mem::take(&mut inner.isr);
        inner.drive(false);
        isr
    }

    /// Whether the function asks for its pin (status register, bit 3).
    pub fn wants_line(&self) -> bool {
        let inner = lock(&self.0);
        inner.isr != 0 && !inner.enabled
    }

    /// The command register.
    pub fn set_command(&self, command: u16) {
        let mut inner = lock(&self.0);
        inner.master = command & COMMAND_MASTER != 0;
        inner.line_disabled = command & COMMAND_INTX_DISABLE != 0;
        inner.drive(false);
        inner.send_pending();
    }

    /// MSI-X message control.
    pub fn set_msix_control(&self, control: u16) {
        let mut inner = lock(&self.0);
        inner.enabled = control & MSIX_ENABLE != 0;
        inner.masked = control & MSIX_MASK != 0;
        inner.drive(false);
        inner.send_pending();
    }

    /// The vector of configuration changes.
    pub fn config_vector(&self) -> u16 {
        lock(&self.0).config_vector
    }

    /// Sets it; a vector that does not exist is none.
    pub fn set_config_vector(&self, vector: u16) {
        let mut inner = lock(&self.0);
        inner.config_vector = inner.existing(vector);
    }

    /// The vector of a queue.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        let inner = lock(&self.0);
        let vector = inner.queue_vectors.get(usize::from(queue));
        vector.copied().unwrap_or(NO_VECTOR)
    }

    /// Sets it; a vector that does not exist is none.
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        let mut inner = lock(&self.0);
        let vector = inner.existing(vector);
        if let Some(place) = inner.queue_vectors.get_mut(usize::from(queue)) {
            *place = vector;
        }
    }

    /// Reads the MSI-X table.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        let inner = lock(&self.0);
        for (at, byte) in (offset..).zip(data) {
            let vector = inner.vectors.get((at / 16) as usize);
            *byte = vector.map_or(0, |v| v.bytes()[(at % 16) as usize]);
        }
    }

    /// Writes the MSI-X table: dwords or qwords (PCI 3.0, 6.8.2).
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let mut inner = lock(&self.0);
        let Some(vector) = inner.vectors.get_mut((offset / 16) as usize) else {
            return;
        };
        let mut bytes = vector.bytes();
        let at = (offset % 16) as usize;
        if let Some(place) = bytes.get_mut(at..at + data.len()) {
            place.copy_from_slice(data);
        }
        vector.set_bytes(bytes);
        inner.send_pending();
    }

    /// Reads the pending bits.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        let inner = lock(&self.0);
        let bits = (0..).zip(&inner.vectors);
        let word = bits.fold(0u64, |w, (i, v)| w | u64::from(v.pending) << i);
        let bytes = word.to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at)
                .ok()
                .and_then(|at| bytes.get(at).copied())
                .unwrap_or(0);
        }
    }

    /// A reset of the virtio device; PCI's registers stay.
    pub fn reset_device(&self) {
        let mut inner = lock(&self.0);
        inner.reset_device();
        inner.drive(false);
    }

    /// As at power-on.
    pub fn reset(&self) {
        let mut inner = lock(&self.0);
        inner.reset_device();
        inner.vectors.fill(VectorState::default());
        inner.enabled = false;
        inner.masked = false;
        inner.master = false;
        inner.line_disabled = false;
        inner.drive(false);
    }

    /// Vectors and ISR.
    pub fn save(&self) -> (Vec<VectorState>, u8) {
        let inner = lock(&self.0);
        (inner.vectors.clone(), inner.isr)
    }

    /// Counterpart of [`save`](Self::save): as many vectors as there are.
    /// Nothing is sent again; what is pending and not masked is sent when
    /// the registers are set.
    pub fn restore(&self, vectors: &[VectorState], isr: u8) {
        let mut inner = lock(&self.0);
        inner.vectors.clone_from_slice(vectors);
        inner.isr = isr & (ISR_QUEUE | ISR_CONFIG);
    }

    /// Drives the pin although its level seems unchanged.
    pub fn force_line(&self) {
        lock(&self.0).drive(true);
    }
}

impl Inner {
    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn signal(&mut self, isr: u8, vector: u16) {
        if !self.enabled {
            self.isr |= isr;
            self.drive(false);
            return;
        }
        let can_send = self.master && !self.masked;
        if let Some(vector) = self.vectors.get_mut(usize::from(vector)) {
            if can_send && vector.control & VECTOR_MASKED == 0 {
                self.sink.msi(vector.address, vector.data);
            } else {
                vector.pending = true;
            }
        }
    }

    fn send_pending(&mut self) {
        if !self.enabled || self.masked || !self.master {
            return;
        }
        for vector in &mut self.vectors {
            if vector.pending && vector.control & VECTOR_MASKED == 0 {
                vector.pending = false;
                self.sink.msi(vector.address, vector.data);
            }
        }
    }

    fn drive(&mut self, force: bool) {
        let level = self.isr != 0 && !self.enabled && !self.line_disabled;
        match &mut self.line {
            Some(line) if force => line.force(level),
            Some(line) => line.set(level),
            None => {}
        }
    }

    fn reset_device(&mut self) {
        self.isr = 0;
        self.config_vector = NO_VECTOR;
        self.queue_vectors.fill(NO_VECTOR);
        for vector in &mut self.vectors {
            vector.pending = false;
        }
    }
}
