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
//! The library below writes in this order, but without flushes in between.
//! [`Order`] says where one is needed. Data that overwrite data need none.

use std::collections::HashSet;

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
}

impl Order {
    /// For the image in `storage`.
    pub fn new(storage: &dyn Storage, header: &Header) -> Result<Self, Qcow2Error> {
        Ok(Order {
            cluster_bits: header.cluster_bits,
            l1: header.l1,
            refcounts: header.refcounts,
            l2_tables: offsets(storage, header.l1)?,
            refcount_blocks: offsets(storage, header.refcounts)?,
            written: 0,
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

    /// `bytes` were written at `offset` in a root: learns of new tables.
    pub fn learn(&mut self, offset: u64, bytes: &[u8]) {
        if offset == 0
            && let Some((l1, refcounts)) = tables(bytes, self.cluster_bits)
        {
            (self.l1, self.refcounts) = (l1, refcounts);
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
                known.extend(entries(bytes.unwrap_or_default()));
            }
        }
    }
}

/// The offsets in a table's entries.
fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (entries, _) = bytes.as_chunks::<8>();
    let offsets = entries
        .iter()
        .map(|entry| u64::from_be_bytes(*entry) & OFFSET_MASK);
    offsets.filter(|offset| *offset != 0)
}

fn offsets(storage: &dyn Storage, table: Table) -> Result<HashSet<u64>, Qcow2Error> {
    let mut found = HashSet::new();
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
