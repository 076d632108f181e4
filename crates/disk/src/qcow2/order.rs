//! In which order an image's parts reach stable storage.
//!
//! After a failure of the host's power any part of what was written since the
//! last flush may be there. The image must be whole all the same, so a part
//! that refers to another one is written when that one is lasting:
//!
//! ```text
//! header, L1 table, refcount table ──► everything that was written before
//! L2 table ──► data that it newly refers to, and their refcounts
//! refcount ──► the L2 tables that no longer refer to what it frees
//! ```
//!
//! The library below writes without flushes in between; [`Order`] says where
//! one is needed. Data that overwrite data need none.
//!
//! It also enters new tables in the L1 table and the refcount table before
//! their own refcounts have left its cache. These entries are put off here:
//! until the next flush, when the cache was written, and those of the refcount
//! table until an L2 table is written, before which the library writes the
//! refcounts. A process that is killed before loses only what nobody flushed.

use std::collections::{BTreeMap, HashSet};

use super::check::check;
use super::header::{Header, Table, fill, tables};
use crate::file::Qcow2Error;
use crate::storage::Storage;

/// Bits of a table's entry that are an offset, also of an L1 table's
/// (qcow2.txt, "L1 table entry", "refcount table").
const OFFSET_MASK: u64 = 0x00FF_FFFF_FFFF_FE00;
/// Table bytes read at once.
const CHUNK: u64 = 1 << 20;

/// What a write is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Data of the guest's in a new place, or a table that nothing refers to
    /// yet.
    New,
    /// A block of refcounts.
    Refcounts,
    /// A table that refers to data.
    L2,
    /// What everything is found by.
    Root,
}

impl Part {
    fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The parts that must be lasting before this one is written.
    fn after(self) -> u8 {
        match self {
            Part::New => 0,
            Part::Refcounts => Part::L2.bit() | Part::Root.bit(),
            Part::L2 => Part::New.bit() | Part::Refcounts.bit() | Part::Root.bit(),
            Part::Root => Part::New.bit() | Part::Refcounts.bit() | Part::L2.bit(),
        }
    }
}

/// Knows where an image's parts are, and which were written since the last
/// flush.
#[derive(Debug)]
pub struct Order {
    cluster_bits: u32,
    l1: Table,
    refcounts: Table,
    l2_tables: HashSet<u64>,
    refcount_blocks: HashSet<u64>,
    written: u8,
    /// Entries put off, by their place.
    put_off: BTreeMap<u64, Entries>,
    /// How often something was put off.
    count: u64,
}

/// Entries of a table that are not written yet.
#[derive(Debug)]
pub struct Entries {
    /// When they were put off, by [`Order::mark`].
    since: u64,
    /// As they are to be in the file.
    pub bytes: Vec<u8>,
}

impl Order {
    /// For the image in `storage`, which must be fit to be written to.
    pub fn new(storage: &dyn Storage, header: &Header) -> Result<Self, Qcow2Error> {
        let l2_tables = offsets(storage, header.l1)?;
        let l2_tables = || l2_tables.iter().copied().filter(|offset| *offset != 0);
        let refcount_blocks = offsets(storage, header.refcounts)?;
        check(storage, header, l2_tables(), &refcount_blocks)?;
        Ok(Order {
            cluster_bits: header.cluster_bits,
            l1: header.l1,
            refcounts: header.refcounts,
            l2_tables: l2_tables().collect(),
            refcount_blocks: refcount_blocks.into_iter().collect(),
            written: 0,
            put_off: BTreeMap::new(),
            count: 0,
        })
    }

    /// For an image that is being made.
    pub fn empty(cluster_bits: u32) -> Self {
        let nowhere = Table { offset: 0, len: 0 };
        Order {
            cluster_bits,
            l1: nowhere,
            refcounts: nowhere,
            l2_tables: HashSet::new(),
            refcount_blocks: HashSet::new(),
            written: 0,
            put_off: BTreeMap::new(),
            count: 0,
        }
    }

