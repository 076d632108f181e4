//! Cached translations of linear pages to host memory.
//!
//! Three direct-mapped arrays (read, write, fetch), indexed by the page
//! number. A tag holds the page, the address space and the access mode, so
//! that one comparison proves everything about an access:
//!
//! ```text
//! tag  63                              12 11           2 1    0
//!      [ linear page ....................][ address space ][mode]
//! ```
//!
//! Adding `size - 1` to the address before comparing makes an access that
//! crosses a page miss, because the entry for the next page sits elsewhere.
//!
//! Address spaces are numbers of our own: one for each PCID in use, a fresh
//! one whenever the guest asks to forget a whole space. Dropping a space is
//! therefore one increment; the arrays are cleared when numbers run out.
//! Number 0 has the global pages, which every space shares.

use std::sync::atomic::AtomicU8;

/// Entries in the read and in the write array.
pub const DATA_ENTRIES: usize = 2048;
/// Entries in the fetch array.
pub const FETCH_ENTRIES: usize = 512;
/// Mask of the offset in a page.
const OFFSET: u64 = 0xFFF;
/// Address-space numbers are `1..LAST_SPACE`.
const LAST_SPACE: u16 = 1023;
/// A tag that no access produces: mode `Slow` in the number never given out.
const INVALID: u64 = u64::MAX;

/// Under which rules an access is made; part of the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AccessMode {
    /// Supervisor, user pages allowed.
    Supervisor = 0,
    /// CPL 3.
    User = 1,
    /// Supervisor, user pages forbidden (CR4.SMAP with EFLAGS.AC clear).
    SupervisorSmap = 2,
    /// Every access must be looked at (alignment checks, data breakpoints):
    /// no entry ever has this mode.
    Slow = 3,
}

/// One translation.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// See the module's doc.
    pub tag: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// The page's watch byte (`croft_memory::PageTable::watch`).
    pub watch: *const AtomicU8,
    /// Guest-physical address of the page.
    pub gpa: u64,
}

const EMPTY: Entry = Entry {
    tag: INVALID,
    addend: 0,
    watch: std::ptr::null(),
    gpa: 0,
};

/// Where parts of large pages may be cached. What is flushed may be listed
/// though it never was there: that costs time, no more.
///
/// There is one for each half of the addresses. Linux has all of a machine's
/// memory in large pages in the upper one, and flushes page by page in the
/// lower.
#[derive(Clone, Copy)]
struct Large {
    /// Regions of 4 MiB, the most of legacy paging, with pages of that size or
    /// of 2 MiB: a bit for each hash.
    some: [u64; 64],
    /// The same of regions of 1 GiB, with pages of that size.
    huge: u64,
}

impl Large {
    const NONE: Large = Large {
        some: [0; 64],
        huge: 0,
    };

    fn note(&mut self, linear: u64, shift: u32) {
        if shift > 22 {
            self.huge |= 1 << hash(linear >> 30, 6);
        } else {
            let bit = hash(linear >> 22, 12);
            self.some[bit / 64] |= 1 << (bit % 64);
        }
    }

    fn may_hold(&self, linear: u64) -> bool {
        let bit = hash(linear >> 22, 12);
        let some = self.some[bit / 64] >> (bit % 64);
        (some | self.huge >> hash(linear >> 30, 6)) & 1 != 0
    }
}

/// `bits` bits that hang on all of `region`: Linux puts what is different at
/// places that differ in high bits only.
fn hash(region: u64, bits: u32) -> usize {
    (region.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits)) as usize
}

/// The half of the addresses that `linear` is in.
fn half(linear: u64) -> usize {
    (linear >> 63) as usize
}

/// All cached translations of one vCPU.
pub struct Tlb {
    /// For reads.
    pub read: [Entry; DATA_ENTRIES],
    /// For writes: the page is writable and its D bit is set.
    pub write: [Entry; DATA_ENTRIES],
    /// For instruction fetches; `addend` and `watch` are unused.
    pub fetch: [Entry; FETCH_ENTRIES],
    /// Current address-space number.
    space: u16,
    /// Next number to give out.
    next_space: u16,
    /// Number of each PCID; 0 where none.
    spaces: Box<[u16; 4096]>,
    /// The large pages of the lower and of the upper half of the addresses.
    large: [Large; 2],
    /// Times everything was dropped.
    pub flushes: u64,
}

impl Tlb {
    /// An empty TLB. Built in place: it is large.
    pub fn new() -> Box<Self> {
        Box::new(Tlb {
            read: [EMPTY; DATA_ENTRIES],
            write: [EMPTY; DATA_ENTRIES],
            fetch: [EMPTY; FETCH_ENTRIES],
            space: 1,
            next_space: 2,
            spaces: Box::new([0; 4096]),
            large: [Large::NONE; 2],
            flushes: 0,
        })
    }

    /// What a tag needs besides the page to serve accesses of `mode` now.
    #[inline(always)]
    pub fn key(&self, mode: AccessMode) -> u64 {
        u64::from(self.space) << 2 | mode as u64
    }

    /// The tag of a page that is the same in every address space, from one in
    /// the current space: number 0.
    #[inline(always)]
    pub fn global(tag: u64) -> u64 {
        tag & !0xFFC
    }

    /// The number of the current address space.
    pub fn space(&self) -> u16 {
        self.space
    }

    /// Array index of `linear` in the data arrays.
    #[inline(always)]
    pub fn data_index(linear: u64) -> usize {
        (linear >> 12) as usize % DATA_ENTRIES
    }

    /// Array index of `linear` in the fetch array.
    #[inline(always)]
    pub fn fetch_index(linear: u64) -> usize {
        (linear >> 12) as usize % FETCH_ENTRIES
    }

