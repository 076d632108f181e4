//! A disk whose bytes are those of a file or block device.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, DiskError, SECTOR};
use crate::file::{OpenError, check_kind, check_size};
use crate::memory::{IoMemory, part, total};
use crate::probe::{PROBED, foreign};
use crate::storage::{FileStorage, Storage, write_zeros};

/// A raw image file or a block device.
#[derive(Debug)]
pub struct RawDisk {
    storage: Arc<dyn Storage>,
    size: AtomicU64,
    read_only: bool,
    /// Its format was guessed, and must be guessed the same the next time.
    guessed: bool,
}

impl RawDisk {
    /// A disk over `file`, open for reading and, unless `read_only`, for
    /// writing.
    pub fn new(file: File, read_only: bool) -> Result<Self, OpenError> {
        check_kind(&file)?;
        RawDisk::over(Arc::new(FileStorage::new(file, true)), read_only)
    }

    /// A disk over `storage`.
    pub fn over(storage: Arc<dyn Storage>, read_only: bool) -> Result<Self, OpenError> {
        let size = check_size(storage.size()?)?;
        Ok(RawDisk {
            storage,
            size: AtomicU64::new(size),
            read_only,
            guessed: false,
        })
    }

    /// Refuses writes that would let the disk be taken for one of another
    /// format: its format was guessed from its contents, and the guest must
    /// not decide how the file is read the next time.
    #[must_use]
    pub fn guessed(self) -> Self {
        RawDisk {
            guessed: true,
            ..self
        }
    }