    /// What a write at `offset` is to.
    pub fn part(&self, offset: u64) -> Part {
        let cluster = offset >> self.cluster_bits << self.cluster_bits;
        let within = |table: Table| offset.wrapping_sub(table.offset) < table.len;
        if cluster == 0 || within(self.l1) || within(self.refcounts) {
            Part::Root
        } else if self.refcount_blocks.contains(&cluster) {
            Part::Refcounts
        } else if self.l2_tables.contains(&cluster) {
            Part::L2
        } else {
            Part::New
        }
    }

    /// Whether what was written must be flushed before `part` is.
    pub fn needs_flush(&self, part: Part) -> bool {
        self.written & part.after() != 0
    }

    /// `part` is written.
    pub fn wrote(&mut self, part: Part) {
        self.written |= part.bit();
    }

    /// Everything up to now is lasting.
    pub fn flushed(&mut self) {
        self.written = 0;
    }

    /// Whether anything was written that may not be lasting.
    pub fn is_unflushed(&self) -> bool {
        self.written != 0
    }

    /// Puts entries of the L1 or the refcount table off; false for what is
    /// not in these.
    pub fn put_off(&mut self, offset: u64, bytes: &[u8]) -> bool {
        if offset >> self.cluster_bits == 0 {
            return false;
        }
        self.count += 1;
        let entries = Entries {
            since: self.count,
            bytes: bytes.to_vec(),
        };
        self.put_off.insert(offset, entries);
        true
    }

    /// Everything that is put off up to now.
    pub fn mark(&self) -> u64 {
        self.count
    }

    /// The next entries that were put off up to `mark`.
    pub fn due(&self, mark: u64) -> Option<(u64, &Entries)> {
        let mut all = self.put_off.iter();
        let (offset, entries) = all.find(|(_, entries)| entries.since <= mark)?;
        Some((*offset, entries))
    }

    /// The next entries of the refcount table.
    pub fn due_refcounts(&self) -> Option<(u64, &Entries)> {
        let Table { offset, len } = self.refcounts;
        let mut all = self.put_off.range(offset..offset.saturating_add(len));
        all.next().map(|(offset, entries)| (*offset, entries))
    }

    /// The entries at `offset` were written.
    pub fn entered(&mut self, offset: u64) {
        self.put_off.remove(&offset);
        self.wrote(Part::Root);
    }

    /// `bytes` were written at `offset` in a root: learns of new tables.
    pub fn learn(&mut self, offset: u64, bytes: &[u8]) {
        if offset == 0
            && let Some((l1, refcounts)) = tables(bytes, self.cluster_bits)
        {
            (self.l1, self.refcounts) = (l1, refcounts);
            // A table that was replaced has its entries in its successor.
            let tables = [l1, refcounts];
            let within = |at: u64, table: Table| at.wrapping_sub(table.offset) < table.len;
            self.put_off
                .retain(|at, _| tables.iter().any(|table| within(*at, *table)));
        }
        let found = [
            (self.l1, &mut self.l2_tables),
            (self.refcounts, &mut self.refcount_blocks),
        ];
        for (table, known) in found {
            let skip = table.offset.saturating_sub(offset);
            let bytes = usize::try_from(skip)
                .ok()
                .and_then(|skip| bytes.get(skip..));
            if offset < table.offset.saturating_add(table.len) {
                let offsets = entries(bytes.unwrap_or_default());
                known.extend(offsets.filter(|offset| *offset != 0));
            }
        }
    }
}

/// The offsets in a table's entries; 0 where there is nothing.
fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (entries, _) = bytes.as_chunks::<8>();
    entries
        .iter()
        .map(|entry| u64::from_be_bytes(*entry) & OFFSET_MASK)
}

fn offsets(storage: &dyn Storage, table: Table) -> Result<Vec<u64>, Qcow2Error> {
    let mut found = Vec::new();
    let mut buffer = vec![0; CHUNK.min(table.len) as usize];
    let mut done = 0;
    while done < table.len {
        let count = (table.len - done).min(CHUNK) as usize;
        let chunk = buffer.get_mut(..count).unwrap_or_default();
        if fill(storage, chunk, table.offset + done)? < count {
            return Err(Qcow2Error::Short("tables"));
        }
        found.extend(entries(chunk));
        done += count as u64;
    }
    Ok(found)
}
