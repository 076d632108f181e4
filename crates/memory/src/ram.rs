//! Guest RAM as host mappings.

use std::sync::atomic::{AtomicU8, AtomicU32};

use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::pages::{PAGE_SHIFT, PAGE_SIZE, PageTable};

/// A contiguous piece of guest-physical address space backed by RAM, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First guest-physical address; a multiple of the page size.
    pub start: u64,
    /// Length in bytes; a non-zero multiple of the page size.
    pub len: u64,
}

/// Why guest memory could not be made or accessed.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A range is empty, unaligned, or overlaps or precedes the one before it.
    #[error("guest RAM range {0:?} is empty, not page-aligned or out of order")]
    BadRange(Range),
    /// The host would not map that much.
    #[error("cannot map {bytes} bytes of guest RAM: {reason}; ask for less with --memory")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// What the host answered.
        reason: String,
    },
    /// What is given back is not whole pages.
    #[error("guest memory {0:?} is not whole pages, so that it cannot be given back")]
    NotPages(Range),
    /// The host keeps what is given back.
    #[error("the host does not take guest memory {0:?} back: {1}")]
    Kept(Range, std::io::Error),
    /// An access reaches outside guest RAM.
    #[error("guest address {address:#x} (+{len} bytes) is not RAM")]
    NotRam {
        /// First guest-physical address of the access.
        address: u64,
        /// Length in bytes.
        len: usize,
    },
}

/// The RAM of one machine. Cloning shares it.
#[derive(Clone, Debug)]
pub struct GuestRam {
    mappings: GuestMemoryMmap<PageTable>,
}

/// One guest page as an engine's TLB holds it. The pointers stay valid while
/// the [`GuestRam`] it came from (or a clone) lives: RAM is never unmapped
/// before its last owner is gone.
#[derive(Clone, Copy, Debug)]
pub struct PageRef {
    /// Host address of the page's first byte; 4096 bytes may be accessed.
    pub host: *mut u8,
    /// The page's watch byte; see [`PageTable::watch`].
    pub watch: *const AtomicU8,
    /// The page's code generation; see [`PageTable::generation`].
    pub generation: *const AtomicU32,
}

impl GuestRam {
    /// Maps `ranges` (ascending, disjoint) as private anonymous memory. The
    /// host backs a page when the guest first touches it.
    pub fn new(ranges: &[Range]) -> Result<Self, MemoryError> {
        let mut end = 0;
        for range in ranges {
            let aligned = range.start % PAGE_SIZE == 0 && range.len % PAGE_SIZE == 0;
            let next = range.start.checked_add(range.len);
            match next {
                Some(next) if aligned && range.len != 0 && range.start >= end => end = next,
                _ => return Err(MemoryError::BadRange(*range)),
            }
        }
        let total = ranges.iter().map(|r| r.len).sum();
        let fail = |reason: String| MemoryError::Map {
            bytes: total,
            reason,
        };
        let sized: Vec<_> = ranges
            .iter()
            .map(|r| (GuestAddress(r.start), r.len as usize))
            .collect();
        let mappings =
            GuestMemoryMmap::from_ranges(&sized).map_err(|error| fail(error.to_string()))?;
        for region in mappings.iter() {
            // SAFETY: the range is exactly one mapping that `region` owns;
            // MADV_HUGEPAGE changes how it is backed, not what it contains.
            // A kernel without huge pages refuses, which costs speed only.
            unsafe {
                libc::madvise(
                    region.as_ptr().cast(),
                    region.len() as usize,
                    libc::MADV_HUGEPAGE,
                );
            }
        }
        Ok(GuestRam { mappings })
    }

    /// The mappings, for devices that speak `vm-memory`.
    pub fn mappings(&self) -> &GuestMemoryMmap<PageTable> {
        &self.mappings
    }

    /// The RAM ranges, ascending.
    pub fn ranges(&self) -> Vec<Range> {
        self.mappings
            .iter()
            .map(|region| Range {
                start: region.start_addr().0,
                len: region.len(),
            })
            .collect()
    }

    /// Total RAM in bytes.
    pub fn size(&self) -> u64 {
        self.mappings.iter().map(|region| region.len()).sum()
    }

    /// The page at guest-physical `address`, or `None` where there is no RAM.
    pub fn page(&self, address: u64) -> Option<PageRef> {
        let region = self.mappings.find_region(GuestAddress(address))?;
        let offset = (address - region.start_addr().0) & !(PAGE_SIZE - 1);
        let index = (offset >> PAGE_SHIFT) as usize;
        let table = region.bitmap_ref();
        Some(PageRef {
            // SAFETY: `find_region` says the address lies in the region, whose
            // mapping is `len` bytes from `as_ptr`, a multiple of the page size.
            host: unsafe { region.as_ptr().add(offset as usize) },
            watch: table.watch(index)?,
            generation: table.generation(index)?,
        })
    }

    /// The page table of the RAM range that contains `address`, and the byte
    /// offset of `address` in that range.
    pub fn table(&self, address: u64) -> Option<(&PageTable, u64)> {
        let region = self.mappings.find_region(GuestAddress(address))?;
        Some((region.bitmap_ref(), address - region.start_addr().0))
    }

    /// All page tables with the range each describes, ascending.
    pub fn tables(&self) -> impl Iterator<Item = (Range, &PageTable)> {
        self.mappings.iter().map(|region| {
            let range = Range {
                start: region.start_addr().0,
                len: region.len(),
            };
            (range, region.bitmap_ref())
        })
    }

