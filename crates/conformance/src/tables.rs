//! Descriptor tables and page tables that a guest starts with.

use croft_memory::GuestRam;

use crate::Failure;
use crate::layout::*;

/// A code or data descriptor (SDM vol. 3, figure 3-8). `flags`: G 3, D/B 2,
/// L 1, AVL 0.
pub const fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    (limit as u64 & 0xFFFF)
        | (base as u64 & 0xFF_FFFF) << 16
        | (access as u64) << 40
        | (limit as u64 >> 16 & 0xF) << 48
        | (flags as u64 & 0xF) << 52
        | (base as u64 >> 24) << 56
}

/// A gate of protected mode (SDM vol. 3, figure 6-2).
pub const fn gate32(selector: u16, offset: u32, access: u8, parameters: u8) -> u64 {
    (offset as u64 & 0xFFFF)
        | (selector as u64) << 16
        | (parameters as u64) << 32
        | (access as u64) << 40
        | (offset as u64 >> 16) << 48
}

/// The lower half of a gate of long mode (SDM vol. 3, figure 6-8); the upper
/// is zero for targets below 4 GiB.
pub const fn gate64(selector: u16, offset: u64, access: u8, ist: u8) -> u64 {
    gate32(selector, offset as u32, access, ist)
}

/// Access byte of an interrupt gate at DPL 0.
pub const INTERRUPT_GATE: u8 = 0x8E;
/// Access byte of an interrupt gate at DPL 3.
pub const USER_GATE: u8 = 0xEE;
/// Access byte of a trap gate at DPL 0.
pub const TRAP_GATE: u8 = 0x8F;

fn put(ram: &GuestRam, address: u64, value: u64) -> Result<(), Failure> {
    Ok(ram.write(address, &value.to_le_bytes())?)
}

/// Writes GDT and TSS.
pub fn write_descriptors(ram: &GuestRam) -> Result<(), Failure> {
    let flat = |access, flags| descriptor(0, 0xF_FFFF, access, flags);
    for (selector, value) in [
        (KERNEL_CS, flat(0x9B, 0xA)),
        (KERNEL_DS, flat(0x93, 0xC)),
        (USER_CS32 & !3, flat(0xFB, 0xC)),
        (USER_DS & !3, flat(0xF3, 0xC)),
        (USER_CS & !3, flat(0xFB, 0xA)),
        (USER_DS_SYSEXIT & !3, flat(0xF3, 0xC)),
        (KERNEL_CS32, flat(0x9B, 0xC)),
        (TSS_SELECTOR, descriptor(TSS as u32, 0x67, 0x89, 0)),
        (CODE16, descriptor(0, 0xFFFF, 0x9B, 0)),
        (DATA16, descriptor(0, 0xFFFF, 0x93, 0)),
    ] {
        put(ram, GDT + u64::from(selector), value)?;
    }
    put(ram, TSS + 4, RSP0)?;
    put(ram, TSS + 0x24, IST1)?;
    put(ram, TSS + 0x2C, IST2)?;
    // No I/O bitmap.
    ram.write(TSS + 0x66, &0x68u16.to_le_bytes())?;
    Ok(())
}

/// The same for the TSS of protected mode.
pub fn write_tss32(ram: &GuestRam) -> Result<(), Failure> {
    ram.write(TSS, &[0; 0x68])?;
    ram.write(TSS + 4, &(RSP0 as u32).to_le_bytes())?;
    ram.write(TSS + 8, &u32::from(KERNEL_DS).to_le_bytes())?;
    ram.write(TSS + 0x66, &0x68u16.to_le_bytes())?;
    Ok(())
}

/// Writes the page tables of long mode and of PAE and 32-bit paging.
pub fn write_page_tables(ram: &GuestRam) -> Result<(), Failure> {
    use page::{P, PS, U, W};
    let all = P | W | U;
    put(ram, PML4, PDPT | all)?;
    for gib in 0..4 {
        let directory = if gib == 0 {
            PD
        } else {
            PD_MORE + (gib - 1) * 0x1000
        };
        put(ram, PDPT + 8 * gib, directory | all)?;
        put(ram, PAE_PDPT + 8 * gib, directory | P)?;
        for n in 0..512 {
            put(ram, directory + 8 * n, (gib << 30) | (n << 21) | PS | P | W)?;
        }
    }
    put(ram, PD, PT | all)?;
    put(ram, PD + 8, PT_ALIAS | all)?;
    for n in 0..512 {
        put(ram, PT + 8 * n, (n << 12) | P | W)?;
        put(ram, PT_ALIAS + 8 * n, (n << 12) | all)?;
    }
    for n in 0..1024u64 {
        let address = (n << 12) & (ALIAS - 1);
        let user = if n >= 512 { U } else { 0 };
        let entry = (address | P | W | user) as u32;
        ram.write(PT32 + 4 * n, &entry.to_le_bytes())?;
        let large = ((n << 22) | PS | P | W) as u32;
        ram.write(PD32 + 4 * n, &large.to_le_bytes())?;
    }
    ram.write(PD32, &((PT32 | all) as u32).to_le_bytes())?;
    Ok(())
}
