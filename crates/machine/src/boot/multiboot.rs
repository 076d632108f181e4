//! Multiboot 1 (Multiboot Specification 0.6.96, 3.2 "Machine state" and 3.3
//! "Boot information format").

use croft_memory::GuestRam;

use super::cpu::{Boot, Mode};
use super::{Info, write_command_line};
use crate::loader::{Problem, write};
use crate::memory_map::{
    self, BOOT_INFO, BOOT_MEMORY_MAP, BOOT_MODULES, COMMAND_LINE, CONVENTIONAL_END, E820Kind,
    HIGH_MEMORY,
};

/// What EAX says.
const MAGIC: u64 = 0x2BAD_B002;
/// Which fields are valid: memory sizes, command line, modules, memory map,
/// loader name.
const FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;

/// Kernels take the first word of their command line for their own name.
pub const NAME: &str = "kernel ";

/// Size of the information, up to and with the loader's name.
const INFO_SIZE: usize = 68;
/// Texts behind the information.
const LOADER_NAME: u64 = BOOT_INFO + 0x80;
const MODULE_NAME: u64 = BOOT_INFO + 0xA0;

pub fn prepare(entry: u32, info: &Info<'_>, ram: &GuestRam) -> Result<Boot, Problem> {
    let line = format!("{NAME}{}", info.command_line);
    write_command_line(line.trim_end(), ram)?;
    write(ram, LOADER_NAME, b"croft\0")?;
    write(ram, MODULE_NAME, b"initrd\0")?;

    let mut table = [0; INFO_SIZE];
    // Every address given here is below 4 GiB.
    let mut put = |at: usize, value: u64| {
        table[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
    };
    let map = memory_map::e820(ram);
    let above = map
        .iter()
        .find(|entry| entry.start == HIGH_MEMORY && entry.kind == E820Kind::Ram)
        .map_or(0, |entry| entry.len);
    put(0, FLAGS.into());
    put(4, CONVENTIONAL_END / 1024);
    put(8, above / 1024);
    put(16, COMMAND_LINE);
    if let Some(initrd) = info.initrd {
        put(20, 1);
        put(24, BOOT_MODULES);
        // Start, end, name, reserved.
        let end = initrd.start + initrd.len;
        let module = [initrd.start, end, MODULE_NAME, 0].map(|value| (value as u32).to_le_bytes());
        write(ram, BOOT_MODULES, module.as_flattened())?;
    }
    let mut bytes = Vec::with_capacity(map.len() * 24);
    for entry in &map {
        // The size of an entry does not count itself.
        bytes.extend_from_slice(&20u32.to_le_bytes());
        bytes.extend_from_slice(&entry.start.to_le_bytes());
        bytes.extend_from_slice(&entry.len.to_le_bytes());
        bytes.extend_from_slice(&(entry.kind as u32).to_le_bytes());
    }
    put(44, bytes.len() as u64);
    put(48, BOOT_MEMORY_MAP);
    put(64, LOADER_NAME);
    write(ram, BOOT_MEMORY_MAP, &bytes)?;
    write(ram, BOOT_INFO, &table)?;
    Ok(Boot {
        mode: Mode::Protected,
        entry: entry.into(),
        rax: MAGIC,
        rbx: BOOT_INFO,
        rsi: 0,
    })
}
