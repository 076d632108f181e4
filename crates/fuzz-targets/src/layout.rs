//! The little world in which random code runs.
//!
//! ```text
//! 0x00000  data; real mode's interrupt table
//! 0x01000  page tables: PML4, PDPT, PD, PT, PAE's PDPT, 32-bit PD and PT
//! 0x08000  GDT, with a TSS at 0x8800
//! 0x09000  IDT
//! 0x0A000  handlers: they skip a byte and return
//! 0x10000  code
//! 0x18000  stack, growing down from 0x19000; data
//! 0x20000  nothing
//! 0x40000  16 KiB of RAM apart from the rest, its end within a mapping
//! ```
//!
//! The first 2 MiB of linear addresses are mapped one to one, page by page,
//! again at the start of the upper half, and once more in the last GiB; the
//! input changes entries.

use croft_memory::{GuestRam, Range};

use crate::input::Input;

/// RAM.
pub const RANGES: [Range; 2] = [
    Range {
        start: 0,
        len: 0x2_0000,
    },
    Range {
        start: 0x4_0000,
        len: 0x4000,
    },
];

/// Page tables by paging mode.
pub const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
pub const PAE_PDPT: u64 = 0x5000;
pub const PD_32: u64 = 0x6000;
const PT_32: u64 = 0x7000;
pub const GDT: u64 = 0x8000;
pub const TSS: u64 = 0x8800;
pub const IDT: u64 = 0x9000;
const HANDLERS: u64 = 0xA000;
const HANDLER_LEN: u64 = 16;
pub const CODE: u64 = 0x1_0000;
pub const STACK: u64 = 0x1_9000;

/// Selectors: kernel code of each size, data, user code, data, TSS.
pub const CODE_16: u16 = 0x08;
pub const CODE_32: u16 = 0x10;
pub const CODE_64: u16 = 0x18;
pub const DATA: u16 = 0x20;
pub const USER_32: u16 = 0x2B;
pub const USER_64: u16 = 0x33;
pub const USER_DATA: u16 = 0x3B;
pub const TASK: u16 = 0x40;

/// Present, writable, user, accessed, dirty.
const OPEN: u64 = 0x67;
const LARGE: u64 = 1 << 7;

const DESCRIPTORS: [u64; 10] = [
    0,
    0x000F_9B00_0000_FFFF,
    0x00CF_9B00_0000_FFFF,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00CF_FB00_0000_FFFF,
    0x00AF_FB00_0000_FFFF,
    0x00CF_F300_0000_FFFF,
    0x0000_8900_8800_0FFF,
    0,
];

/// In which mode interrupts are handled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Real mode.
    Bits16,
    /// Protected mode.
    Bits32,
    /// Long mode.
    Bits64,
}

/// Writes everything but the code.
pub fn write(ram: &GuestRam, width: Width, input: &mut Input<'_>) {
    let long = width == Width::Bits64;
    let qword = |address: u64, value: u64| put(ram, address, &value.to_le_bytes());
    for slot in [0, 256, 511] {
        qword(PML4 + slot * 8, PDPT | OPEN);
    }
    for slot in [0, 510, 511] {
        qword(PDPT + slot * 8, PD | OPEN);
    }
    qword(PD, PT | OPEN);
    qword(PD + 8, LARGE | OPEN);
    qword(PD + 511 * 8, PT | OPEN);
    for slot in 0..4 {
        qword(PAE_PDPT + slot * 8, PD | 1);
    }
    let dword = |address: u64, value: u64| put(ram, address, &(value as u32).to_le_bytes());
    for slot in [0, 1023] {
        dword(PD_32 + slot * 4, PT_32 | OPEN);
    }
    dword(PD_32 + 4, LARGE | OPEN);
    for page in 0..512 {
        qword(PT + page * 8, page << 12 | OPEN);
        dword(PT_32 + page * 4, page << 12 | OPEN);
    }
    for (descriptor, slot) in DESCRIPTORS.into_iter().zip(0..) {
        qword(GDT + slot * 8, descriptor);
    }
    // RSP0 and the ISTs; ESP0 and SS0.
    for slot in 0..16 {
        qword(TSS + 4 + slot * 8, STACK - 0x100);
    }
    if !long {
        dword(TSS + 4, STACK - 0x100);
        dword(TSS + 8, u64::from(DATA));
    }
    let selector = u64::from(if long { CODE_64 } else { CODE_32 });
    for vector in 0..256 {
        let offset = HANDLERS + vector.min(31) * HANDLER_LEN;
        let gate = offset & 0xFFFF | selector << 16 | 0xEE00 << 32;
        if long {
            qword(IDT + vector * 16, gate);
        } else {
            qword(IDT + vector * 8, gate);
        }
        // Real mode: handlers in segment 0.
        dword(vector * 4, offset);
    }
    for vector in 0..32 {
        put(
            ram,
            HANDLERS + vector * HANDLER_LEN,
            &handler(vector, width),
        );
    }
    for _ in 0..input.u8() % 16 {
        let value = input.bytes(8);
        let address = match input.u8() % 6 {
            0 => PML4 + u64::from(input.u16()) % 0x4000 / 8 * 8,
            1 => PT + u64::from(input.u8() % 0x44) * 8,
            2 => PT_32 + u64::from(input.u8() % 0x44) * 4,
            3 => GDT + u64::from(input.u8() % 64) * 8,
            4 => IDT + u64::from(input.u8()) * 8,
            _ => u64::from(input.u16()) & 0xFFF8,
        };
        put(ram, address, value);
    }
}

/// Goes on one byte behind where it was interrupted, so that a fault does not
/// come again for ever.
fn handler(vector: u64, width: Width) -> Vec<u8> {
    let drop_code: &[u8] = match (width, vector) {
        (Width::Bits64, 8 | 10..=14 | 17 | 21) => &[0x48, 0x83, 0xC4, 8],
        (Width::Bits32, 8 | 10..=14 | 17 | 21) => &[0x83, 0xC4, 4],
        _ => &[],
    };
    let go_on: &[u8] = match width {
        // push bp; mov bp, sp; inc word [bp+2]; pop bp; iret
        Width::Bits16 => &[0x55, 0x89, 0xE5, 0xFF, 0x46, 2, 0x5D, 0xCF],
        // inc dword [esp]; iret
        Width::Bits32 => &[0xFF, 0x04, 0x24, 0xCF],
        // inc qword [rsp]; iretq
        Width::Bits64 => &[0x48, 0xFF, 0x04, 0x24, 0x48, 0xCF],
    };
    [drop_code, go_on].concat()
}

/// Writes as much of `bytes` as is RAM.
pub fn put(ram: &GuestRam, address: u64, bytes: &[u8]) {
    for (byte, at) in bytes.iter().zip(address..) {
        let _ = ram.write(at, &[*byte]);
    }
}
