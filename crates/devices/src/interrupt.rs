//! Interrupt lines as devices hold them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Where interrupts go: implemented by the machine over its partition.
/// Called from any thread under a device's lock; must not block.
pub trait InterruptSink: Send + Sync {
    /// Drives global system interrupt `gsi`.
    fn set_line(&self, gsi: u32, level: bool);

    /// Sends a message-signalled interrupt.
    fn msi(&self, address: u64, data: u32);
}

/// One device's interrupt line. Clones drive the same line.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn InterruptSink>,
    gsi: u32,
    level: Arc<AtomicBool>,
}

impl IrqLine {
    /// Line `gsi` of `sink`, low. Two devices must not share a line.
    pub fn new(sink: Arc<dyn InterruptSink>, gsi: u32) -> Self {
        IrqLine {
            sink,
            gsi,
            level: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Drives the line; costs nothing when the level does not change.
    pub fn set(&self, level: bool) {
        if self.level.load(Ordering::Relaxed) != level {
            self.force(level);
        }
    }

    /// Drives the line even when the level seems unchanged: after a restore,
    /// when the interrupt controller's idea of the line came from elsewhere.
    pub fn force(&self, level: bool) {
        self.level.store(level, Ordering::Relaxed);
        self.sink.set_line(self.gsi, level);
    }

    /// One edge: high, then low.
    pub fn pulse(&self) {
        self.force(true);
        self.force(false);
    }

    /// The level as last driven.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine(gsi {}, {})", self.gsi, self.level())
    }
}

/// An interrupt line that several devices drive: high while one of them
/// drives it. PCI's INTx pins share lines in this way.
#[derive(Clone)]
pub struct SharedLine {
    line: IrqLine,
    /// How many inputs are high.
    high: Arc<Mutex<u32>>,
}

impl SharedLine {
    /// Line `gsi` of `sink`, low.
    pub fn new(sink: Arc<dyn InterruptSink>, gsi: u32) -> Self {
        SharedLine {
            line: IrqLine::new(sink, gsi),
            high: Arc::default(),
        }
    }

    /// One device's part of it, low.
    pub fn input(&self) -> LineInput {
        LineInput {
            shared: self.clone(),
            level: false,
        }
    }
}

/// One device's part of a [`SharedLine`]; low when dropped.
pub struct LineInput {
    shared: SharedLine,
    level: bool,
}

impl LineInput {
    /// Drives this input; costs nothing when the level does not change.
    pub fn set(&mut self, level: bool) {
        if self.level != level {
            self.force(level);
        }
    }

    /// Drives the line even when the level seems unchanged; see
    /// [`IrqLine::force`].
    pub fn force(&mut self, level: bool) {
        let mut high = crate::lock(&self.shared.high);
        *high = high.saturating_sub(u32::from(self.level)) + u32::from(level);
        self.level = level;
        self.shared.line.force(*high > 0);
    }
}

impl Drop for LineInput {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl fmt::Debug for LineInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LineInput({}, {:?})", self.level, self.shared.line)
    }
}
