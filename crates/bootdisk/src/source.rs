//! Bounded, cached reading of a disk or a part of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use croft_disk::{Disk, IoMemory};

use crate::Limits;
use crate::error::BootError;

/// Bytes read from the disk at once: files lie in runs of many blocks.
const CHUNK: u64 = 256 << 10;
/// Chunks kept.
const CHUNKS: usize = 16;

/// A disk or a partition of it.
#[derive(Clone)]
pub struct Source {
    shared: Arc<Shared>,
    start: u64,
    len: u64,
}

struct Shared {
    disk: Arc<dyn Disk>,
    /// Position and contents, the latest last.
    chunks: Mutex<VecDeque<(u64, Vec<u8>)>>,
    read: AtomicU64,
    limits: Limits,
    began: Instant,
}

impl Source {
    /// The whole of `disk`.
    pub fn new(disk: Arc<dyn Disk>, limits: Limits) -> Self {
        let len = disk.size();
        Source {
            shared: Arc::new(Shared {
                disk,
                chunks: Mutex::default(),
                read: AtomicU64::new(0),
                limits,
                began: Instant::now(),
            }),
            start: 0,
            len,
        }
    }

    /// A part of it, as far as it is there.
    pub fn part(&self, start: u64, len: u64) -> Source {
        let start = start.min(self.len);
        Source {
            shared: self.shared.clone(),
            start: self.start + start,
            len: len.min(self.len - start),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills `bytes` from `offset` on; false if that is past the end.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<bool, BootError> {
        let inside = offset
            .checked_add(bytes.len() as u64)
            .is_some_and(|end| end <= self.len);
        if !inside {
            return Ok(false);
        }
        let mut at = self.start + offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (at % CHUNK) as usize;
            let count = self.shared.with_chunk(at - at % CHUNK, |chunk| {
                let there = chunk.get(within..).unwrap_or_default();
                let count = there.len().min(rest.len());
                rest[..count].copy_from_slice(&there[..count]);
                count
            })?;
            if count == 0 {
                return Ok(false);
            }
            at += count as u64;
            rest = rest.split_at_mut(count).1;
        }
        Ok(true)
    }

    /// `N` bytes at `offset`, or nothing past the end.
    pub fn array<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>, BootError> {
        let mut bytes = [0; N];
        Ok(self.read(offset, &mut bytes)?.then_some(bytes))
    }
}

impl Shared {
    /// Calls `with` on the chunk at `position`, which is shorter at the
    /// disk's end.
    fn with_chunk<T>(&self, position: u64, with: impl FnOnce(&[u8]) -> T) -> Result<T, BootError> {
        if self.began.elapsed() > self.limits.time {
            return Err(BootError::Time);
        }
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = chunks.iter().position(|(there, _)| *there == position) {
            if let Some(chunk) = chunks.remove(at) {
                chunks.push_back(chunk);
            }
        } else {
            let len = CHUNK.min(self.disk.size().saturating_sub(position));
            if self.read.fetch_add(len, Ordering::Relaxed) + len > self.limits.read {
                return Err(BootError::Bytes(self.limits.read));
            }
            let mut bytes = vec![0; len as usize];
            if !bytes.is_empty() {
                self.disk
                    .read_at(&[IoMemory::of_bytes(&mut bytes)], position)?;
            }
            if chunks.len() >= CHUNKS {
                chunks.pop_front();
            }
            chunks.push_back((position, bytes));
        }
        let chunk = chunks.back().map_or(&[][..], |(_, bytes)| bytes);
        Ok(with(chunk))
    }
}

/// Little-endian number at `offset` of `bytes`, zero past the end: for
/// structures that were read whole.
pub fn le16(bytes: &[u8], offset: usize) -> u16 {
    field(bytes, offset).map_or(0, u16::from_le_bytes)
}

/// See [`le16`].
pub fn le32(bytes: &[u8], offset: usize) -> u32 {
    field(bytes, offset).map_or(0, u32::from_le_bytes)
}

/// See [`le16`].
pub fn le64(bytes: &[u8], offset: usize) -> u64 {
    field(bytes, offset).map_or(0, u64::from_le_bytes)
}

/// Big-endian; see [`le16`].
pub fn be16(bytes: &[u8], offset: usize) -> u16 {
    field(bytes, offset).map_or(0, u16::from_be_bytes)
}

/// Big-endian; see [`le16`].
pub fn be32(bytes: &[u8], offset: usize) -> u32 {
    field(bytes, offset).map_or(0, u32::from_be_bytes)
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}
