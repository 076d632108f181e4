//! The user address space of a test, the same on the host and in the guest.
//!
//! Two areas of seven pages, one for code and one for data, show an access
//! every neighbourhood there is: pages that are writable (executable), one
//! that is not, and nothing at all.
//!
//! ```text
//! page      0        1      2      3       4        5      6
//! data    absent | rw   | rw   | ro    | absent | rw   | absent
//! code    absent | rx   | rx   | r     | absent | rx   | absent
//! ```
//!
//! Both lie below 2 GiB, so that 32-bit addresses and displacements reach
//! them, and are within a near branch of each other.

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// First address of the code area.
pub const CODE: u64 = 0x2000_0000;
/// First address of the data area.
pub const DATA: u64 = 0x2100_0000;
/// Pages in an area.
pub const PAGES: u64 = 7;
/// Pages of an area that are there: what backs them is contiguous.
pub const PRESENT: u64 = 4;
/// Bytes behind an area.
pub const BACKING: usize = (PRESENT * PAGE) as usize;
/// GS base of every test.
pub const GS_BASE: u64 = DATA + 0x2340;

/// What a page of an area is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Not mapped.
    Absent,
    /// Writable data, or executable code; with its place in the backing.
    Full(u64),
    /// Read-only data, or code that is not executable.
    Lesser(u64),
}

/// The pages of an area.
pub const KINDS: [Page; PAGES as usize] = [
    Page::Absent,
    Page::Full(0),
    Page::Full(1),
    Page::Lesser(2),
    Page::Absent,
    Page::Full(3),
    Page::Absent,
];

/// Where `address` lies in the backing of the area that starts at `area`.
pub fn backing(area: u64, address: u64) -> Option<usize> {
    let offset = address.checked_sub(area)?;
    match KINDS.get((offset / PAGE) as usize)? {
        Page::Absent => None,
        Page::Full(n) | Page::Lesser(n) => Some((n * PAGE + offset % PAGE) as usize),
    }
}

/// First address of page `n` of the area that starts at `area`.
pub const fn page(area: u64, n: u64) -> u64 {
    area + n * PAGE
}
