//! The outside world of a guest: remembers what the guest did to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_engine::{CpuIo, Kicker};

use crate::layout::{PORT_DONE, PORT_FULL, PORT_STOP};

/// One access that reached [`CpuIo`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// `in` of this many bytes.
    PortRead(u16, usize),
    /// `out` of these bytes.
    PortWrite(u16, Vec<u8>),
    /// Read of this many bytes.
    MemoryRead(u64, usize),
    /// Write of these bytes.
    MemoryWrite(u64, Vec<u8>),
}

/// Records accesses; ends the guest when it says that it is done.
#[derive(Debug, Default)]
pub struct Recorder {
    accesses: Mutex<Vec<Access>>,
    kickers: Mutex<Vec<Kicker>>,
    done: AtomicBool,
    full: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The byte that a read of port or address `n` yields.
pub fn pattern(n: u64) -> u8 {
    (n as u8).wrapping_mul(7) ^ (n >> 8) as u8 ^ 0x5A
}

/// `len` bytes of [`pattern`] from `start`, as a little-endian number.
pub fn pattern_word(start: u64, len: u64) -> u64 {
    (0..len).fold(0, |word, n| word | u64::from(pattern(start + n)) << (8 * n))
}

impl Recorder {
    /// Those to kick when the guest ends.
    pub fn set_kickers(&self, kickers: Vec<Kicker>) {
        *lock(&self.kickers) = kickers;
    }

    /// Kicks every vCPU.
    pub fn kick(&self) {
        for kicker in lock(&self.kickers).iter() {
            kicker.kick();
        }
    }

    /// Kicks every vCPU but the first.
    pub fn kick_others(&self) {
        for kicker in lock(&self.kickers).iter().skip(1) {
            kicker.kick();
        }
    }

    /// The guest has said that it is done.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// The log of exceptions ran full.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    /// Ready for another run.
    pub fn rearm(&self) {
        self.done.store(false, Ordering::SeqCst);
    }

    /// What the guest did since this was last asked.
    pub fn take(&self) -> Vec<Access> {
        std::mem::take(&mut *lock(&self.accesses))
    }

    fn record(&self, access: Access) {
        lock(&self.accesses).push(access);
    }
}

fn fill(start: u64, data: &mut [u8]) {
    for (n, byte) in data.iter_mut().enumerate() {
        *byte = pattern(start + n as u64);
    }
}

impl CpuIo for Recorder {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.record(Access::PortRead(port, data.len()));
        fill(port.into(), data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        match port {
            PORT_DONE => {
                self.done.store(true, Ordering::SeqCst);
                self.kick();
            }
            PORT_FULL => {
                self.full.store(true, Ordering::SeqCst);
                self.kick();
            }
            PORT_STOP => self.kick(),
            _ => self.record(Access::PortWrite(port, data.to_vec())),
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.record(Access::MemoryRead(address, data.len()));
        fill(address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.record(Access::MemoryWrite(address, data.to_vec()));
    }
}
