//! Where the bytes of an image file are: below the formats.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;

use crate::file;
use crate::memory::{Direction, IoMemory, transfer};

/// Zeros written at once where the storage cannot make them.
const ZEROS: usize = 64 << 10;

/// A file, as image formats use it. All methods may be called from several
/// threads at once, and block.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Bytes up to its end.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffers` from byte `offset` on and returns how many bytes there
    /// were before the end.
    fn read(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<u64>;

    /// Writes all of `buffers` from byte `offset` on. A file becomes longer
    /// where that is needed. After an error any part may have been written.
    fn write(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<()>;

    /// Brings everything written before to stable storage.
    fn flush(&self) -> io::Result<()>;

    /// The range reads as zeros and its space is given back. False when the
    /// storage cannot do this here.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool>;

    /// The range reads as zeros, without their being written. False when the
    /// storage cannot do this here.
    fn zero(&self, offset: u64, len: u64) -> io::Result<bool>;

    /// Moves the end; what is new reads as zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// Makes a range read as zeros, by whichever way there is. With `unmap` its
/// space may be given back.
pub fn write_zeros(storage: &dyn Storage, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    if len == 0 || unmap && storage.punch(offset, len)? || storage.zero(offset, len)? {
        return Ok(());
    }
    let zeros = vec![0; ZEROS.min(usize::try_from(len).unwrap_or(ZEROS))];
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(zeros.len() as u64) as usize;
        let piece = zeros.get(..piece).unwrap_or_default();
        storage.write(&[IoMemory::of_shared(piece)], offset + done)?;
        done += piece.len() as u64;
    }
    Ok(())
}

/// An open regular file or block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    /// Flushes reach the disk.
    flushes: bool,
    /// The file system gives space back and makes zeros by itself, as far as
    /// is known.
    can_punch: AtomicBool,
    can_zero: AtomicBool,
}

impl FileStorage {
    /// Over `file`. Without `flushes` a flush does nothing, and a failure of
    /// the host's power loses what was written.
    pub fn new(file: File, flushes: bool) -> Self {
        FileStorage {
            file,
            flushes,
            can_punch: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
        }
    }

    /// What it is over.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Asks the file system or device to do it. False when it cannot, which
    /// is remembered in `able`.
    fn allocate(
        &self,
        able: &AtomicBool,
        flags: FallocateFlags,
        (offset, len): (u64, u64),
    ) -> io::Result<bool> {
        if !able.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let flags = flags | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(&self.file, flags, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::NOTTY) => {
                    able.store(false, Ordering::Relaxed);
                    return Ok(false);
                }
                // Some file systems and devices take only whole blocks.
                Err(Errno::INVAL) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Storage for FileStorage {
    fn size(&self) -> io::Result<u64> {
        file::len(&self.file)
    }

    fn read(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<u64> {
        transfer(&self.file, Direction::Read, buffers, offset)
    }

    fn write(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<()> {
        let count = transfer(&self.file, Direction::Write, buffers, offset)?;
        if count < crate::memory::total(buffers) {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.flushes {
            fdatasync(&self.file)?;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.allocate(&self.can_punch, FallocateFlags::PUNCH_HOLE, (offset, len))
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.allocate(&self.can_zero, FallocateFlags::ZERO_RANGE, (offset, len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.file.metadata()?.is_file() {
            return Err(io::Error::other("a block device has the size it has"));
        }
        self.file.set_len(len)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn storage() -> FileStorage {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        FileStorage::new(file, true)
    }

    fn read(storage: &FileStorage, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xEE; len];
        let read = storage.read(&[IoMemory::of_bytes(&mut bytes)], offset);
        assert_eq!(read.unwrap(), len as u64);
        bytes
    }

    #[test]
    fn zeros_and_holes() {
        for (punch, zero) in [(true, true), (false, true), (true, false), (false, false)] {
            let storage = storage();
            storage.can_punch.store(punch, Ordering::Relaxed);
            storage.can_zero.store(zero, Ordering::Relaxed);
            let nines = vec![9; SIZE as usize];
            storage.write(&[IoMemory::of_shared(&nines)], 0).unwrap();
            write_zeros(&storage, 512, 200_000, false).unwrap();
            write_zeros(&storage, 500_000, 300_000, true).unwrap();
            write_zeros(&storage, 1 << 63, 0, true).unwrap();
            assert!(read(&storage, 512, 200_000).iter().all(|b| *b == 0));
            assert!(read(&storage, 500_000, 300_000).iter().all(|b| *b == 0));
            assert_eq!(read(&storage, 511, 1), [9]);
            assert_eq!(read(&storage, 200_512, 1), [9]);
            assert_eq!(read(&storage, 800_000, 1), [9]);
            let punched = storage.punch(0, SIZE).unwrap();
            let blocks = storage.file.metadata().unwrap().blocks();
            assert!(!punched || blocks == 0, "{blocks} blocks left");
            assert_eq!(storage.size().unwrap(), SIZE);
        }
    }

    #[test]
    fn the_end_moves() {
        let storage = storage();
        storage.set_len(SIZE + 512).unwrap();
        assert_eq!(storage.size().unwrap(), SIZE + 512);
        storage
            .write(&[IoMemory::of_shared(&[1; 100])], SIZE + 600)
            .unwrap();
        assert_eq!(storage.size().unwrap(), SIZE + 700);
        let null = FileStorage::new(File::open("/dev/null").unwrap(), true);
        assert!(null.set_len(1).is_err());
    }
}
