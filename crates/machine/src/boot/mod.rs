//! What a kernel finds when it starts: its boot information in guest memory
//! and the first vCPU's registers.

mod cpu;
mod linux64;
mod multiboot;
mod pvh;

use croft_memory::{GuestRam, Range};

use crate::loader::{Problem, Protocol, write};
use crate::memory_map::{BOOT_GDT, COMMAND_LINE, COMMAND_LINE_SIZE};

pub use cpu::{Boot, Mode};
pub use multiboot::NAME as MULTIBOOT_NAME;

/// What every boot protocol passes on.
#[derive(Clone, Copy, Debug)]
pub struct Info<'a> {
    /// Without NUL; shorter than [`COMMAND_LINE_SIZE`].
    pub command_line: &'a str,
    /// Where the initrd is.
    pub initrd: Option<Range>,
    /// Where the ACPI root pointer is.
    pub rsdp: u64,
}

/// Writes the boot information of `protocol` into guest memory.
pub fn prepare(protocol: &Protocol, info: &Info<'_>, ram: &GuestRam) -> Result<Boot, Problem> {
    let mut gdt = Vec::with_capacity(cpu::GDT.len() * 8);
    for descriptor in cpu::GDT {
        gdt.extend_from_slice(&descriptor.to_le_bytes());
    }
    write(ram, BOOT_GDT, &gdt)?;
    match protocol {
        Protocol::Pvh { entry } => pvh::prepare(*entry, info, ram),
        Protocol::Linux64 { entry, header } => linux64::prepare(*entry, header, info, ram),
        Protocol::Multiboot { entry } => multiboot::prepare(*entry, info, ram),
    }
}

/// Writes `text` and its NUL to where the command line goes.
fn write_command_line(text: &str, ram: &GuestRam) -> Result<(), Problem> {
    if text.len() >= COMMAND_LINE_SIZE {
        return Err(Problem::CommandLine {
            len: text.len(),
            limit: COMMAND_LINE_SIZE - 1,
        });
    }
    write(ram, COMMAND_LINE, text.as_bytes())?;
    write(ram, COMMAND_LINE + text.len() as u64, &[0])
}

#[cfg(test)]
mod tests;
