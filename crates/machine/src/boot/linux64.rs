//! Linux's 64-bit boot protocol: the zero page
//! (Documentation/arch/x86/zero-page.rst) and identity page tables.

use croft_memory::GuestRam;

use super::cpu::{Boot, Mode};
use super::{Info, write_command_line};
use crate::loader::{Problem, write};
use crate::memory_map::{self, COMMAND_LINE, PAGE_TABLES, ZERO_PAGE};

// Offsets in the zero page.
const ACPI_RSDP: usize = 0x070;
const E820_COUNT: usize = 0x1E8;
const SETUP_HEADER: usize = 0x1F1;
const LOADER_TYPE: usize = 0x210;
const LOAD_FLAGS: usize = 0x211;
const INITRD_ADDRESS: usize = 0x218;
const INITRD_SIZE: usize = 0x21C;
const COMMAND_LINE_POINTER: usize = 0x228;
const SETUP_HEADER_END: usize = 0x290;
const E820_TABLE: usize = 0x2D0;
const E820_MAX: usize = 128;

/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xFF;
/// The kernel is at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;

/// Page table entries: present, writable; a large page.
const TABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7 | TABLE;
/// GiBs that are mapped, a page directory each.
const MAPPED: u64 = 4;

pub fn prepare(
    entry: u64,
    header: &[u8],
    info: &Info<'_>,
    ram: &GuestRam,
) -> Result<Boot, Problem> {
    write_command_line(info.command_line, ram)?;
    write(ram, ZERO_PAGE, &zero_page(header, info, ram))?;
    write(ram, PAGE_TABLES, &page_tables())?;
    Ok(Boot {
        mode: Mode::Long,
        entry,
        rax: 0,
        rbx: 0,
        rsi: ZERO_PAGE,
    })
}

fn zero_page(header: &[u8], info: &Info<'_>, ram: &GuestRam) -> [u8; 4096] {
    let mut page = [0; 4096];
    let len = header.len().min(SETUP_HEADER_END - SETUP_HEADER);
    page[SETUP_HEADER..SETUP_HEADER + len].copy_from_slice(&header[..len]);
    page[LOADER_TYPE] = LOADER_UNDEFINED;
    page[LOAD_FLAGS] |= LOADED_HIGH;
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    // The loader keeps all of these below 4 GiB.
    put(COMMAND_LINE_POINTER, &(COMMAND_LINE as u32).to_le_bytes());
    if let Some(initrd) = info.initrd {
        put(INITRD_ADDRESS, &(initrd.start as u32).to_le_bytes());
        put(INITRD_SIZE, &(initrd.len as u32).to_le_bytes());
    }
    put(ACPI_RSDP, &info.rsdp.to_le_bytes());
    let map = memory_map::e820(ram);
    let map = &map[..map.len().min(E820_MAX)];
    put(E820_COUNT, &[map.len() as u8]);
    for (index, entry) in map.iter().enumerate() {
        let at = E820_TABLE + index * 20;
        put(at, &entry.start.to_le_bytes());
        put(at + 8, &entry.len.to_le_bytes());
        put(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    page
}

/// The first 4 GiB one to one in 2 MiB pages: a PML4, a page directory
/// pointer table and four page directories, a page each.
fn page_tables() -> Vec<u8> {
    let page = |index: u64| PAGE_TABLES + index * 4096;
    let mut bytes = Vec::with_capacity((2 + MAPPED as usize) * 4096);
    let mut put = |entry: u64| bytes.extend_from_slice(&entry.to_le_bytes());
    for index in 0..512 {
        put(if index == 0 { page(1) | TABLE } else { 0 });
    }
    for index in 0..512 {
        put(match index < MAPPED {
            true => page(2 + index) | TABLE,
            false => 0,
        });
    }
    for index in 0..512 * MAPPED {
        put(index << 21 | LARGE);
    }
    bytes
}
