//! Storage in memory for tests: it can lose what was not flushed, be full, and
//! fail.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskError};
use crate::memory::{IoMemory, total};
use crate::storage::Storage;

/// Something that changes the file.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Len(u64),
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, data) => {
            let at = *offset as usize;
            let end = at + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[at..end].copy_from_slice(data);
        }
        Change::Zero(offset, len) => {
            let end = ((offset + len) as usize).min(bytes.len());
            let start = (*offset as usize).min(end);
            bytes[start..end].fill(0);
        }
        Change::Len(len) => bytes.resize(*len as usize, 0),
    }
}

#[derive(Debug, Default)]
struct State {
    now: Vec<u8>,
    lasting: Vec<u8>,
    unflushed: Vec<Change>,
    flushes: u64,
    /// Flushes do nothing.
    lies: bool,
    /// The host is full.
    full: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct MemoryStorage(Mutex<State>);

impl MemoryStorage {
    pub fn new(bytes: &[u8]) -> Arc<Self> {
        let storage = Arc::<Self>::default();
        storage.state().now = bytes.to_vec();
        storage.state().lasting = bytes.to_vec();
        storage
    }

    /// A flush does nothing from now on.
    pub fn lie(&self) {
        self.state().lies = true;
    }

    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// What is there after a failure of the power: what was flushed, and of
    /// each later change whatever `survives` says.
    pub fn crash(&self, mut survives: impl FnMut() -> bool) -> Arc<Self> {
        let state = self.state();
        let mut bytes = state.lasting.clone();
        for change in state.unflushed.iter().filter(|_| survives()) {
            apply(&mut bytes, change);
        }
        Arc::new(MemoryStorage(Mutex::new(State {
            now: bytes.clone(),
            lasting: bytes,
            ..State::default()
        })))
    }

    /// All of it.
    pub fn contents(&self) -> Vec<u8> {
        self.state().now.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.state();
        if state.full && !matches!(change, Change::Zero(..)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        apply(&mut state.now, &change);
        state.unflushed.push(change);
        Ok(())
    }
}

impl Storage for MemoryStorage {
    fn size(&self) -> io::Result<u64> {
        Ok(self.state().now.len() as u64)
    }

    fn read(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<u64> {
        let state = self.state();
        let start = (offset as usize).min(state.now.len());
        let mut rest = &state.now[start..];
        let mut count = 0;
        for buffer in buffers {
            let filled = buffer.fill_from(rest);
            rest = &rest[filled..];
            count += filled as u64;
        }
        Ok(count)
    }

    fn write(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = vec![0; total(buffers) as usize];
        let mut done = 0;
        for buffer in buffers {
            done += buffer.copy_to(&mut bytes[done..]);
        }
        self.change(Change::Write(offset, bytes))
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        state.flushes += 1;
        if !state.lies {
            let State {
                unflushed, lasting, ..
            } = &mut *state;
            for change in unflushed.drain(..) {
                apply(lasting, &change);
            }
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.change(Change::Zero(offset, len)).map(|()| true)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.change(Change::Zero(offset, len)).map(|()| true)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Len(len))
    }
}

pub fn write(disk: &dyn Disk, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
    disk.write_at(&[IoMemory::of_shared(bytes)], offset)
}

pub fn read(disk: &dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    // In pieces of odd sizes, as a guest's are.
    let (one, two) = bytes.split_at_mut(len / 3);
    let buffers = [IoMemory::of_bytes(one), IoMemory::of_bytes(two)];
    disk.read_at(&buffers, offset).unwrap();
    bytes
}
