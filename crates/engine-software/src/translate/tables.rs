//! Small tables that translated code searches by itself.
//!
//! For each [`AccessMode`] a translation has been made for (it is part of the
//! code, so no switch of mode costs a flush):
//!
//! * `read`, `write`: linear page → host page. One subtraction and one
//!   comparison with a constant prove that an access is allowed and stays in
//!   the page:
//!
//!   ```text
//!   offset = linear − tag        offset ≤ 4096 − size  ⇒  a hit
//!   host address = offset + host
//!   ```
//!
//!   An entry in `write` says besides that nobody wants to be told of stores
//!   to the page: it has no code, and it is dirty in every log.
//! * `jumps`: linear address → translated code, for branches that leave the
//!   page or whose target is computed. Two neighbours make a set: code looks
//!   at the one that the hash names, and a routine at the other before it goes
//!   back to Rust. What is new comes to the first, and what was there moves to
//!   the second.
//!
//! Behind the first two stands the interpreter's [`Tlb`](crate::tlb), which
//! tells address spaces apart. These do not: what a change of address space
//! makes wrong is listed in a journal as it comes in, and thrown out.

use crate::tlb::AccessMode;

/// Entries of `read` and `write`, a power of two.
pub const PAGES: usize = 1024;
/// Entries of `jumps`, a power of two.
pub const JUMPS: usize = 16384;
/// log2 of the size of an entry of `read` and `write`.
pub const PAGE_SHIFT: u32 = 4;
/// Entries of the journal.
pub const JOURNAL: usize = 2048;
/// Multiplier of the hash over `jumps`.
pub const JUMP_HASH: u32 = 0x9E37_79B1;
/// Shift of its product: the 14 top bits, times 32.
pub const JUMP_SHIFT: u32 = 13;

/// Offset in a page from which on an instruction may reach over its end: it has
/// at most 15 bytes (SDM vol. 2, 2.3.11).
pub const REACHES_OVER: u64 = 0x1000 - 14;

/// An entry of `read` or `write`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Page {
    /// Linear address of the page.
    pub tag: u64,
    /// Host address of the page.
    pub host: u64,
}

/// An entry of `jumps`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Jump {
    /// Linear address.
    pub tag: u64,
    /// Host address of the code.
    pub code: u64,
    /// Linear address of the page.
    pub page: u64,
    /// Of user code: the address space's number. Not part of the tag: guests
    /// jump to any address, so that no bit of one is free.
    pub space: u64,
}

/// The tables of one mode.
#[repr(C)]
pub struct Mode {
    /// For reads.
    pub read: [Page; PAGES],
    /// For writes.
    pub write: [Page; PAGES],
    /// For jumps.
    pub jumps: [Jump; JUMPS],
}

/// All of them.
#[repr(C)]
pub struct Tables {
    /// The address space's number.
    pub space: u64,
    /// Entries in the journal; [`JOURNAL`]: it has overflowed.
    pub journal_len: u64,
    /// Offsets in `modes` of tags that a change of address space makes wrong.
    pub journal: [u32; JOURNAL],
    /// By [`AccessMode`].
    pub modes: [Mode; 3],
    /// Some supervisor jump leads through a mapping that is not global.
    pub local_jumps: bool,
    /// Pages that jumps of each mode lead to, hashed.
    pub jump_pages: [[u64; JUMP_PAGES / 64]; 3],
}

/// Bits that say which pages jumps of a mode lead to, a power of two.
const JUMP_PAGES: usize = 1 << 15;

/// A tag that no access to entry `index` matches: it belongs to another.
fn empty_tag(index: usize) -> u64 {
    ((index ^ 1) as u64) << 12
}

/// A tag that no jump looks for in entry `index` of `jumps`: it belongs to
/// another set. Guests jump to any address, canonical or not.
fn empty_jump(index: usize) -> u64 {
    // Tag 0 belongs to the first set, tag 1 does not.
    u64::from(index < 2)
}

impl Mode {
    fn clear_pages(&mut self) {
        for (n, entry) in self.read.iter_mut().enumerate() {
            entry.tag = empty_tag(n);
        }
        for (n, entry) in self.write.iter_mut().enumerate() {
            entry.tag = empty_tag(n);
        }
    }

