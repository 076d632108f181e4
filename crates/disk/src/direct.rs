//! A file without the host's page cache (`O_DIRECT`).
//!
//! The host moves whole blocks between the disk and memory that begins at
//! certain addresses. What a guest asks for is mostly like that, and goes
//! straight; anything else goes through a buffer here:
//!
//! ```text
//!          wanted     ├──────────────────┤
//!  blocks  ├───────┼───────┼───────┼───────┤
//!  reads   all of them, and what was wanted is copied out
//!  writes  the first and the last are read, changed and written
//! ```
//!
//! Two writes to parts of one block would undo each other, so those are made
//! one after the other.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::memory::{Direction, IoMemory, part, total, transfer_in_units};
use crate::storage::{FileStorage, Storage};

/// Bytes of a block: no file system and no disk in use wants more (O_DIRECT in
/// open(2); `STATX_DIOALIGN` says how much less some take).
pub const BLOCK: u64 = 4096;
/// What addresses and lengths of memory are multiples of, for a start. Where
/// that is too little the host says so.
const MEMORY: usize = 512;
/// Bytes of the buffer.
const BUFFER: u64 = 1 << 20;

/// An open regular file or block device, with `O_DIRECT`.
#[derive(Debug)]
pub struct DirectStorage {
    file: FileStorage,
    /// Held while parts of blocks are written.
    parts: Mutex<()>,
}

/// Memory at the address of a block.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: u64) -> Self {
        let len = len as usize;
        let bytes = vec![0; len + BLOCK as usize];
        let start = bytes.as_ptr().align_offset(BLOCK as usize);
        Buffer { bytes, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let end = self.start + self.len;
        self.bytes.get_mut(self.start..end).unwrap_or_default()
    }
}

/// The blocks of a range: where the first begins and the last ends.
fn blocks(offset: u64, len: u64) -> io::Result<(u64, u64)> {
    let end = offset.checked_add(len);
    let end = end.and_then(|end| end.checked_next_multiple_of(BLOCK));
    Ok((
        offset - offset % BLOCK,
        end.ok_or(io::ErrorKind::InvalidInput)?,
    ))
}

fn is_whole(offset: u64, len: u64) -> bool {
    offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK)
}

impl DirectStorage {
    /// Over `file`, which was opened with `O_DIRECT`.
    pub fn new(file: File) -> Self {
        DirectStorage {
            file: FileStorage::new(file, true),
            parts: Mutex::new(()),
        }
    }

