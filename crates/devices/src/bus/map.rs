//! Sorted, disjoint ranges and who answers in them.

use std::sync::Arc;

use super::Slot;
use crate::pci::BarSpace;

/// A range of ports or guest-physical addresses.
#[derive(Clone)]
pub(super) struct Entry {
    pub first: u64,
    pub last: u64,
    pub space: BarSpace,
    pub slot: Arc<Slot>,
    /// The BAR that decodes the range, and its base; `None` for a range that
    /// the device claimed for good.
    pub bar: Option<(u8, u64)>,
}

/// An address space.
#[derive(Clone, Default)]
pub(super) struct Ranges(Vec<Entry>);

impl Ranges {
    /// Who answers at `address`.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&Entry> {
        let after = self.0.partition_point(|e| e.first <= address);
        let entry = self.0.get(after.checked_sub(1)?)?;
        (address <= entry.last).then_some(entry)
    }

    /// Who answers at `offset` from `address`, and where that is.
    pub fn find_at(&self, address: u64, offset: u64) -> Option<(u64, &Entry)> {
        let address = address.checked_add(offset)?;
        Some((address, self.find(address)?))
    }

    /// A fixed entry that overlaps `first..=last`.
    pub fn fixed_overlap(&self, first: u64, last: u64) -> Option<&Entry> {
        self.overlaps(first, last).find(|e| e.bar.is_none())
    }

    /// Adds a range that overlaps no other.
    pub fn insert(&mut self, entry: Entry) {
        let at = self.0.partition_point(|e| e.first < entry.first);
        self.0.insert(at, entry);
    }

    /// Adds those parts of a range that nobody decodes yet: what a guest
    /// programs into BARs may overlap anything, and whoever came first keeps
    /// its addresses.
    pub fn insert_around(&mut self, entry: Entry) {
        let taken: Vec<(u64, u64)> = self
            .overlaps(entry.first, entry.last)
            .map(|e| (e.first, e.last))
            .collect();
        let mut next = Some(entry.first);
        for (first, last) in taken {
            if let Some(start) = next.filter(|start| *start < first) {
                self.insert(Entry {
                    first: start,
                    last: first - 1,
                    ..entry.clone()
                });
            }
            next = last.checked_add(1);
        }
        if let Some(start) = next.filter(|start| *start <= entry.last) {
            self.insert(Entry {
                first: start,
                ..entry
            });
        }
    }

    /// Removes every range for which `drop` says so.
    pub fn remove(&mut self, drop: impl Fn(&Entry) -> bool) {
        self.0.retain(|e| !drop(e));
    }

    fn overlaps(&self, first: u64, last: u64) -> impl Iterator<Item = &Entry> {
        let from = self.0.partition_point(|e| e.last < first);
        self.0
            .iter()
            .skip(from)
            .take_while(move |e| e.first <= last)
    }
}