    fn clear_jumps(&mut self) {
        for (n, entry) in self.jumps.iter_mut().enumerate() {
            // What was never used has no memory, and gets none.
            if entry.tag != empty_jump(n) {
                entry.tag = empty_jump(n);
            }
        }
    }

    /// Forgets the jumps to `page`; calls `left` for the pages of each other.
    fn forget_jumps(&mut self, page: u64, mut left: impl FnMut(u64)) {
        for (n, entry) in self.jumps.iter_mut().enumerate() {
            let empty = empty_jump(n);
            if entry.tag == empty {
                continue;
            }
            let (first, last) = pages_of(entry.tag);
            if first == page || last == page {
                entry.tag = empty;
            } else {
                left(first);
                left(last);
            }
        }
    }
}

/// Entry of `read` and `write` for `linear`.
fn page_index(linear: u64) -> usize {
    (linear >> 12) as usize % PAGES
}

/// Entry of `jumps` for a tag.
fn jump_index(tag: u64) -> usize {
    ((tag as u32).wrapping_mul(JUMP_HASH) >> (JUMP_SHIFT + 5)) as usize % JUMPS
}

/// The page of the instruction at `linear`, and the one it may end in.
fn pages_of(linear: u64) -> (u64, u64) {
    let first = linear & !0xFFF;
    match linear & 0xFFF {
        ..REACHES_OVER => (first, first),
        _ => (first, first.wrapping_add(0x1000)),
    }
}

fn page_bit(linear: u64) -> (usize, u64) {
    let bit = ((linear >> 12) ^ (linear >> 27)) as usize % JUMP_PAGES;
    (bit / 64, 1 << (bit % 64))
}

impl Tables {
    /// Makes new tables empty.
    ///
    /// # Safety
    /// `at` points to zeroed room for tables that nobody uses.
    pub unsafe fn clear_all(at: *mut Tables) {
        // SAFETY: zeroes are valid tables.
        let tables = unsafe { &mut *at };
        tables.clear_pages();
        tables.clear_jumps();
    }

    /// Forgets every translation of data pages.
    pub fn clear_pages(&mut self) {
        for mode in &mut self.modes {
            mode.clear_pages();
        }
        self.journal_len = 0;
    }

    /// Forgets every jump.
    pub fn clear_jumps(&mut self) {
        for mode in &mut self.modes {
            mode.clear_jumps();
        }
        self.local_jumps = false;
        self.jump_pages = [[0; JUMP_PAGES / 64]; 3];
    }

    /// The address space has changed to number `space`.
    pub fn switch(&mut self, space: u16) {
        self.space = u64::from(space);
        if self.journal_len as usize >= JOURNAL {
            self.clear_pages();
        } else {
            let len = std::mem::take(&mut self.journal_len) as usize;
            for n in 0..len {
                self.drop_entry(self.journal[n] as usize);
            }
        }
        if self.local_jumps {
            self.local_jumps = false;
            self.modes[AccessMode::Supervisor as usize].clear_jumps();
            self.modes[AccessMode::SupervisorSmap as usize].clear_jumps();
        }
    }

    /// Empties the entry whose tag is `offset` bytes into `modes`.
    fn drop_entry(&mut self, offset: usize) {
        let mode = &mut self.modes[offset / size_of::<Mode>() % 3];
        let within = offset % size_of::<Mode>();
        match within.checked_sub(std::mem::offset_of!(Mode, write)) {
            None => {
                let n = (within >> PAGE_SHIFT) % PAGES;
                mode.read[n].tag = empty_tag(n);
            }
            Some(within) => {
                let n = (within >> PAGE_SHIFT) % PAGES;
                mode.write[n].tag = empty_tag(n);
            }
        }
    }

