//! PVH: the start info (Xen's `public/arch-x86/hvm/start_info.h`) and its
//! module list and memory map.

use croft_memory::GuestRam;

use super::cpu::{Boot, Mode};
use super::{Info, write_command_line};
use crate::loader::{Problem, write};
use crate::memory_map::{self, BOOT_INFO, BOOT_MEMORY_MAP, BOOT_MODULES, COMMAND_LINE};

/// "xEn3" with the upper bit of the E set.
const MAGIC: u32 = 0x336E_C578;
/// The version that brought the memory map.
const VERSION: u32 = 1;

pub fn prepare(entry: u32, info: &Info<'_>, ram: &GuestRam) -> Result<Boot, Problem> {
    write_command_line(info.command_line, ram)?;
    if let Some(initrd) = info.initrd {
        // Address, size, command line, reserved.
        let module = [initrd.start, initrd.len, 0, 0].map(u64::to_le_bytes);
        write(ram, BOOT_MODULES, module.as_flattened())?;
    }
    let map = memory_map::e820(ram);
    let mut bytes = Vec::with_capacity(map.len() * 24);
    for entry in &map {
        bytes.extend_from_slice(&entry.start.to_le_bytes());
        bytes.extend_from_slice(&entry.len.to_le_bytes());
        bytes.extend_from_slice(&u64::from(entry.kind as u32).to_le_bytes());
    }
    write(ram, BOOT_MEMORY_MAP, &bytes)?;

    let modules = u32::from(info.initrd.is_some());
    let mut start = Vec::with_capacity(56);
    for word in [MAGIC, VERSION, 0, modules] {
        start.extend_from_slice(&word.to_le_bytes());
    }
    let module_list = if modules == 0 { 0 } else { BOOT_MODULES };
    for address in [module_list, COMMAND_LINE, info.rsdp, BOOT_MEMORY_MAP] {
        start.extend_from_slice(&address.to_le_bytes());
    }
    start.extend_from_slice(&(map.len() as u64).to_le_bytes());
    write(ram, BOOT_INFO, &start)?;
    Ok(Boot {
        mode: Mode::Protected,
        entry: entry.into(),
        rax: 0,
        rbx: BOOT_INFO,
        rsi: 0,
    })
}