    fn transfer(
        &self,
        direction: Direction,
        buffers: &[IoMemory<'_>],
        offset: u64,
    ) -> io::Result<u64> {
        transfer_in_units(self.file.file(), direction, buffers, offset, BLOCK)
    }

    /// Moves whole blocks at once, unless the memory is not where the host
    /// wants it.
    fn straight(
        &self,
        direction: Direction,
        buffers: &[IoMemory<'_>],
        offset: u64,
    ) -> io::Result<Option<u64>> {
        let fit = is_whole(offset, total(buffers))
            && buffers.iter().all(|buffer| buffer.is_aligned(MEMORY));
        if !fit {
            return Ok(None);
        }
        match self.transfer(direction, buffers, offset) {
            // This host wants more of addresses.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Reads the blocks at `offset` into a buffer's start; how many bytes
    /// there were before the end of the file.
    fn load(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.transfer(Direction::Read, &[IoMemory::of_bytes(bytes)], offset)?;
        Ok(count as usize)
    }

    /// Writes a range through the buffer.
    fn write_piece(
        &self,
        buffer: &mut Buffer,
        pieces: &[IoMemory<'_>],
        offset: u64,
    ) -> io::Result<()> {
        let len = total(pieces);
        let (first, end) = blocks(offset, len)?;
        buffer.len = (end - first) as usize;
        let bytes = buffer.bytes();
        let whole = is_whole(offset, len);
        let _parts = (!whole).then(|| self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        if !whole {
            let last = bytes.len() - BLOCK as usize;
            for at in [0, last] {
                let block = bytes.get_mut(at..at + BLOCK as usize).unwrap_or_default();
                let there = self.load(block, first + at as u64)?;
                // Behind its end the file becomes longer, by zeros.
                block.get_mut(there..).unwrap_or_default().fill(0);
            }
        }
        let mut at = (offset - first) as usize;
        for piece in pieces {
            at += piece.copy_to(bytes.get_mut(at..).unwrap_or_default());
        }
        let written = self.transfer(Direction::Write, &[IoMemory::of_bytes(bytes)], first)?;
        if written < end - first {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Does `work`, alone if it changes parts of blocks.
    fn on_range<T>(&self, offset: u64, len: u64, work: impl FnOnce() -> T) -> T {
        let _parts = (!is_whole(offset, len))
            .then(|| self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        work()
    }
}

impl Storage for DirectStorage {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<u64> {
        if let Some(count) = self.straight(Direction::Read, buffers, offset)? {
            return Ok(count);
        }
        let wanted = total(buffers);
        let (first, end) = blocks(offset, wanted)?;
        let mut buffer = Buffer::new((end - first).min(BUFFER));
        let mut done = 0;
        while done < wanted {
            let at = offset + done;
            let skip = at % BLOCK;
            let len = (wanted - done).min(BUFFER - skip);
            buffer.len = (skip + len).next_multiple_of(BLOCK) as usize;
            let there = self.load(buffer.bytes(), at - skip)? as u64;
            let count = there.saturating_sub(skip).min(len);
            let found = skip as usize..(skip + count) as usize;
            let mut bytes = &*buffer.bytes();
            bytes = bytes.get(found).unwrap_or_default();
            for piece in part(buffers, done, count) {
                bytes = bytes.get(piece.fill_from(bytes)..).unwrap_or_default();
            }
            done += count;
            if count < len {
                break;
            }
        }
        Ok(done)
    }

    fn write(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<()> {
        let wanted = total(buffers);
        match self.straight(Direction::Write, buffers, offset)? {
            Some(count) if count < wanted => return Err(io::ErrorKind::WriteZero.into()),
            Some(_) => return Ok(()),
            None => {}
        }
        let (first, end) = blocks(offset, wanted)?;
        let mut buffer = Buffer::new((end - first).min(BUFFER));
        let mut done = 0;
        while done < wanted {
            let at = offset + done;
            let len = (wanted - done).min(BUFFER - at % BLOCK);
            self.write_piece(&mut buffer, &part(buffers, done, len), at)?;
            done += len;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.on_range(offset, len, || self.file.punch(offset, len))
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.on_range(offset, len, || self.file.zero(offset, len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

    use super::*;

    /// A file of `size` bytes, if the file system has direct access.
    fn storage(size: u64) -> Option<(DirectStorage, File)> {
        // Not /tmp, which is memory in many places.
        let program = std::env::current_exe().unwrap();
        let directory = program.parent().unwrap();
        let file = tempfile::NamedTempFile::new_in(directory).unwrap();
        file.as_file().set_len(size).unwrap();
        let other = file.reopen().unwrap();
        let flags = fcntl_getfl(&other).unwrap();
        if fcntl_setfl(&other, flags | OFlags::DIRECT).is_err() {
            eprintln!(
                "skipped: the file system of {:?} has no O_DIRECT",
                file.path()
            );
            return None;
        }
        Some((DirectStorage::new(other), file.into_file()))
    }

    fn step() -> impl Strategy<Value = (bool, u64, usize, usize)> {
        let at = prop_oneof![0..40_000u64, (0..9u64).prop_map(|n| n * BLOCK)];
        let len = prop_oneof![1..20_000usize, (1..5usize).prop_map(|n| n * BLOCK as usize)];
        (any::<bool>(), at, len, 1..5000usize)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        /// As a plain file, in any pieces.
        #[test]
        fn reads_and_writes(size in 0..30_000u64, steps in prop::collection::vec(step(), 1..20)) {
            let Some((storage, _)) = storage(size) else { return Ok(()) };
            let mut model = vec![0u8; size as usize];
            for (number, (write, at, len, piece)) in steps.into_iter().enumerate() {
                let mut bytes = vec![number as u8 + 1; len];
                let pieces = |bytes: &mut [u8], work: &dyn Fn(&[IoMemory<'_>])| {
                    let all: Vec<_> = bytes.chunks_mut(piece).map(IoMemory::of_bytes).collect();
                    work(&all);
                };
                if write {
                    pieces(&mut bytes, &|all| storage.write(all, at).unwrap());
                    let end = at as usize + len;
                    // A last block that was only a part of one is whole then.
                    let now = storage.size().unwrap() as usize;
                    prop_assert!(now >= model.len().max(end));
                    prop_assert!(now - model.len().max(end) < BLOCK as usize);
                    model.resize(now, 0);
                    model[at as usize..end].copy_from_slice(&bytes);
                } else {
                    let there = (model.len() as u64).saturating_sub(at).min(len as u64);
                    pieces(&mut bytes, &|all| assert_eq!(storage.read(all, at).unwrap(), there));
                    let there = there as usize;
                    if there > 0 {
                        prop_assert_eq!(&bytes[..there], &model[at as usize..at as usize + there]);
                    }
                }
            }
        }
    }

    #[test]
    fn parts_of_one_block_do_not_undo_each_other() {
        let Some((storage, _file)) = storage(BLOCK) else {
            return;
        };
        let storage = Arc::new(storage);
        std::thread::scope(|scope| {
            for sector in 0..8u64 {
                let storage = storage.clone();
                scope.spawn(move || {
                    for round in 0..50 {
                        let bytes = [round + 1; 512];
                        storage
                            .write(&[IoMemory::of_shared(&bytes)], sector * 512)
                            .unwrap();
                    }
                });
            }
        });
        let mut bytes = vec![0; BLOCK as usize];
        storage.read(&[IoMemory::of_bytes(&mut bytes)], 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 50));
    }
}