    /// Forgets the page at `linear`.
    pub fn flush_page(&mut self, linear: u64) {
        let page = linear & !0xFFF;
        let n = page_index(linear);
        for mode in &mut self.modes {
            if mode.read[n].tag == page {
                mode.read[n].tag = empty_tag(n);
            }
            if mode.write[n].tag == page {
                mode.write[n].tag = empty_tag(n);
            }
        }
        let (word, bit) = page_bit(page);
        for (mode, pages) in self.modes.iter_mut().zip(&mut self.jump_pages) {
            if pages[word] & bit != 0 {
                // Those that are left are not made anew: a guest that maps and
                // unmaps much would do little else.
                *pages = [0; JUMP_PAGES / 64];
                mode.forget_jumps(page, |left| {
                    let (word, bit) = page_bit(left);
                    pages[word] |= bit;
                });
            }
        }
    }

    /// Takes back the right to store to the page at `host` unseen.
    pub fn revoke(&mut self, host: u64) {
        for mode in &mut self.modes {
            for (n, entry) in mode.write.iter_mut().enumerate() {
                if entry.host == host {
                    entry.tag = empty_tag(n);
                }
            }
        }
    }

    /// Takes back the right to store to any page unseen.
    pub fn revoke_all(&mut self) {
        for mode in &mut self.modes {
            for (n, entry) in mode.write.iter_mut().enumerate() {
                entry.tag = empty_tag(n);
            }
        }
    }

