//! Brings a kernel, an initrd and a command line into guest memory.
//!
//! ```text
//! file ─ first bytes ─┬─ HdrS ─────► bzimage ─ unpack ─► elf (PVH)
//!                     │                └─ no PVH note ─► 64-bit boot protocol
//!                     ├─ \x7fELF ──► elf (PVH), else multiboot
//!                     └─ 1BADB002 ─► multiboot
//! ```

mod bzimage;
mod checksum;
mod decompress;
mod elf;
mod error;
mod initrd;
mod multiboot;
mod source;

#[cfg(test)]
mod tests;

use croft_memory::GuestRam;

pub use error::{LoadError, Problem};
pub use source::{FILE_LIMIT, NamedFile, Source, write};

use crate::boot::{self, Boot};
use source::FileSource;

/// Bytes in which every format shows itself: the multiboot header may begin
/// as late as 8 KiB and is at most 48 bytes long.
const HEAD: usize = 8192 + 48;

/// How messages call the command line.
const COMMAND_LINE_NAME: &str = "--append";

/// How a kernel wants to be entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// PVH: 32-bit protected mode with a start info.
    Pvh {
        /// Physical entry point.
        entry: u32,
    },
    /// Linux's 64-bit boot protocol.
    Linux64 {
        /// Physical entry point.
        entry: u64,
        /// The setup header, from file offset 0x1F1.
        header: Vec<u8>,
    },
    /// Multiboot 1: 32-bit protected mode with a multiboot information.
    Multiboot {
        /// Physical entry point.
        entry: u32,
    },
}

/// A kernel that is in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// How to enter it.
    pub protocol: Protocol,
    /// Lowest address it occupies.
    pub start: u64,
    /// First address after it, memory that it zeroes included.
    pub end: u64,
    /// Highest address that its initrd may occupy.
    pub initrd_max: u64,
    /// Most bytes of command line, without the NUL.
    pub command_line_max: usize,
}

/// What a machine starts from.
#[derive(Debug)]
pub struct Payload {
    /// The kernel.
    pub kernel: NamedFile,
    /// The initial RAM disk, or multiboot's first module.
    pub initrd: Option<NamedFile>,
    /// The kernel's command line.
    pub append: String,
}

impl Payload {
    /// Finds what can be found wrong without a machine: missing, empty,
    /// oversized files.
    pub fn check(&self) -> Result<(), LoadError> {
        self.kernel.checked_len()?;
        if let Some(initrd) = &self.initrd {
            initrd.checked_len()?;
        }
        Ok(())
    }

    /// Loads everything into `ram` and says how the first vCPU starts.
    /// `rsdp` is where the ACPI root pointer is. Can be called again for the
    /// same memory, after a reset.
    pub fn load(&self, ram: &GuestRam, rsdp: u64) -> Result<Boot, LoadError> {
        let image = load_kernel(&self.kernel, ram)?;
        check_command_line(&self.append, image.command_line_max)
            .map_err(|problem| LoadError::new(COMMAND_LINE_NAME, problem))?;
        let initrd = match &self.initrd {
            Some(file) => Some(initrd::place(file, &image, ram)?),
            None => None,
        };
        let info = boot::Info {
            command_line: &self.append,
            initrd,
            rsdp,
        };
        boot::prepare(&image.protocol, &info, ram)
            .map_err(|problem| LoadError::new(&self.kernel.name, problem))
    }
}

/// Loads the kernel alone.
fn load_kernel(kernel: &NamedFile, ram: &GuestRam) -> Result<Image, LoadError> {
    let source = FileSource::new(kernel)?;
    load_image(&source, ram).map_err(|problem| LoadError::new(&kernel.name, problem))
}

/// Detects the format of `source` and loads it.
pub fn load_image(source: &dyn Source, ram: &GuestRam) -> Result<Image, Problem> {
    let head = source.up_to(0, HEAD)?;
    if bzimage::is_bzimage(&head) {
        return bzimage::load(source, &head, ram);
    }
    if elf::is_elf(&head) {
        let elf = elf::Elf::parse(source)?;
        if let Some(entry) = elf.pvh_entry(source)? {
            return elf.load_pvh(source, ram, entry);
        }
    }
    if let Some(at) = multiboot::find_header(&head) {
        return multiboot::load(source, &head, at, ram);
    }
    Err(no_kernel(&head))
}

/// What a file is that is no kernel of ours.
fn no_kernel(head: &[u8]) -> Problem {
    let at = |offset: usize, magic: &[u8]| {
        let there = head.get(offset..);
        there.is_some_and(|there| there.starts_with(magic))
    };
    if elf::is_elf(head) {
        return Problem::NoEntry;
    }
    // Documentation/arch/{arm64,riscv}/: the magic of their flat images.
    for (offset, magic, found) in [
        (0x38, &b"ARM\x64"[..], "64-bit ARM (aarch64)"),
        (0x38, b"RSC\x05", "RISC-V"),
        (0x24, b"\x18\x28\x6f\x01", "32-bit ARM"),
    ] {
        if at(offset, magic) {
            return Problem::Architecture { found };
        }
    }
    if head.len() < 0x268 && (at(0x1FE, b"\x55\xAA") || at(0, b"MZ")) {
        return Problem::Truncated {
            part: "setup header",
        };
    }
    let known: [(usize, &[u8], &'static str); 11] = [
        (0, b"\x1f\x8b", "it looks gzip-compressed: unpack it first"),
        (0, b"\xfd7zXZ", "it looks xz-compressed: unpack it first"),
        (
            0,
            b"\x28\xb5\x2f\xfd",
            "it looks zstd-compressed: unpack it first",
        ),
        (0, b"070701", "it looks like an initrd; --initrd takes it"),
        (0, b"070702", "it looks like an initrd; --initrd takes it"),
        (0, b"QFI\xfb", "it looks like a qcow2 disk image"),
        (
            0,
            b"!<arch>\n",
            "it looks like a Debian package or archive: unpack it first",
        ),
        (
            0,
            b"MZ",
            "it looks like an EFI program without a Linux setup header",
        ),
        (0, b"#!", "it looks like a script"),
        (
            0x1FE,
            b"\x55\xAA",
            "it looks like a disk, an ISO image or a boot sector",
        ),
        (0, b"\x27\x05\x19\x56", "it looks like a U-Boot image"),
    ];
    let looks_like = known
        .iter()
        .find(|(offset, magic, _)| at(*offset, magic))
        .map_or("its format is unknown", |(_, _, text)| text);
    Problem::NotAKernel { looks_like }
}

fn check_command_line(text: &str, limit: usize) -> Result<(), Problem> {
    if text.contains('\0') {
        return Err(Problem::CommandLineNul);
    }
    if text.len() > limit {
        return Err(Problem::CommandLine {
            len: text.len(),
            limit,
        });
    }
    Ok(())
}
