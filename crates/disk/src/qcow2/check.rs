//! Whether an image may be written to: its tables must not overlap, and must
//! be counted as used.
//!
//! Else new data would be put where a table is, and the library below relies
//! on refcounts of what it has found. An image that fails here is damaged;
//! reading it does no harm.

use std::collections::BTreeSet;

use super::header::{Header, Table, fill};
use crate::file::Qcow2Error;
use crate::storage::Storage;

const OVERLAP: Qcow2Error = Qcow2Error::Damaged("tables overlap");
const UNCOUNTED: Qcow2Error = Qcow2Error::Damaged("tables are not counted as used");
const PLACE: Qcow2Error = Qcow2Error::Damaged("tables are not at clusters, or behind its end");

/// Checks the image with these L2 tables and, by index, refcount blocks; those
/// that are not there are 0.
pub fn check(
    storage: &dyn Storage,
    header: &Header,
    l2_tables: impl Iterator<Item = u64>,
    refcount_blocks: &[u64],
) -> Result<(), Qcow2Error> {
    let bits = header.cluster_bits;
    let end = storage.size().map_err(Qcow2Error::Refused)?;
    let mut used = BTreeSet::from([0]);
    let mut add = |first: u64, count: u64| {
        (first..first + count)
            .all(|cluster| used.insert(cluster))
            .then_some(())
            .ok_or(OVERLAP)
    };
    for Table { offset, len } in [header.l1, header.refcounts] {
        add(offset >> bits, len.div_ceil(1 << bits))?;
    }
    let blocks = refcount_blocks.iter().copied().filter(|block| *block != 0);
    for offset in l2_tables.chain(blocks) {
        if !offset.is_multiple_of(1 << bits) || offset >= end {
            return Err(PLACE);
        }
        add(offset >> bits, 1)?;
    }
    counted(storage, header, &used, refcount_blocks)
}

/// Whether all of these clusters have a refcount.
fn counted(
    storage: &dyn Storage,
    header: &Header,
    used: &BTreeSet<u64>,
    refcount_blocks: &[u64],
) -> Result<(), Qcow2Error> {
    let order = header.refcount_order;
    // Log2 of the refcounts in a block.
    let covered = header.cluster_bits + 3 - order;
    let mut block = vec![0; 1 << header.cluster_bits];
    let mut loaded = None;
    for cluster in used {
        let number = cluster >> covered;
        if loaded != Some(number) {
            let offset = usize::try_from(number).ok();
            let offset = offset.and_then(|number| refcount_blocks.get(number));
            match offset {
                Some(offset) if *offset != 0 => {
                    block.fill(0);
                    fill(storage, &mut block, *offset)?;
                }
                _ => return Err(UNCOUNTED),
            }
            loaded = Some(number);
        }
        let index = (cluster & ((1 << covered) - 1)) as usize;
        let width = 1usize << order;
        let used = if width >= 8 {
            let bytes = width / 8;
            let place = block.get(index * bytes..(index + 1) * bytes);
            place.is_some_and(|count| count.iter().any(|byte| *byte != 0))
        } else {
            // The first one is in the lowest bits.
            let bit = index * width;
            let byte = block.get(bit / 8).copied().unwrap_or(0);
            byte >> (bit % 8) & ((1 << width) - 1) != 0
        };
        if !used {
            return Err(UNCOUNTED);
        }
    }
    Ok(())
}
