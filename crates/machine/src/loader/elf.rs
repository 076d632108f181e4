//! ELF kernels with a PVH entry point.
//!
//! The entry is a 32-bit physical address in a note of owner `Xen`, type 18
//! (`XEN_ELFNOTE_PHYS32_ENTRY`, Xen's `public/elfnote.h`); segments go to
//! their physical addresses.

use croft_memory::GuestRam;

use super::error::Problem;
use super::source::{Source, le16, le32, le64, zero};
use super::{Image, Protocol};
use crate::memory_map;

/// `e_ident[EI_CLASS]` (System V ABI, "ELF Identification").
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
/// `e_machine` (System V ABI, "ELF Header").
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
/// `e_type`.
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
/// `p_type`.
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
/// Xen's `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// No kernel has more program headers; bounds what is read for them.
const MAX_SEGMENTS: u16 = 256;
/// No kernel has more bytes of notes.
const MAX_NOTES: u64 = 1 << 20;

/// One program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// A checked ELF header with its program headers.
#[derive(Debug)]
pub struct Elf {
    /// ELF64 rather than ELF32.
    pub wide: bool,
    segments: Vec<Segment>,
    /// `e_entry`.
    pub entry: u64,
}

/// True when `head`, a file's first bytes, says ELF.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

fn machine_name(machine: u16) -> &'static str {
    match machine {
        8 => "MIPS",
        20 => "32-bit PowerPC",
        21 => "64-bit PowerPC",
        22 => "IBM Z",
        40 => "32-bit ARM",
        43 => "SPARC",
        50 => "Itanium",
        183 => "64-bit ARM (aarch64)",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "another processor",
    }
}

impl Elf {
    /// Reads and checks the headers.
    pub fn parse(source: &(impl Source + ?Sized)) -> Result<Self, Problem> {
        const PART: &str = "ELF header";
        let head = source.up_to(0, 64)?;
        let truncated = Problem::Truncated { part: PART };
        let (Some(&class), Some(&order)) = (head.get(4), head.get(5)) else {
            return Err(truncated);
        };
        let wide = match class {
            CLASS_32 => false,
            CLASS_64 => true,
            other => return Err(damaged(format!("ELF class {other} does not exist"))),
        };
        if order == 2 {
            return Err(Problem::Architecture {
                found: "a big-endian processor",
            });
        }
        if head.len() < if wide { 64 } else { 52 } {
            return Err(truncated);
        }
        let half = |offset| le16(&head, offset).unwrap_or(0);
        match half(18) {
            MACHINE_X86_64 | MACHINE_386 => {}
            other => {
                return Err(Problem::Architecture {
                    found: machine_name(other),
                });
            }
        }
        if !matches!(half(16), TYPE_EXEC | TYPE_DYN) {
            return Err(Problem::NotAKernel {
                looks_like: "an ELF object file that is not linked",
            });
        }
        let word = |offset| u64::from(le32(&head, offset).unwrap_or(0));
        let (entry, table, entry_size, count, least) = if wide {
            let long = |offset| le64(&head, offset).unwrap_or(0);
            (long(24), long(32), half(54), half(56), 56)
        } else {
            (word(24), word(28), half(42), half(44), 32)
        };
        if count == 0 {
            return Err(Problem::NotAKernel {
                looks_like: "an ELF file with nothing to load",
            });
        }
        if entry_size < least || count > MAX_SEGMENTS {
            return Err(damaged(format!(
                "{count} ELF program headers of {entry_size} bytes"
            )));
        }
        let mut segments = Vec::with_capacity(count.into());
        let mut header = vec![0; entry_size.into()];
        for index in 0..u64::from(count) {
            let offset = table.checked_add(index * u64::from(entry_size));
            let Some(offset) = offset else {
                return Err(damaged("ELF program header offset".to_owned()));
            };
            source.read(offset, &mut header, "ELF program headers")?;
            segments.push(Segment::parse(&header, wide));
        }
        Ok(Elf {
            wide,
            segments,
            entry,
        })
    }