    /// Remembers that `code` is what stands at `linear`. `global`: in every
    /// address space.
    pub fn add_jump(&mut self, mode: AccessMode, linear: u64, code: u64, global: bool) {
        self.local_jumps |= mode != AccessMode::User && !global;
        let (first, last) = pages_of(linear);
        for page in [first, last] {
            let (word, bit) = page_bit(page);
            self.jump_pages[mode as usize][word] |= bit;
        }
        if let Some(tables) = self.modes.get_mut(mode as usize) {
            let n = jump_index(linear);
            let other = n ^ 1;
            let there = tables.jumps[n];
            if there.tag != linear && there.tag != empty_jump(n) {
                tables.jumps[other] = there;
            } else if tables.jumps[other].tag == linear {
                tables.jumps[other].tag = empty_jump(other);
            }
            tables.jumps[n] = Jump {
                tag: linear,
                code,
                page: linear & !0xFFF,
                space: self.space,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables take hundreds of kilobytes: not on the stack.
    fn tables() -> Box<Tables> {
        let layout = std::alloc::Layout::new::<Tables>();
        // SAFETY: zeroes are valid tables, and the layout is theirs.
        let mut tables = unsafe {
            let at = std::alloc::alloc_zeroed(layout).cast::<Tables>();
            assert!(!at.is_null());
            Box::from_raw(at)
        };
        // SAFETY: nobody else uses them.
        unsafe { Tables::clear_all(&raw mut *tables) };
        tables
    }

    const MODES: [AccessMode; 3] = [
        AccessMode::Supervisor,
        AccessMode::User,
        AccessMode::SupervisorSmap,
    ];

    /// What the check of one byte at `linear` would come to.
    fn hits(entries: &[Page; PAGES], linear: u64) -> bool {
        let entry = &entries[page_index(linear)];
        linear.wrapping_sub(entry.tag) < 4096
    }

    fn jump(tables: &Tables, mode: AccessMode, linear: u64) -> Option<u64> {
        let n = jump_index(linear);
        [n, n ^ 1].into_iter().find_map(|n| {
            let entry = &tables.modes[mode as usize].jumps[n];
            let here = mode != AccessMode::User || entry.space == tables.space;
            (entry.tag == linear && here).then_some(entry.code)
        })
    }

    /// As the refill routine does it.
    fn fill(tables: &mut Tables, mode: AccessMode, write: bool, linear: u64, global: bool) {
        let n = page_index(linear);
        let tables_of = &mut tables.modes[mode as usize];
        let (entries, at) = if write {
            (&mut tables_of.write, std::mem::offset_of!(Mode, write))
        } else {
            (&mut tables_of.read, std::mem::offset_of!(Mode, read))
        };
        entries[n] = Page {
            tag: linear & !0xFFF,
            host: 0x7000_0000 + (linear & !0xFFF),
        };
        if !global {
            let offset = mode as usize * size_of::<Mode>() + at + (n << PAGE_SHIFT);
            tables.journal[tables.journal_len as usize] = offset as u32;
            tables.journal_len += 1;
        }
    }

    #[test]
    fn an_empty_entry_matches_no_address() {
        let tables = tables();
        for mode in &tables.modes {
            for page in 0..PAGES as u64 {
                for high in [0, 1 << 22, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFC0_0000] {
                    let linear = high + (page << 12) + 0xFFF;
                    assert!(!hits(&mode.read, linear) && !hits(&mode.write, linear));
                }
            }
            for (n, entry) in mode.jumps.iter().enumerate() {
                assert_ne!(jump_index(entry.tag), n);
            }
        }
    }

    /// Translated code computes the number of an entry in its own way.
    #[test]
    fn translated_code_finds_the_entry_of_a_jump() {
        for n in 0..10_000u64 {
            let tag = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let product = (tag as u32).wrapping_mul(JUMP_HASH);
            let mask = ((JUMPS - 1) * size_of::<Jump>()) as u32;
            let offset = (product >> JUMP_SHIFT & mask) as usize;
            assert_eq!(offset, jump_index(tag) * size_of::<Jump>());
        }
    }

    #[test]
    fn another_address_space_has_other_pages() {
        for mode in MODES {
            for write in [false, true] {
                let mut tables = tables();
                fill(&mut tables, mode, write, 0x40_1234, false);
                fill(&mut tables, mode, write, 0x40_5678, true);
                tables.switch(7);
                let of = &tables.modes[mode as usize];
                let entries = if write { &of.write } else { &of.read };
                assert!(!hits(entries, 0x40_1234), "{mode:?} {write}");
                assert!(hits(entries, 0x40_5678), "{mode:?} {write}");
                assert_eq!(tables.space, 7);
                assert_eq!(tables.journal_len, 0);
            }
        }
    }

    /// More than the journal can list: everything goes.
    #[test]
    fn a_full_journal_forgets_all_pages() {
        let mut tables = tables();
        fill(&mut tables, AccessMode::User, false, 0x40_0000, true);
        tables.journal_len = JOURNAL as u64;
        tables.switch(1);
        assert!(!hits(
            &tables.modes[AccessMode::User as usize].read,
            0x40_0000
        ));
        assert_eq!(tables.journal_len, 0);
    }

    #[test]
    fn a_flushed_page_is_forgotten_and_no_other() {
        let mut tables = tables();
        let (page, other) = (0x40_0000, 0x40_0000 + PAGES as u64 * 4096);
        for mode in MODES {
            fill(&mut tables, mode, false, page, true);
            fill(&mut tables, mode, true, page, true);
        }
        // The other page has the same entry.
        tables.flush_page(other);
        let all = |tables: &Tables| {
            tables
                .modes
                .iter()
                .all(|mode| hits(&mode.read, page) && hits(&mode.write, page))
        };
        assert!(all(&tables));
        tables.flush_page(page + 0x123);
        for mode in &tables.modes {
            assert!(!hits(&mode.read, page) && !hits(&mode.write, page));
        }
    }

    #[test]
    fn jumps_of_users_belong_to_their_address_space() {
        let mut tables = tables();
        tables.switch(1);
        tables.add_jump(AccessMode::User, 0x40_0010, 1234, false);
        assert_eq!(jump(&tables, AccessMode::User, 0x40_0010), Some(1234));
        tables.switch(2);
        assert_eq!(jump(&tables, AccessMode::User, 0x40_0010), None);
        for bits in 1..=0xFFFF {
            let nowhere = 0x40_0010 ^ bits << 48;
            assert_eq!(jump(&tables, AccessMode::User, nowhere), None);
        }
        tables.switch(1);
        assert_eq!(jump(&tables, AccessMode::User, 0x40_0010), Some(1234));
    }

    #[test]
    fn jumps_of_the_kernel_stay_if_they_are_global() {
        for global in [false, true] {
            let mut tables = tables();
            let linear = 0xFFFF_FFFF_8100_0000;
            tables.add_jump(AccessMode::SupervisorSmap, linear, 1234, global);
            tables.switch(3);
            let found = jump(&tables, AccessMode::SupervisorSmap, linear);
            assert_eq!(found.is_some(), global);
        }
    }

    #[test]
    fn a_flushed_page_s_jumps_are_forgotten() {
        let mut tables = tables();
        let linear = 0xFFFF_FFFF_8100_0123;
        // In the same place of the pages with jumps, and elsewhere.
        let others = [linear ^ 1 << 27 ^ 1 << 12, linear ^ 0x1000];
        for (n, linear) in [linear, others[0], others[1]].into_iter().enumerate() {
            tables.add_jump(AccessMode::Supervisor, linear, n as u64 + 1, true);
        }
        let found = |tables: &Tables, linear| jump(tables, AccessMode::Supervisor, linear);
        tables.flush_page(linear ^ 0x10_0000);
        assert_eq!(found(&tables, linear), Some(1));
        tables.flush_page(linear);
        assert_eq!(found(&tables, linear), None);
        assert_eq!(
            others.map(|linear| found(&tables, linear)),
            [Some(2), Some(3)]
        );
        // It is still known that there are some.
        tables.flush_page(others[0]);
        assert_eq!(others.map(|linear| found(&tables, linear)), [None, Some(3)]);
    }

    #[test]
    fn a_jump_to_what_lies_across_two_pages_goes_with_either() {
        let mode = AccessMode::User;
        for linear in [0x40_1FF2, 0x40_1FFF] {
            for page in [0x40_1000, 0x40_2000] {
                let mut tables = tables();
                tables.add_jump(mode, linear, 1, false);
                tables.flush_page(page ^ 0x10_0000);
                assert_eq!(jump(&tables, mode, linear), Some(1));
                tables.flush_page(page);
                assert_eq!(jump(&tables, mode, linear), None);
            }
        }
        // Fifteen bytes from here are all in the page.
        let mut tables = tables();
        tables.add_jump(mode, 0x40_1FF1, 1, false);
        tables.flush_page(0x40_2000);
        assert_eq!(jump(&tables, mode, 0x40_1FF1), Some(1));
    }

    #[test]
    fn two_jumps_of_one_set_do_not_drive_each_other_out() {
        let mut tables = tables();
        let mode = AccessMode::SupervisorSmap;
        let set = |linear| jump_index(linear) / 2;
        let all = 0xFFFF_FFFF_8100_0000u64..;
        let same: Vec<u64> = all
            .filter(|&n| set(n) == set(0xFFFF_FFFF_8100_0000))
            .take(3)
            .collect();
        for round in 0..3 {
            for (n, &linear) in same.iter().enumerate().take(2) {
                tables.add_jump(mode, linear, n as u64 + round, true);
            }
            let found = [same[0], same[1]].map(|linear| jump(&tables, mode, linear));
            assert_eq!(found, [Some(round), Some(1 + round)]);
        }
        tables.add_jump(mode, same[2], 9, true);
        let left = same
            .iter()
            .filter(|&&linear| jump(&tables, mode, linear).is_some());
        assert_eq!(left.count(), 2);
        assert_eq!(jump(&tables, mode, same[2]), Some(9));
        // None of them was ever there twice.
        let tags = tables.modes[mode as usize]
            .jumps
            .iter()
            .map(|entry| entry.tag);
        assert_eq!(tags.filter(|tag| same.contains(tag)).count(), 2);
    }

    #[test]
    fn stores_unseen_can_be_taken_back() {
        let mut tables = tables();
        for page in [0x40_0000, 0x40_1000] {
            fill(&mut tables, AccessMode::User, true, page, true);
            fill(&mut tables, AccessMode::User, false, page, true);
        }
        let user = AccessMode::User as usize;
        tables.revoke(0x7000_0000 + 0x40_0000);
        assert!(!hits(&tables.modes[user].write, 0x40_0000));
        assert!(hits(&tables.modes[user].write, 0x40_1000));
        tables.revoke_all();
        assert!(!hits(&tables.modes[user].write, 0x40_1000));
        assert!(hits(&tables.modes[user].read, 0x40_0000));
    }
}
