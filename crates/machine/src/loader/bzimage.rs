//! Linux bzImage (Documentation/arch/x86/boot.rst).
//!
//! The payload is unpacked here and entered as an ELF kernel through PVH,
//! which skips real mode and the unpacking inside the guest. A kernel whose
//! payload is of an unknown kind, or has no PVH note, is entered by the
//! 64-bit boot protocol and unpacks itself.

use croft_memory::GuestRam;

use super::checksum;
use super::decompress::Compression;
use super::elf::{Elf, is_elf};
use super::error::Problem;
use super::source::{Source, le16, le32, le64, zero};
use super::{Image, Protocol};
use crate::memory_map;

// Offsets in the file (boot.rst, "The Real-Mode Kernel Header").
const SETUP_SECTORS: usize = 0x1F1;
const SYSTEM_SIZE: usize = 0x1F4;
const BOOT_FLAG: usize = 0x1FE;
const JUMP: usize = 0x200;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const INITRD_ADDRESS_MAX: usize = 0x22C;
const RELOCATABLE: usize = 0x234;
const EXTENDED_LOAD_FLAGS: usize = 0x236;
const COMMAND_LINE_SIZE: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24C;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

/// Version that brought the payload's offset and length.
const VERSION_PAYLOAD: u16 = 0x0208;
/// Version that brought `xloadflags`; the preferred address and the memory
/// needed came before it.
const VERSION_64: u16 = 0x020C;
/// `XLF_KERNEL_64`: there is a 64-bit entry point.
const KERNEL_64: u16 = 1 << 0;
/// Distance of the 64-bit entry point from the load address.
const ENTRY_64: u64 = 0x200;
/// Unpacked kernels above this size are refused whatever the guest has.
const UNPACKED_LIMIT: u64 = 1 << 30;
const SECTOR: u64 = 512;
/// The unit of the size behind the setup code.
const SYSTEM_PARAGRAPH: u64 = 16;

/// True when `head`, a file's first bytes, has the setup header's marks.
pub fn is_bzimage(head: &[u8]) -> bool {
    le16(head, BOOT_FLAG) == Some(0xAA55) && head.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// Loads the kernel whose first bytes are `head`.
pub fn load(source: &dyn Source, head: &[u8], ram: &GuestRam) -> Result<Image, Problem> {
    let truncated = || Problem::Truncated {
        part: "setup header",
    };
    let half = |offset| le16(head, offset).ok_or_else(truncated);
    let word = |offset| le32(head, offset).ok_or_else(truncated);
    let byte = |offset: usize| head.get(offset).copied().ok_or_else(truncated);

    let version = half(VERSION)?;
    if version < VERSION_PAYLOAD {
        return Err(Problem::Damaged {
            what: format!(
                "its boot protocol {}.{:02} is older than 2.08",
                version >> 8,
                version & 0xFF
            ),
        });
    }
    let sectors = match byte(SETUP_SECTORS)? {
        0 => 4,
        sectors => sectors,
    };
    let setup_len = (u64::from(sectors) + 1) * SECTOR;
    let body_len = match source.size().checked_sub(setup_len) {
        Some(len) if len > 0 => len,
        _ => return Err(Problem::Truncated { part: "setup code" }),
    };
    let payload_at = u64::from(word(PAYLOAD_OFFSET)?);
    let payload_len = u64::from(word(PAYLOAD_LENGTH)?);
    if payload_at + payload_len > body_len {
        return Err(Problem::Truncated { part: "payload" });
    }
    let command_line_max =
        (word(COMMAND_LINE_SIZE)? as usize).clamp(255, memory_map::COMMAND_LINE_SIZE - 1);
    let initrd_max = u64::from(word(INITRD_ADDRESS_MAX)?);

    checksum::check(
        source,
        head,
        setup_len + SYSTEM_PARAGRAPH * u64::from(word(SYSTEM_SIZE)?),
    )?;

    let mut payload = vec![0; payload_len as usize];
    source.read(setup_len + payload_at, &mut payload, "payload")?;
    let mut is_32_bit = false;
    if let Some(compression) = Compression::detect(&payload) {
        let kernel = compression.unpack(&payload, UNPACKED_LIMIT.min(ram.size()))?;
        drop(payload);
        if !is_elf(&kernel) {
            return Err(Problem::Payload {
                compression: compression.name(),
                reason: "what it unpacks to is no ELF file".to_owned(),
            });
        }
        let elf = Elf::parse(&kernel[..])?;
        if let Some(entry) = elf.pvh_entry(&kernel[..])? {
            return Ok(Image {
                initrd_max,
                command_line_max,
                ..elf.load_pvh(&kernel[..], ram, entry)?
            });
        }
        is_32_bit = !elf.wide;
    }

    if is_32_bit || version < VERSION_64 || half(EXTENDED_LOAD_FLAGS)? & KERNEL_64 == 0 {
        return Err(Problem::Bits32);
    }
    let start = le64(head, PREFERRED_ADDRESS).ok_or_else(truncated)?;
    let relocatable = byte(RELOCATABLE)? != 0;
    let start = match start {
        0 if relocatable => memory_map::HIGH_MEMORY,
        start => start,
    };
    let needed = u64::from(word(INIT_SIZE)?).max(body_len);
    let end = memory_map::check_load(ram, start, needed)?;
    if end > memory_map::LOW_RAM_END {
        return Err(Problem::NoRoom { start, end });
    }
    source.copy_to(setup_len, body_len, ram, start, "kernel")?;
    zero(ram, start + body_len, needed - body_len)?;
    // The header ends where its first jump lands.
    let header_end = (MAGIC + usize::from(byte(JUMP + 1)?)).min(head.len());
    let header = head.get(SETUP_SECTORS..header_end).ok_or_else(truncated)?;
    Ok(Image {
        protocol: Protocol::Linux64 {
            entry: start + ENTRY_64,
            header: header.to_vec(),
        },
        start,
        end,
        initrd_max,
        command_line_max,
    })
}