    /// Remembers that a part of a large page is cached; `shift` is log2 of
    /// the page size.
    pub fn note_large(&mut self, linear: u64, shift: u32) {
        if shift > 12 {
            self.large[half(linear)].note(linear, shift);
        }
    }

    fn clear(&mut self) {
        self.read.fill(EMPTY);
        self.write.fill(EMPTY);
        self.fetch.fill(EMPTY);
        self.large = [Large::NONE; 2];
        self.flushes += 1;
    }

    /// Drops everything. The current space gets a new number: the caller
    /// must derive its keys anew.
    pub fn flush_all(&mut self) {
        self.clear();
        self.spaces.fill(0);
        self.space = 1;
        self.next_space = 2;
    }

    /// Drops every translation of the page at `linear`, in all spaces.
    pub fn flush_page(&mut self, linear: u64) {
        if self.large[half(linear)].may_hold(linear) {
            // The numbers keep their meaning: only their entries are gone.
            self.clear();
            return;
        }
        let page = linear & !OFFSET;
        let data = Self::data_index(linear);
        for entry in [
            &mut self.read[data],
            &mut self.write[data],
            &mut self.fetch[Self::fetch_index(linear)],
        ] {
            if entry.tag & !OFFSET == page {
                *entry = EMPTY;
            }
        }
    }

    /// Drops every translation for writes.
    pub fn revoke(&mut self) {
        self.write.fill(EMPTY);
    }

    /// A number nobody used since the last complete flush.
    fn fresh(&mut self) -> u16 {
        if self.next_space >= LAST_SPACE {
            self.flush_all();
            self.next_space = 2;
            return 1;
        }
        self.next_space += 1;
        self.next_space - 1
    }

    /// Forgets the current address space (CR3 written without PCIDs, or with
    /// a flush of PCID `pcid`) and goes on in it.
    pub fn renew(&mut self, pcid: u16) {
        self.space = self.fresh();
        self.spaces[usize::from(pcid & 0xFFF)] = self.space;
    }

    /// Switches to PCID `pcid`, keeping what is cached for it.
    pub fn switch(&mut self, pcid: u16) {
        match self.spaces[usize::from(pcid & 0xFFF)] {
            0 => self.renew(pcid),
            space => self.space = space,
        }
    }

    /// Forgets PCID `pcid`, which is not the current one.
    pub fn forget(&mut self, pcid: u16) {
        self.spaces[usize::from(pcid & 0xFFF)] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(tlb: &mut Tlb, linear: u64) {
        let key = tlb.key(AccessMode::User);
        tlb.read[Tlb::data_index(linear)].tag = linear | key;
    }

    fn has(tlb: &Tlb, linear: u64) -> bool {
        tlb.read[Tlb::data_index(linear)].tag == linear | tlb.key(AccessMode::User)
    }

    #[test]
    fn a_pcid_keeps_its_translations_until_it_is_renewed() {
        let mut tlb = Tlb::new();
        tlb.renew(1);
        put(&mut tlb, 0x1000);
        tlb.switch(2);
        assert!(!has(&tlb, 0x1000));
        tlb.switch(1);
        assert!(has(&tlb, 0x1000));
        tlb.renew(1);
        assert!(!has(&tlb, 0x1000));
        tlb.switch(2);
        put(&mut tlb, 0x2000);
        tlb.switch(1);
        tlb.forget(2);
        tlb.switch(2);
        assert!(!has(&tlb, 0x2000));
    }

    #[test]
    fn numbers_that_come_back_bring_nothing_old() {
        let mut tlb = Tlb::new();
        for round in 0..5000u64 {
            tlb.renew(0);
            assert!(!has(&tlb, 0x5000), "round {round}");
            put(&mut tlb, 0x5000);
        }
    }

    #[test]
    fn a_part_of_a_large_page_takes_the_rest_along() {
        let mut tlb = Tlb::new();
        tlb.renew(3);
        put(&mut tlb, 0x40_0000);
        put(&mut tlb, 0x40_1000);
        tlb.note_large(0x40_0000, 21);
        tlb.flush_page(0x5f_f000);
        assert!(!has(&tlb, 0x40_0000) && !has(&tlb, 0x40_1000));
        put(&mut tlb, 0x40_0000);
        tlb.renew(3);
        assert!(!has(&tlb, 0x40_0000));
        tlb.switch(3);
        put(&mut tlb, 0x1000);
        tlb.flush_page(0x2000);
        assert!(has(&tlb, 0x1000));
        tlb.flush_page(0x1000);
        assert!(!has(&tlb, 0x1000));
    }

    #[test]
    fn the_kernel_s_large_pages_are_none_of_a_program_s() {
        let mut tlb = Tlb::new();
        // All memory of a machine with 16 GiB, as Linux maps it.
        for n in 0..8192 {
            tlb.note_large(0xFFFF_8880_0000_0000 + (n << 21), 21);
        }
        tlb.note_large(0xFFFF_8880_4000_0000, 30);
        let before = tlb.flushes;
        for n in 0..4096 {
            tlb.flush_page(n << 21);
        }
        assert_eq!(tlb.flushes, before);
        tlb.flush_page(0xFFFF_8880_1234_5000);
        assert_eq!(tlb.flushes, before + 1);
    }

    #[test]
    fn a_part_of_a_huge_page_takes_the_rest_along() {
        let mut tlb = Tlb::new();
        put(&mut tlb, 0x4000_0000);
        tlb.note_large(0x4000_0000, 30);
        tlb.flush_page(0xC000_0000);
        assert!(has(&tlb, 0x4000_0000));
        tlb.flush_page(0x7FFF_F000);
        assert!(!has(&tlb, 0x4000_0000));
    }
}