    /// The PVH entry point, when there is one.
    pub fn pvh_entry(&self, source: &(impl Source + ?Sized)) -> Result<Option<u32>, Problem> {
        let notes = self.segments.iter().filter(|s| s.kind == SEGMENT_NOTE);
        for segment in notes {
            if segment.file_size > MAX_NOTES {
                return Err(damaged(format!("{} bytes of ELF notes", segment.file_size)));
            }
            let mut notes = vec![0; segment.file_size as usize];
            source.read(segment.offset, &mut notes, "ELF notes")?;
            let align = if segment.align == 8 { 8 } else { 4 };
            if let Some(entry) = find_pvh_note(&notes, align) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Copies the loadable segments to guest memory and returns the lowest
    /// and the first unused address, in bytes.
    pub fn load(
        &self,
        source: &(impl Source + ?Sized),
        ram: &GuestRam,
    ) -> Result<(u64, u64), Problem> {
        let loads = || {
            let all = self.segments.iter();
            all.filter(|s| s.kind == SEGMENT_LOAD && s.memory_size != 0)
        };
        let (mut low, mut high) = (u64::MAX, 0);
        for segment in loads() {
            if segment.file_size > segment.memory_size {
                return Err(damaged("an ELF segment larger than its memory".to_owned()));
            }
            let file_end = segment.offset.checked_add(segment.file_size);
            if file_end.is_none_or(|end| end > source.size()) {
                return Err(Problem::Truncated {
                    part: "ELF segments",
                });
            }
            let end = memory_map::check_load(ram, segment.physical, segment.memory_size)?;
            low = low.min(segment.physical);
            high = high.max(end);
        }
        if high == 0 {
            return Err(Problem::NotAKernel {
                looks_like: "an ELF file with nothing to load",
            });
        }
        // Only a file that was found whole touches guest memory.
        for segment in loads() {
            let (offset, size) = (segment.offset, segment.file_size);
            source.copy_to(offset, size, ram, segment.physical, "ELF segments")?;
            zero(
                ram,
                segment.physical + segment.file_size,
                segment.memory_size - segment.file_size,
            )?;
        }
        Ok((low, high))
    }

    /// Loads a kernel that has a PVH entry.
    pub fn load_pvh(
        &self,
        source: &(impl Source + ?Sized),
        ram: &GuestRam,
        entry: u32,
    ) -> Result<Image, Problem> {
        let (low, high) = self.load(source, ram)?;
        if !(low..high).contains(&u64::from(entry)) {
            return Err(damaged(format!(
                "its PVH entry {entry:#x} lies outside what it loads"
            )));
        }
        Ok(Image {
            protocol: Protocol::Pvh { entry },
            start: low,
            end: high,
            initrd_max: u32::MAX.into(),
            command_line_max: memory_map::COMMAND_LINE_SIZE - 1,
        })
    }
}

impl Segment {
    /// `header` is at least as long as its class asks for.
    fn parse(header: &[u8], wide: bool) -> Self {
        let word = |offset| u64::from(le32(header, offset).unwrap_or(0));
        let long = |offset| le64(header, offset).unwrap_or(0);
        let kind = le32(header, 0).unwrap_or(0);
        if wide {
            Segment {
                kind,
                offset: long(8),
                physical: long(24),
                file_size: long(32),
                memory_size: long(40),
                align: long(48),
            }
        } else {
            Segment {
                kind,
                offset: word(4),
                physical: word(12),
                file_size: word(16),
                memory_size: word(20),
                align: word(28),
            }
        }
    }
}

fn damaged(what: String) -> Problem {
    Problem::Damaged { what }
}

/// Walks notes: name size, descriptor size, type, name, descriptor, each of
/// the last two padded to `align`.
fn find_pvh_note(notes: &[u8], align: usize) -> Option<u32> {
    let padded = |size: u32| (size as usize).checked_next_multiple_of(align);
    let mut at = 0usize;
    loop {
        let name_size = le32(notes, at)?;
        let value_size = le32(notes, at.checked_add(4)?)?;
        let kind = le32(notes, at.checked_add(8)?)?;
        let name_at = at.checked_add(12)?;
        let value_at = name_at.checked_add(padded(name_size)?)?;
        if kind == NOTE_PHYS32_ENTRY
            && name_size == 4
            && notes.get(name_at..)?.starts_with(b"Xen\0")
        {
            return match value_size {
                4 => le32(notes, value_at),
                8 => le64(notes, value_at).and_then(|entry| u32::try_from(entry).ok()),
                _ => None,
            };
        }
        at = value_at.checked_add(padded(value_size)?)?;
    }
}
