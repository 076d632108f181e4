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
//!   page or whose target is computed.
//!
//! Behind the first two stands the interpreter's [`Tlb`](crate::tlb), which
//! tells address spaces apart. These do not: what a change of address space
//! makes wrong is listed in a journal as it comes in, and thrown out.

use crate::tlb::AccessMode;

/// Entries of `read` and `write`, a power of two.
pub const PAGES: usize = 1024;
/// Entries of `jumps`, a power of two.
pub const JUMPS: usize = 4096;
/// log2 of the size of an entry of `read` and `write`.
pub const PAGE_SHIFT: u32 = 4;
/// Entries of the journal.
pub const JOURNAL: usize = 2048;
/// Multiplier of the hash over `jumps`.
pub const JUMP_HASH: u32 = 0x9E37_79B1;
/// Shift of its product: the 12 top bits, times 32.
pub const JUMP_SHIFT: u32 = 15;

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
    /// Linear address, in user mode XORed with [`Tables::space`].
    pub tag: u64,
    /// Host address of the code.
    pub code: u64,
    /// Linear address of the page.
    pub page: u64,
    _room: u64,
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
    /// The address space's number in bits 63:48.
    pub space: u64,
    /// Entries in the journal; [`JOURNAL`]: it has overflowed.
    pub journal_len: u64,
    /// Offsets in `modes` of tags that a change of address space makes wrong.
    pub journal: [u32; JOURNAL],
    /// By [`AccessMode`].
    pub modes: [Mode; 3],
    /// Some supervisor jump leads through a mapping that is not global.
    pub local_jumps: bool,
    /// Pages with jumps, hashed.
    pub jump_pages: [u64; 64],
}

/// A tag that no access to entry `index` matches: it belongs to another.
fn empty_tag(index: usize) -> u64 {
    ((index ^ 1) as u64) << 12
}

/// A tag that no jump looks for in entry `index` of `jumps`: it belongs to
/// another. Guests jump to any address, canonical or not.
fn empty_jump(index: usize) -> u64 {
    // Tag 0 belongs to entry 0, tag 1 does not.
    u64::from(index == 0)
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
            entry.tag = empty_jump(n);
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

fn page_bit(linear: u64) -> (usize, u64) {
    let bit = ((linear >> 12) ^ (linear >> 24)) as usize % 4096;
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
        self.jump_pages = [0; 64];
    }

    /// The address space has changed to number `space`.
    pub fn switch(&mut self, space: u16) {
        self.space = u64::from(space) << 48;
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
        if self.jump_pages[word] & bit != 0 {
            self.clear_jumps();
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
        let tag = if mode == AccessMode::User {
            linear ^ self.space
        } else {
            self.local_jumps |= !global;
            linear
        };
        let (word, bit) = page_bit(linear);
        self.jump_pages[word] |= bit;
        if let Some(tables) = self.modes.get_mut(mode as usize) {
            tables.jumps[jump_index(tag)] = Jump {
                tag,
                code,
                page: linear & !0xFFF,
                _room: 0,
            };
        }
    }
}