    /// Copies `data.len()` bytes out of guest RAM. The range may span
    /// adjacent RAM ranges but must lie in RAM wholly.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let len = data.len();
        self.mappings
            .read_slice(data, GuestAddress(address))
            .map_err(|error| not_ram(error, address, len))
    }

    /// Gives whole pages back to the host: they read as zeros from now on,
    /// and the host backs them again when they are next touched. Leaves the
    /// traces of a store. The range must lie in one RAM range.
    pub fn discard(&self, range: Range) -> Result<(), MemoryError> {
        let Range { start, len } = range;
        if !start.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) || len == 0 {
            return Err(MemoryError::NotPages(range));
        }
        let outside = || MemoryError::NotRam {
            address: start,
            len: usize::try_from(len).unwrap_or(usize::MAX),
        };
        let region = self.mappings.find_region(GuestAddress(start));
        let region = region.ok_or_else(outside)?;
        let offset = start - region.start_addr().0;
        if region.len() - offset < len {
            return Err(outside());
        }
        // SAFETY: `len` bytes from `offset` lie in the mapping that `region`
        // owns, which is private and anonymous. Nobody holds a Rust reference
        // into guest memory, and to those who access it otherwise this is a
        // store of zeros.
        let result = unsafe {
            let host = region.as_ptr().add(offset as usize);
            libc::madvise(host.cast(), len as usize, libc::MADV_DONTNEED)
        };
        let error = std::io::Error::last_os_error();
        // Also after an error part of it may be gone.
        region
            .bitmap_ref()
            .mark_dirty(offset as usize, len as usize);
        match result {
            0 => Ok(()),
            _ => Err(MemoryError::Kept(range, error)),
        }
    }

    /// Copies `data` into guest RAM and leaves the traces of a store.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.mappings
            .write_slice(data, GuestAddress(address))
            .map_err(|error| not_ram(error, address, data.len()))
    }
}

fn not_ram(_: GuestMemoryError, address: u64, len: usize) -> MemoryError {
    MemoryError::NotRam { address, len }
}

trait RegionTable {
    fn bitmap_ref(&self) -> &PageTable;
}

impl RegionTable for vm_memory::GuestRegionMmap<PageTable> {
    fn bitmap_ref(&self) -> &PageTable {
        std::ops::Deref::deref(self).bitmap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_ranges() -> GuestRam {
        GuestRam::new(&[
            Range {
                start: 0,
                len: 2 * PAGE_SIZE,
            },
            Range {
                start: 1 << 32,
                len: PAGE_SIZE,
            },
        ])
        .unwrap()
    }

    #[test]
    fn reads_back_what_was_written() {
        let ram = two_ranges();
        ram.write(PAGE_SIZE - 2, &[1, 2, 3, 4]).unwrap();
        let mut back = [0; 4];
        ram.read(PAGE_SIZE - 2, &mut back).unwrap();
        assert_eq!(back, [1, 2, 3, 4]);
        assert_eq!(ram.size(), 3 * PAGE_SIZE);
    }

    #[test]
    fn nothing_outside_ram_is_reachable() {
        let ram = two_ranges();
        assert!(ram.write(2 * PAGE_SIZE - 1, &[1, 2]).is_err());
        assert!(ram.read(u64::MAX - 1, &mut [0; 4]).is_err());
        assert!(ram.page(2 * PAGE_SIZE).is_none());
        assert!(ram.page((1 << 32) + PAGE_SIZE - 1).is_some());
    }

    #[test]
    fn a_devices_store_invalidates_code() {
        let ram = two_ranges();
        let (table, offset) = ram.table((1 << 32) + 100).unwrap();
        assert_eq!(offset, 100);
        let before = table.watch_code(0, 100, 110);
        ram.write((1 << 32) + 96, &[0; 8]).unwrap();
        assert_ne!(table.watch_code(0, 100, 110), before);
    }

    #[test]
    fn what_is_given_back_reads_as_zeros() {
        let ram = two_ranges();
        let range = |start, len| Range { start, len };
        ram.write(PAGE_SIZE - 1, &[1, 2]).unwrap();
        let (table, _) = ram.table(0).unwrap();
        let before = table.watch_code(1, 100, 110);
        table.start_dirty_log();
        ram.discard(range(PAGE_SIZE, PAGE_SIZE)).unwrap();
        let mut back = [9; 2];
        ram.read(PAGE_SIZE - 1, &mut back).unwrap();
        assert_eq!(back, [1, 0]);
        // What was decoded from there is not there any more.
        assert_ne!(table.watch_code(1, 100, 110), before);
        assert_eq!(table.take_dirty(), [0b10]);
        ram.write(PAGE_SIZE, &[3]).unwrap();
        ram.read(PAGE_SIZE - 1, &mut back).unwrap();
        assert_eq!(back, [1, 3]);
        for (start, len) in [(0, 0), (1, PAGE_SIZE), (0, 1)] {
            let refused = ram.discard(range(start, len));
            assert!(matches!(refused, Err(MemoryError::NotPages(_))));
        }
        for (start, len) in [(0, 3 * PAGE_SIZE), (1 << 40, PAGE_SIZE), (0, !0 << 12)] {
            let refused = ram.discard(range(start, len));
            assert!(matches!(refused, Err(MemoryError::NotRam { .. })));
        }
    }

    #[test]
    fn bad_ranges_are_refused() {
        for (start, len) in [(0, 0), (1, PAGE_SIZE), (0, 100), (u64::MAX - 4095, 8192)] {
            assert!(matches!(
                GuestRam::new(&[Range { start, len }]),
                Err(MemoryError::BadRange(_))
            ));
        }
    }
}
