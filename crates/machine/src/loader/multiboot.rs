//! Multiboot 1 kernels (Multiboot Specification 0.6.96, section 3.1): ELF32
//! files and flat ones that give their addresses in the header.

use croft_memory::GuestRam;

use super::elf::{Elf, is_elf};
use super::error::Problem;
use super::source::{Source, le32, zero};
use super::{Image, Protocol};
use crate::{boot, memory_map};

/// The header begins within this many bytes, 4-aligned.
const SEARCH: usize = 8192;
const MAGIC: u32 = 0x1BAD_B002;
/// Flag: the header holds load addresses.
const HAS_ADDRESSES: u32 = 1 << 16;
/// Flags below 16 that ask for something: page-aligned modules and memory
/// information, which we give, and a video mode, which we do not.
const KNOWN_REQUIREMENTS: u32 = 0b011;
const REQUIREMENTS: u32 = 0xFFFF;

/// Where the multiboot header begins in `head`, a file's first bytes.
pub fn find_header(head: &[u8]) -> Option<usize> {
    (0..head.len().min(SEARCH)).step_by(4).find(|at| {
        let word = |offset| le32(head, at + offset);
        match (word(0), word(4), word(8)) {
            (Some(MAGIC), Some(flags), Some(sum)) => {
                MAGIC.wrapping_add(flags).wrapping_add(sum) == 0
            }
            _ => false,
        }
    })
}

/// Loads the kernel whose header begins at byte `at` of `head`.
pub fn load(source: &dyn Source, head: &[u8], at: usize, ram: &GuestRam) -> Result<Image, Problem> {
    const PART: &str = "multiboot header";
    let word = |offset: usize| le32(head, at + offset).ok_or(Problem::Truncated { part: PART });
    let flags = word(4)?;
    if flags & REQUIREMENTS & !KNOWN_REQUIREMENTS != 0 {
        return Err(Problem::Damaged {
            what: format!("its multiboot header asks for more than there is (flags {flags:#x})"),
        });
    }
    let (entry, start, end) = if flags & HAS_ADDRESSES != 0 {
        let (header, load, load_end) = (word(12)?, word(16)?, word(20)?);
        let (bss_end, entry) = (word(24)?, word(28)?);
        // The header's own address tells where the file's first loaded byte is.
        let before = header.checked_sub(load);
        let first = before.and_then(|before| (at as u64).checked_sub(before.into()));
        let Some(first) = first else {
            return Err(Problem::Damaged {
                what: "the addresses in its multiboot header contradict each other".to_owned(),
            });
        };
        let len = match load_end {
            0 => source.size().saturating_sub(first),
            end => u64::from(end.saturating_sub(load)),
        };
        if first.saturating_add(len) > source.size() || len == 0 {
            return Err(Problem::Truncated {
                part: "multiboot image",
            });
        }
        let start = u64::from(load);
        let size = len.max(u64::from(bss_end.saturating_sub(load)));
        let end = memory_map::check_load(ram, start, size)?;
        source.copy_to(first, len, ram, start, "multiboot image")?;
        zero(ram, start + len, size - len)?;
        (entry, start, end)
    } else if is_elf(head) {
        let elf = Elf::parse(source)?;
        let entry = u32::try_from(elf.entry).map_err(|_| Problem::Beyond32 {
            format: "multiboot",
            what: "its entry point",
        })?;
        let (start, end) = elf.load(source, ram)?;
        (entry, start, end)
    } else {
        return Err(Problem::Damaged {
            what: "it has a multiboot header without load addresses and is no ELF file".to_owned(),
        });
    };
    if !(start..end).contains(&u64::from(entry)) {
        return Err(Problem::Damaged {
            what: format!("its entry point {entry:#x} lies outside what it loads"),
        });
    }
    Ok(Image {
        protocol: Protocol::Multiboot { entry },
        start,
        end,
        initrd_max: u32::MAX.into(),
        command_line_max: memory_map::COMMAND_LINE_SIZE - 1 - boot::MULTIBOOT_NAME.len(),
    })
}