    /// A write to where formats are recognised: from a copy, since a guest
    /// can change its memory after it was looked at.
    fn write_start(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError> {
        let len = total(buffers);
        let fail = |error| host("write", offset, len)(error);
        let mut start = vec![0; PROBED];
        self.storage
            .read(&[IoMemory::of_bytes(&mut start)], 0)
            .map_err(fail)?;
        let new = start.get_mut(offset as usize..).unwrap_or_default();
        let mut copied = 0;
        for buffer in buffers {
            copied += buffer.copy_to(new.get_mut(copied..).unwrap_or_default());
        }
        if let Some(format) = foreign(&start) {
            return Err(DiskError::Disguise(format));
        }
        let own = start.get(offset as usize..).unwrap_or_default();
        let own = own.get(..copied).unwrap_or_default();
        let mut pieces = vec![IoMemory::of_shared(own)];
        pieces.extend(part(buffers, copied as u64, len));
        self.storage.write(&pieces, offset).map_err(fail)
    }
}

/// An error of the host's with what was attempted.
pub(crate) fn host(
    what: &'static str,
    offset: u64,
    len: u64,
) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError::Host {
        what,
        offset,
        len,
        source,
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError> {
        let len = total(buffers);
        self.check(offset, len)?;
        let read = self.storage.read(buffers, offset);
        let count = read.map_err(host("read", offset, len))?;
        if count < len {
            return Err(DiskError::Shortened(offset + count));
        }
        Ok(())
    }

    fn write_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError> {
        let len = total(buffers);
        self.check_change(offset, len)?;
        if self.guessed && offset < PROBED as u64 {
            return self.write_start(buffers, offset);
        }
        let written = self.storage.write(buffers, offset);
        written.map_err(host("write", offset, len))
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        self.storage.flush().map_err(host("flush", 0, self.size()))
    }

    fn resize(&self, size: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        check_growth(self.size(), size)?;
        let grown = match self.storage.size() {
            // As with a block device that grew, or a file that somebody made
            // longer: there is nothing to do.
            Ok(len) if len >= size => Ok(()),
            Ok(_) => self.storage.set_len(size),
            Err(error) => Err(error),
        };
        let lasting = grown.and_then(|()| self.storage.flush());
        lasting.map_err(|error| DiskError::Resize {
            wanted: size,
            why: error.to_string(),
        })?;
        self.size.fetch_max(size, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        // Where it cannot be done the contents stay, which is allowed.
        let punched = self.storage.punch(offset, len);
        punched.map(drop).map_err(host("discard", offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        let done = write_zeros(&*self.storage, offset, len, unmap);
        done.map_err(host("write zeros to", offset, len))
    }
}

/// Whether a disk of `size` bytes can have `wanted`.
pub(crate) fn check_growth(size: u64, wanted: u64) -> Result<(), DiskError> {
    let why = if wanted < size {
        format!("it has {size}, and a disk does not become smaller")
    } else if !wanted.is_multiple_of(SECTOR) {
        format!("it must be a multiple of {SECTOR}")
    } else {
        return Ok(());
    };
    Err(DiskError::Resize { wanted, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file
    }

    fn disk() -> (RawDisk, File) {
        let file = file();
        let other = file.try_clone().unwrap();
        (RawDisk::new(file, false).unwrap(), other)
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
        let (disk, _) = disk();
        write(&disk, 512, &mut [7; 1024]).unwrap();
        disk.flush().unwrap();
        assert_eq!(read(&disk, 0, 512), [0; 512]);
        assert_eq!(read(&disk, 512, 1024), [7; 1024]);
        assert_eq!(disk.size(), SIZE);
        disk.discard(512, 512).unwrap();
        disk.write_zeroes(1024, 512, true).unwrap();
        assert_eq!(read(&disk, 1024, 512), [0; 512]);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let (disk, file) = disk();
        for offset in [SIZE - 511, SIZE, u64::MAX - 511, u64::MAX] {
            assert!(matches!(
                write(&disk, offset, &mut [1; 512]),
                Err(DiskError::OutOfRange { .. })
            ));
            assert!(disk.discard(offset, 512).is_err());
            assert!(disk.write_zeroes(offset, 512, true).is_err());
        }
        assert_eq!(file.metadata().unwrap().len(), SIZE);
    }

    #[test]
    fn read_only_disks_do_not_change() {
        let disk = RawDisk::new(file(), true).unwrap();
        assert!(matches!(
            write(&disk, 0, &mut [1; 512]),
            Err(DiskError::ReadOnly)
        ));
        assert!(matches!(disk.discard(0, 512), Err(DiskError::ReadOnly)));
        assert!(disk.write_zeroes(0, 512, false).is_err());
        assert!(disk.resize(2 * SIZE).is_err());
        disk.flush().unwrap();
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let (disk, file) = disk();
        file.set_len(1000).unwrap();
        let mut bytes = [0; 1024];
        assert!(matches!(
            disk.read_at(&[IoMemory::of_bytes(&mut bytes)], 512),
            Err(DiskError::Shortened(1000))
        ));
    }

    #[test]
    fn grows_and_does_not_shrink() {
        let (disk, file) = disk();
        disk.resize(SIZE + 4096).unwrap();
        assert_eq!(disk.size(), SIZE + 4096);
        assert_eq!(file.metadata().unwrap().len(), SIZE + 4096);
        assert_eq!(read(&disk, SIZE, 4096), [0; 4096]);
        for bad in [SIZE, SIZE + 8191] {
            assert!(disk.resize(bad).is_err());
        }
        assert_eq!(disk.size(), SIZE + 4096);
    }

    /// QEMU's CVE-2008-2004: a guest writes a header to its raw disk, and is
    /// given other files the next time.
    #[test]
    fn a_guessed_disk_keeps_its_format() {
        let disk = disk().0.guessed();
        for at in [0, 2] {
            write(&disk, 0, &mut [1; 1024]).unwrap();
            let mut header = vec![0; 1024];
            header[at..at + 4].copy_from_slice(b"QFI\xfb");
            let written = write(&disk, 0, &mut header);
            assert_eq!(written.is_err(), at == 0);
            let kept = if at == 0 { vec![1; 1024] } else { header };
            assert_eq!(read(&disk, 0, 1024), kept);
        }
        write(&disk, 512, &mut [2; 4096]).unwrap();
        assert_eq!(read(&disk, 512, 4096), [2; 4096]);
    }

    /// A full host: `/dev/full` refuses every write with ENOSPC.
    #[test]
    fn a_full_host_is_an_error() {
        let full = File::options().read(true).write(true).open("/dev/full");
        let disk = RawDisk {
            storage: Arc::new(FileStorage::new(full.unwrap(), true)),
            size: AtomicU64::new(SIZE),
            read_only: false,
            guessed: false,
        };
        let error = write(&disk, 0, &mut [1; 512]).unwrap_err();
        assert!(error.is_full(), "{error}");
        assert!(error.to_string().contains("No space left"), "{error}");
        assert!(disk.write_zeroes(0, 512, false).is_err());
    }
}
