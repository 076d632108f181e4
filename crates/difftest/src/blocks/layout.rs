//! Where a guest of random code has what.
//!
//! ```text
//! linear        physical
//! 0x2000_0000   0x10_0000  32 pages of code, for user and supervisor
//! 0x2100_0000   0x18_0000  data, see [`KINDS`]
//! 0xFFFF_8000_0000_0000  0  2 MiB of the supervisor's own
//! ```

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// The supervisor's linear address of guest-physical address 0.
pub const KERNEL: u64 = 0xFFFF_8000_0000_0000;
/// First address of the code.
pub const CODE: u64 = 0x2000_0000;
/// Where it is in RAM.
pub const CODE_AT: u64 = 0x10_0000;
/// Pages of it.
pub const CODE_PAGES: u64 = 32;
/// Bytes of a case's code.
pub const ROOM: u64 = CODE_PAGES * PAGE / super::BATCH as u64;
/// The instruction that ends a case, and stands wherever no code does.
pub const INT3: u8 = 0xCC;
/// First address of the data.
pub const DATA: u64 = 0x2100_0000;
/// Where it is in RAM.
pub const DATA_AT: u64 = 0x18_0000;
/// Bytes of it there.
pub const DATA_RAM: u64 = 5 * PAGE;
/// A page for programs, executable and writable, behind the code.
pub const SPARE_AT: u64 = CODE + CODE_PAGES * PAGE;
/// Where it is in RAM; the next page is its other.
pub const SPARE_RAM: u64 = 0x1E_0000;
/// What is no RAM.
pub const MMIO: u64 = 0xD000_0000;
/// RAM in all.
pub const RAM: u64 = 0x20_0000;

/// What a page of the data is; the number is its place in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// For all.
    Writable(u64),
    /// For all, not to be written to.
    ReadOnly(u64),
    /// Not for the user.
    Supervisor(u64),
    /// No RAM.
    Mmio,
    /// Nothing.
    Absent,
}

/// The pages of the data.
pub const KINDS: [Page; 9] = [
    Page::Absent,
    Page::Writable(0),
    Page::Writable(1),
    Page::ReadOnly(2),
    Page::Absent,
    Page::Supervisor(3),
    Page::Mmio,
    Page::Writable(4),
    Page::Absent,
];
