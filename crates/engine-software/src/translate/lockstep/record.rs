//! What the interpreter's run leaves outside the registers: stores, and
//! translations that came into the TLB.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use crate::mem::Direct;
use crate::tlb::{Entry, Tlb};
use crate::word::Word;

/// Bytes on either side of a store that are compared too.
const MARGIN: usize = 32;
/// A and D of a page-table entry.
const ACCESSED_DIRTY: u8 = 1 << 5 | 1 << 6;
/// Bytes in a page.
const PAGE: usize = 0x1000;

/// One store, with its surroundings in the page.
#[derive(Clone, Copy)]
struct Store {
    /// First byte of the surroundings.
    host: *mut u8,
    /// Guest-physical address of it.
    gpa: u64,
    /// Their bytes.
    len: usize,
    /// Where in `old` their bytes are.
    at: usize,
    /// The store's own bytes, counted from `host`.
    from: usize,
    to: usize,
}

/// The notes of one run.
#[derive(Default)]
pub struct Record {
    stores: Vec<Store>,
    /// Bytes before the stores, and after the interpreter's run.
    old: Vec<u8>,
    new: Vec<u8>,
    fills: Vec<(bool, usize, Entry)>,
    /// First bytes of page-table entries in which a walk has set A or D.
    /// They count for nothing: who has the translation cached sets none.
    marks: Vec<*mut u8>,
    /// Pages that the interpreter wrote to, and one that it did not, to which
    /// translated code wants to.
    pages: Vec<u64>,
    stray: Option<u64>,
    /// The last instruction, or any, stored to a page that is watched.
    watched: [bool; 2],
}

impl Record {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.stores.clear();
        self.old.clear();
        self.new.clear();
        self.fills.clear();
        self.marks.clear();
        self.pages.clear();
        self.stray = None;
        self.watched = [false; 2];
    }

    /// Whether the last instruction stored to a page that is watched.
    pub fn take_watched(&mut self) -> bool {
        std::mem::take(&mut self.watched[0])
    }

    /// Whether any did.
    pub fn has_watched(&self) -> bool {
        self.watched[1]
    }

    /// The interpreter may write to the page of `gpa`.
    pub fn write(&mut self, gpa: u64) {
        let page = gpa & !(PAGE as u64 - 1);
        if self.pages.last() != Some(&page) {
            self.pages.push(page);
        }
    }

    /// Translated code asks whether it may write to the page of `gpa`.
    pub fn check_write(&mut self, gpa: u64) {
        let page = gpa & !(PAGE as u64 - 1);
        if !self.pages.contains(&page) {
            self.stray = Some(page);
        }
    }

    /// Takes note of a store of `len` bytes that is about to be made.
    ///
    /// # Safety
    /// The bytes lie in one page of guest RAM.
    pub unsafe fn store(&mut self, direct: &Direct, len: usize) {
        // SAFETY: watch bytes live as long as guest RAM.
        if unsafe { (*direct.watch).load(Ordering::Relaxed) } != 0 {
            self.watched = [true; 2];
        }
        let offset = direct.host as usize % PAGE;
        let before = MARGIN.min(offset);
        let after = MARGIN.min(PAGE - (offset + len).min(PAGE));
        let host = direct.host.wrapping_sub(before);
        let store = Store {
            host,
            gpa: direct.gpa.wrapping_sub(before as u64),
            len: before + len + after,
            at: self.old.len(),
            from: before,
            to: before + len,
        };
        self.stores.push(store);
        let bytes = (0..store.len).map(|n| {
            // SAFETY: in the page of the bytes that the caller has translated.
            unsafe { u8::load(host.add(n)) }
        });
        self.old.extend(bytes);
    }

    /// Takes note of the entry at `host`, in which a walk is about to set
    /// bits.
    ///
    /// # Safety
    /// The byte lies in guest RAM.
    pub unsafe fn mark(&mut self, host: *mut u8) {
        self.marks.push(host);
        self.stores.push(Store {
            host,
            gpa: 0,
            len: 1,
            at: self.old.len(),
            from: 0,
            to: 1,
        });
        // SAFETY: as the caller says.
        self.old.push(unsafe { u8::load(host) });
    }

    /// Takes note of a TLB entry that is about to be replaced.
    pub fn fill(&mut self, write: bool, index: usize, entry: Entry) {
        self.fills.push((write, index, entry));
    }

    /// Keeps what the run stored and takes it back. What it did is known
    /// from then on, however often it is taken back.
    pub fn undo(&mut self, tlb: &mut Tlb) {
        if self.new.is_empty() {
            self.new.extend(current(&self.stores));
        }
        for store in self.stores.iter().rev() {
            for n in store.from..store.to {
                // SAFETY: as in `store`: guest RAM, and mapped as long as the
                // partition.
                unsafe { u8::store(store.host.add(n), self.old[store.at + n]) };
            }
        }
        for (write, index, entry) in self.fills.drain(..).rev() {
            if write {
                tlb.write[index] = entry;
            } else {
                tlb.read[index] = entry;
            }
        }
    }

    /// Where RAM is not as the interpreter has left it.
    pub fn differences(&self, list: &mut Vec<String>) {
        if let Some(page) = self.stray {
            list.push(format!("only translated code writes to page {page:#x}"));
        }
        for store in &self.stores {
            let now: Vec<u8> = current(std::slice::from_ref(store)).collect();
            let Some(wanted) = self.new.get(store.at..store.at + store.len) else {
                continue;
            };
            let differs = |&n: &usize| {
                let bits = now[n] ^ wanted[n];
                bits != 0
                    && (bits & !ACCESSED_DIRTY != 0
                        || !self.marks.contains(&store.host.wrapping_add(n)))
            };
            let Some(first) = (0..store.len).find(differs) else {
                continue;
            };
            let end = (first + 16).min(store.len);
            let mut text = format!("memory at {:#x}:", store.gpa + first as u64);
            for bytes in [&wanted[first..end], &now[first..end]] {
                let _ = write!(text, " {bytes:02x?} /");
            }
            text.truncate(text.len() - 2);
            list.push(text);
        }
    }
}

fn current(stores: &[Store]) -> impl Iterator<Item = u8> {
    stores.iter().flat_map(|store| {
        (0..store.len).map(|n| {
            // SAFETY: as in `Record::store`.
            unsafe { u8::load(store.host.add(n)) }
        })
    })
}
