//! Brings a kernel, an initrd and a command line into guest memory.
//!
//! ```text
//! file ─ first bytes ─┬─ HdrS ─────► bzimage ─ unpack ─► elf (PVH)
//!                     │                └─ no PVH note ─► 64-bit boot protocol
//!                     ├─ \x7fELF ──► elf (PVH), else multiboot
//!                     └─ 1BADB002 ─► multiboot
//! ```
//!
//! Where kernel and initrd come from is [`BootFrom`]: files that somebody
//! opened, or the machine's first disk, which is read anew each time.

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

use std::sync::Arc;

use croft_disk::Disk;
use croft_memory::GuestRam;

pub use error::{LoadError, Problem};
pub use source::{FILE_LIMIT, NamedFile, Source, write};

use crate::boot::{self, Boot};
use source::{Bytes, FileSource};

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

/// Where a machine's kernel comes from.
#[derive(Debug)]
pub enum BootFrom {
    /// Open files.
    Files {
        /// The kernel.
        kernel: NamedFile,
        /// The initial RAM disk, or multiboot's first module.
        initrd: Option<NamedFile>,
    },
    /// The machine's first disk: its newest kernel, or what the boot loader
    /// on it would start.
    Disk,
}

/// What a machine starts from.
#[derive(Debug)]
pub struct Payload {
    /// Where kernel and initrd are.
    pub boot: BootFrom,
    /// The kernel's command line; behind that of the disk if that is booted.
    pub append: String,
}

/// The first disk, for a machine that boots from it.
#[derive(Clone)]
pub struct BootDisk {
    /// It.
    pub disk: Arc<dyn Disk>,
    /// As the user wrote it.
    pub name: String,
}

impl Payload {
    /// Finds what can be found wrong without a machine: missing, empty,
    /// oversized files.
    pub fn check(&self) -> Result<(), LoadError> {
        if let BootFrom::Files { kernel, initrd } = &self.boot {
            kernel.checked_len()?;
            if let Some(initrd) = initrd {
                initrd.checked_len()?;
            }
        }
        Ok(())
    }

    /// Loads everything into `ram` and says how the first vCPU starts.
    /// `rsdp` is where the ACPI root pointer is. Can be called again for the
    /// same memory, after a reset.
    pub fn load(
        &self,
        ram: &GuestRam,
        rsdp: u64,
        disk: Option<&BootDisk>,
    ) -> Result<Boot, LoadError> {
        let target = Target { ram, rsdp };
        match &self.boot {
            BootFrom::Files { kernel, initrd } => {
                let kernel_source = FileSource::new(kernel)?;
                let initrd_source = match initrd {
                    Some(initrd) => Some((FileSource::new(initrd)?, initrd.name.as_str())),
                    None => None,
                };
                let initrd = initrd_source
                    .as_ref()
                    .map(|(source, name)| (source as &dyn Source, *name));
                target.load((&kernel_source, &kernel.name), initrd, &self.append)
            }
            BootFrom::Disk => {
                let missing = || LoadError::new(COMMAND_LINE_NAME, Problem::NoBootDisk);
                let BootDisk { disk, name } = disk.ok_or_else(missing)?;
                target.load_from(disk.clone(), name, &self.append)
            }
        }
    }
}

/// The memory of the machine that something is loaded into.
struct Target<'a> {
    ram: &'a GuestRam,
    rsdp: u64,
}

impl Target<'_> {
    /// Loads kernel and initrd, each with its name for messages.
    fn load(
        &self,
        kernel: (&dyn Source, &str),
        initrd: Option<(&dyn Source, &str)>,
        command_line: &str,
    ) -> Result<Boot, LoadError> {
        let named = |problem| LoadError::new(kernel.1, problem);
        let image = load_image(kernel.0, self.ram).map_err(named)?;
        check_command_line(command_line, image.command_line_max)
            .map_err(|problem| LoadError::new(COMMAND_LINE_NAME, problem))?;
        let initrd = match initrd {
            Some((source, name)) => {
                let placed = initrd::place(source, &image, self.ram);
                Some(placed.map_err(|problem| LoadError::new(name, problem))?)
            }
            None => None,
        };
        let info = boot::Info {
            command_line,
            initrd,
            rsdp: self.rsdp,
        };
        boot::prepare(&image.protocol, &info, self.ram).map_err(named)
    }

    /// Loads what is on `disk`; `append` comes behind its command line.
    fn load_from(&self, disk: Arc<dyn Disk>, name: &str, append: &str) -> Result<Boot, LoadError> {
        let limits = croft_bootdisk::Limits::default();
        let limits = croft_bootdisk::Limits {
            initrd: limits.initrd.min(self.ram.size()),
            ..limits
        };
        let system = croft_bootdisk::find(disk, limits)
            .map_err(|error| LoadError::new(&format!("disk {name}"), Problem::BootDisk(error)))?;
        let shown = |path: &str| format!("{} on disk {name}", path.escape_debug());
        let kernel_name = shown(&system.kernel.path);
        let initrd_name = system.initrd.as_ref().map(|initrd| shown(&initrd.path));
        let initrd = system.initrd.as_ref().zip(initrd_name.as_deref());
        let initrd_bytes = initrd.map(|(initrd, name)| (&initrd.bytes, name));
        let command_line = match append {
            "" => system.command_line.clone(),
            append => format!("{} {append}", system.command_line),
        };
        self.load(
            (&Bytes(&system.kernel.bytes), &kernel_name),
            initrd_bytes
                .map(|(bytes, name)| (Bytes(bytes), name))
                .as_ref()
                .map(|(source, name)| (source as &dyn Source, *name)),
            &command_line,
        )
    }
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
