//! A disk whose bytes are those of a file or block device.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;

use crate::disk::{Disk, DiskError};
use crate::file::{OpenError, check};
use crate::memory::{Direction, IoMemory, total, transfer};

/// Zeros written at once where the file system cannot make them.
const ZEROS: usize = 64 << 10;

/// A raw image file or a block device. Its size is fixed when it is made.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
    read_only: bool,
    /// The storage gives space back and makes zeros by itself, as far as is
    /// known.
    can_punch: AtomicBool,
    can_zero: AtomicBool,
}

impl RawDisk {
    /// A disk over `file`, open for reading and, unless `read_only`, for
    /// writing.
    pub fn new(file: File, read_only: bool) -> Result<Self, OpenError> {
        let size = check(&file)?;
        Ok(RawDisk {
            file,
            size,
            read_only,
            can_punch: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
        })
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(DiskError::OutOfRange { offset, len }),
        }
    }

    fn check_change(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.check(offset, len)
    }

    /// Asks the file system or device to do it. False when it cannot, which
    /// is remembered in `able`.
    fn allocate(
        &self,
        able: &AtomicBool,
        flags: FallocateFlags,
        range: (u64, u64),
    ) -> Result<bool, Errno> {
        if !able.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            match fallocate(&self.file, flags, range.0, range.1) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::NOTTY) => {
                    able.store(false, Ordering::Relaxed);
                    return Ok(false);
                }
                // Some file systems and devices take only whole blocks.
                Err(Errno::INVAL) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    fn write_zeros_by_hand(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut zeros = vec![0; ZEROS.min(usize::try_from(len).unwrap_or(ZEROS))];
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(zeros.len() as u64) as usize;
            let buffer = [IoMemory::of_bytes(&mut zeros[..piece])];
            match transfer(&self.file, Direction::Write, &buffer, offset + done)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => done += count,
            }
        }
        Ok(())
    }
}

/// An error of the host's with what was attempted.
fn host(what: &'static str, offset: u64, len: u64) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError::Host {
        what,
        offset,
        len,
        source,
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError> {
        let len = total(buffers);
        self.check(offset, len)?;
        let count = transfer(&self.file, Direction::Read, buffers, offset)
            .map_err(host("read", offset, len))?;
        if count < len {
            return Err(DiskError::Shortened(offset + count));
        }
        Ok(())
    }

    fn write_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError> {
        let len = total(buffers);
        self.check_change(offset, len)?;
        let count = transfer(&self.file, Direction::Write, buffers, offset)
            .map_err(host("write", offset, len))?;
        if count < len {
            return Err(host("write", offset, len)(io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        fdatasync(&self.file).map_err(|error| host("flush", 0, self.size)(error.into()))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match self.allocate(&self.can_punch, flags, (offset, len)) {
            // Keeping the contents is allowed.
            Ok(_) => Ok(()),
            Err(error) => Err(host("discard", offset, len)(error.into())),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let fail = |error: io::Error| host("write zeros to", offset, len)(error);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let range = (offset, len);
        let done = unmap
            && self
                .allocate(&self.can_punch, punch, range)
                .map_err(|error| fail(error.into()))?
            || self
                .allocate(&self.can_zero, zero, range)
                .map_err(|error| fail(error.into()))?;
        if done {
            return Ok(());
        }
        self.write_zeros_by_hand(offset, len).map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn disk() -> RawDisk {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        RawDisk::new(file, false).unwrap()
    }

    fn write(disk: &RawDisk, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        disk.write_at(&[IoMemory::of_bytes(bytes)], offset)
    }

    fn read(disk: &RawDisk, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xEE; len];
        disk.read_at(&[IoMemory::of_bytes(&mut bytes)], offset)
            .unwrap();
        bytes
    }

    #[test]
    fn reads_back_and_flushes() {
        let disk = disk();
        write(&disk, 512, &mut [7; 1024]).unwrap();
        disk.flush().unwrap();
        assert_eq!(read(&disk, 0, 512), [0; 512]);
        assert_eq!(read(&disk, 512, 1024), [7; 1024]);
        assert_eq!(disk.size(), SIZE);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let disk = disk();
        for offset in [SIZE - 511, SIZE, u64::MAX - 511, u64::MAX] {
            assert!(matches!(
                write(&disk, offset, &mut [1; 512]),
                Err(DiskError::OutOfRange { .. })
            ));
            assert!(disk.discard(offset, 512).is_err());
            assert!(disk.write_zeroes(offset, 512, true).is_err());
        }
        assert_eq!(disk.file.metadata().unwrap().len(), SIZE);
    }

    #[test]
    fn zeros_and_holes() {
        for (punch, zero) in [(true, true), (false, true), (true, false), (false, false)] {
            let disk = disk();
            disk.can_punch.store(punch, Ordering::Relaxed);
            disk.can_zero.store(zero, Ordering::Relaxed);
            write(&disk, 0, &mut vec![9; SIZE as usize]).unwrap();
            disk.write_zeroes(512, 200_000, false).unwrap();
            disk.write_zeroes(500_000, 300_000, true).unwrap();
            assert!(read(&disk, 512, 200_000).iter().all(|b| *b == 0));
            assert!(read(&disk, 500_000, 300_000).iter().all(|b| *b == 0));
            assert_eq!(read(&disk, 511, 1), [9]);
            assert_eq!(read(&disk, 200_512, 1), [9]);
            assert_eq!(read(&disk, 800_000, 1), [9]);
            disk.discard(0, SIZE).unwrap();
            let blocks = disk.file.metadata().unwrap().blocks();
            let still_can = disk.can_punch.load(Ordering::Relaxed);
            assert!(!still_can || blocks == 0, "{blocks} blocks left");
        }
    }

    #[test]
    fn read_only_disks_do_not_change() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        let disk = RawDisk::new(file, true).unwrap();
        assert!(matches!(
            write(&disk, 0, &mut [1; 512]),
            Err(DiskError::ReadOnly)
        ));
        assert!(matches!(disk.discard(0, 512), Err(DiskError::ReadOnly)));
        assert!(disk.write_zeroes(0, 512, false).is_err());
        disk.flush().unwrap();
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let disk = disk();
        disk.file.set_len(1000).unwrap();
        let mut bytes = [0; 1024];
        assert!(matches!(
            disk.read_at(&[IoMemory::of_bytes(&mut bytes)], 512),
            Err(DiskError::Shortened(1000))
        ));
    }

    /// A full host: `/dev/full` refuses every write with ENOSPC.
    #[test]
    fn a_full_host_is_an_error() {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/full")
            .unwrap();
        let disk = RawDisk {
            file,
            size: SIZE,
            read_only: false,
            can_punch: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
        };
        let error = write(&disk, 0, &mut [1; 512]).unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        assert!(disk.write_zeroes(0, 512, false).is_err());
    }
}
