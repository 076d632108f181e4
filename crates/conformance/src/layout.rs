//! Where things lie in a guest's memory.
//!
//! ```text
//! 0x1000 GDT   0x2000 IDT   0x3000 TSS   0x4000 IDT of 32-bit mode
//! 0x5000 log   0x8000 start-up page   0x9000 result slots   0xA000 fix-ups
//! 0xC000 handlers   0x10000 page tables   0x1A000 handlers of 32-bit mode
//! 0x20000 program   0x30000 more code   0x40000 stacks   0x60000 data
//! 0x100000 data   RAM ends at 4 MiB
//! ```
//! Linear addresses equal physical ones up to 4 GiB, but for the second
//! 2 MiB: they are the first 2 MiB again, open to user mode. 0–4 MiB are
//! 4 KiB pages, the rest 2 MiB pages.

/// Bytes of RAM, from address zero.
pub const RAM: u64 = 4 << 20;
/// Global descriptor table.
pub const GDT: u64 = 0x1000;
/// Limit of the GDT.
pub const GDT_LIMIT: u16 = 0x1FF;
/// Interrupt descriptor table of long mode.
pub const IDT: u64 = 0x2000;
/// Task state segment.
pub const TSS: u64 = 0x3000;
/// Interrupt descriptor table of protected mode.
pub const IDT32: u64 = 0x4000;
/// Log of exceptions and interrupts: a count, then records.
pub const LOG: u64 = 0x5000;
/// First record of the log.
pub const RECORDS: u64 = LOG + 64;
/// Bytes of a record.
pub const RECORD: u64 = 128;
/// Most records; more are a failure.
pub const MAX_RECORDS: u32 = 90;
/// Kernel stack pointer that an escape from user mode restores.
pub const KERNEL_RSP: u64 = LOG + 8;
/// Where an escape from user mode goes.
pub const ESCAPE_TO: u64 = LOG + 16;
/// First page of a started-up processor.
pub const STARTUP: u64 = 0x8000;
/// Result slots: 64-bit words.
pub const SLOTS: u64 = 0x9000;
/// Fix-up table.
pub const FIXUPS: u64 = 0xA000;
/// Bytes of the fix-up table.
pub const FIXUPS_SIZE: u64 = 0x2000;
/// Exception handlers of 64-bit mode.
pub const HANDLERS: u64 = 0xC000;
/// Root of the long-mode page tables.
pub const PML4: u64 = 0x10000;
/// Page directory pointers.
pub const PDPT: u64 = 0x11000;
/// Page directory of the first GiB.
pub const PD: u64 = 0x12000;
/// Page table of the first 2 MiB.
pub const PT: u64 = 0x13000;
/// Page table of the second 2 MiB: the alias open to user mode.
pub const PT_ALIAS: u64 = 0x14000;
/// Page directory pointers of PAE paging.
pub const PAE_PDPT: u64 = 0x15000;
/// Page directory of 32-bit paging.
pub const PD32: u64 = 0x16000;
/// Page table of the first 4 MiB in 32-bit paging.
pub const PT32: u64 = 0x17000;
/// A page for tables of a guest's own.
pub const SPARE_TABLE: u64 = 0x18000;
/// Another one.
pub const SPARE_TABLE_2: u64 = 0x19000;
/// Exception handlers of 32-bit mode.
pub const HANDLERS32: u64 = 0x1A000;
/// Page directories of the second to fourth GiB.
pub const PD_MORE: u64 = 0x1D000;
/// The program.
pub const CODE: u64 = 0x20000;
/// Further code.
pub const CODE2: u64 = 0x30000;
/// Top of the kernel's stack.
pub const STACK: u64 = 0x48000;
/// Stack for entries from user mode.
pub const RSP0: u64 = 0x4A000;
/// Stack of double faults (IST 1).
pub const IST1: u64 = 0x4C000;
/// Another stack (IST 2).
pub const IST2: u64 = 0x4E000;
/// Top of the user's stack, through the alias.
pub const USER_STACK: u64 = ALIAS + 0x50000;
/// Data.
pub const DATA: u64 = 0x60000;
/// Distance of the alias that is open to user mode.
pub const ALIAS: u64 = 0x20_0000;
/// Memory that is not RAM.
pub const MMIO: u64 = 0xD000_0000;

/// Kernel code, 64-bit.
pub const KERNEL_CS: u16 = 0x08;
/// Kernel data.
pub const KERNEL_DS: u16 = 0x10;
/// User code, 32-bit.
pub const USER_CS32: u16 = 0x1B;
/// User data.
pub const USER_DS: u16 = 0x23;
/// User code, 64-bit.
pub const USER_CS: u16 = 0x2B;
/// User data where SYSEXIT expects it.
pub const USER_DS_SYSEXIT: u16 = 0x33;
/// Kernel code, 32-bit.
pub const KERNEL_CS32: u16 = 0x38;
/// Task state segment.
pub const TSS_SELECTOR: u16 = 0x40;
/// Kernel code, 16-bit, 64 KiB at zero.
pub const CODE16: u16 = 0x50;
/// Kernel data, 64 KiB at zero.
pub const DATA16: u16 = 0x58;
/// First selector that the harness leaves to guests.
pub const FREE_SELECTOR: u16 = 0x60;

/// Port whose write ends the guest.
pub const PORT_DONE: u16 = 0xE1;
/// Port whose write says that the log is full.
pub const PORT_FULL: u16 = 0xE2;
/// Port whose write stops the vCPUs.
pub const PORT_STOP: u16 = 0xE3;
/// Vector by which user code returns to the kernel.
pub const ESCAPE: u8 = 0x80;

/// Page-table bits.
pub mod page {
    /// Present.
    pub const P: u64 = 1;
    /// Writable.
    pub const W: u64 = 1 << 1;
    /// Open to user mode.
    pub const U: u64 = 1 << 2;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty.
    pub const D: u64 = 1 << 6;
    /// A large page.
    pub const PS: u64 = 1 << 7;
    /// Global.
    pub const G: u64 = 1 << 8;
    /// Not executable.
    pub const NX: u64 = 1 << 63;
}

/// Control-register bits.
#[allow(missing_docs)]
pub mod creg {
    pub const PE: u64 = 1;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const PG: u64 = 1 << 31;
    pub const VME: u64 = 1;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const PGE: u64 = 1 << 7;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// Exception vectors (SDM vol. 3, table 6-1).
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// Flag bits.
#[allow(missing_docs)]
pub mod flag {
    pub const FIXED: u64 = 2;
    pub const ZF: u64 = 1 << 6;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
}
