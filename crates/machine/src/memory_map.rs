//! Where things are in guest-physical memory.
//!
//! ```text
//!         0 ┬ RAM: conventional memory, with the boot data below
//!   0x9FC00 ┼ reserved: where PCs keep the extended BIOS data area
//!   0xA0000 ┼ nothing: legacy video and option ROMs
//!   0xE0000 ┼ reserved: ACPI tables
//!  0x100000 ┼ RAM: kernel, initrd
//!     3 GiB ┼ 32-bit PCI window, ECAM, I/O APIC, local APIC
//!     4 GiB ┼ the rest of RAM
//!           ┴ 64-bit PCI window, up to the end of the address space
//! ```
//!
//! Page 0 is ordinary RAM: nothing of ours is there, and a guest that
//! follows a null physical pointer reads zeros.

use croft_devices::platform;
use croft_memory::{GuestRam, PAGE_SIZE, Range};
use thiserror::Error;

use crate::loader::Problem;

/// First byte that is no longer conventional memory.
pub const CONVENTIONAL_END: u64 = 0x9_FC00;
/// First byte after legacy video memory and option ROMs.
pub const LEGACY_HOLE_END: u64 = 0xE_0000;
/// 1 MiB.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Where RAM below 4 GiB ends at most.
pub const LOW_RAM_END: u64 = platform::LOW_RAM_END;
/// Where the rest of RAM begins.
pub const HIGH_RAM_START: u64 = platform::HIGH_RAM_BASE;

/// The boot data lies together high in conventional memory, where neither
/// kernels nor real-mode test programs are linked.
pub const BOOT_DATA: u64 = 0x8_0000;
/// Global descriptor table for the boot protocols' flat segments.
pub const BOOT_GDT: u64 = BOOT_DATA;
/// PVH start info or multiboot information.
pub const BOOT_INFO: u64 = BOOT_DATA + 0x100;
/// Module list of either.
pub const BOOT_MODULES: u64 = BOOT_DATA + 0x200;
/// Memory map of either.
pub const BOOT_MEMORY_MAP: u64 = BOOT_DATA + 0x400;
/// `boot_params` of the 64-bit boot protocol: one page.
pub const ZERO_PAGE: u64 = BOOT_DATA + 0x1000;
/// Identity page tables of the 64-bit boot protocol: six pages.
pub const PAGE_TABLES: u64 = BOOT_DATA + 0x2000;
/// Command line with its final NUL.
pub const COMMAND_LINE: u64 = BOOT_DATA + 0x8000;
/// Bytes for the command line, its NUL included.
pub const COMMAND_LINE_SIZE: usize = 0x4000;
/// First byte after the boot data.
pub const BOOT_DATA_END: u64 = COMMAND_LINE + COMMAND_LINE_SIZE as u64;

/// Where the ACPI tables may be: the RSDP is searched for here too
/// (ACPI 6.5, 5.2.5.1).
pub const ACPI_START: u64 = LEGACY_HOLE_END;
/// First byte after the ACPI tables.
pub const ACPI_END: u64 = HIGH_MEMORY;

/// Least RAM, in bytes.
pub const MEMORY_MIN: u64 = 16 << 20;

const MIB: u64 = 1 << 20;

/// A memory size that no machine here can have.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SizeError {
    #[error("{0} bytes of memory are too few; give --memory 16M or more")]
    TooLittle(u64),
    #[error("{0} bytes of memory are not a whole number of MiB; round --memory up")]
    Uneven(u64),
    #[error(
        "{} MiB of memory are more than this engine can address ({} MiB); lower --memory",
        wanted / MIB,
        most / MIB
    )]
    Addressable { wanted: u64, most: u64 },
    #[error(
        "{} MiB of memory are more than this host's memory and swap together ({} MiB); lower --memory",
        wanted / MIB,
        there / MIB
    )]
    Host { wanted: u64, there: u64 },
}

/// The RAM ranges of a machine with `memory` bytes on an engine with
/// `physical_bits` address bits. `host` is what the host has at all, in
/// bytes, when known.
pub fn ram_ranges(
    memory: u64,
    physical_bits: u8,
    host: Option<u64>,
) -> Result<Vec<Range>, SizeError> {
    if memory < MEMORY_MIN {
        return Err(SizeError::TooLittle(memory));
    }
    if !memory.is_multiple_of(MIB) {
        return Err(SizeError::Uneven(memory));
    }
    // Half of the address space stays for the 64-bit PCI window.
    let half = 1u64 << physical_bits.clamp(33, 52).saturating_sub(1);
    let most = LOW_RAM_END + half.saturating_sub(HIGH_RAM_START);
    if memory > most {
        return Err(SizeError::Addressable {
            wanted: memory,
            most,
        });
    }
    if let Some(there) = host.filter(|there| memory > *there) {
        return Err(SizeError::Host {
            wanted: memory,
            there,
        });
    }
    let low = memory.min(LOW_RAM_END);
    let mut ranges = vec![Range { start: 0, len: low }];
    if memory > low {
        ranges.push(Range {
            start: HIGH_RAM_START,
            len: memory - low,
        });
    }
    Ok(ranges)
}

/// The host's memory and swap in bytes.
pub fn host_memory() -> Option<u64> {
    // No file, since there is none in the jail.
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    info.totalram.checked_add(info.totalswap)?.checked_mul(unit)
}

/// The 64-bit PCI window: the upper half of the address space.
pub fn pci_window_64(physical_bits: u8) -> Range {
    let half = 1u64 << physical_bits.clamp(34, 52).saturating_sub(1);
    Range {
        start: half,
        len: half,
    }
}

/// Checks that a kernel may occupy `len` bytes at `start`, and returns the
/// first address after them.
pub fn check_load(ram: &GuestRam, start: u64, len: u64) -> Result<u64, Problem> {
    let end = start.saturating_add(len);
    let no_room = Problem::NoRoom { start, end };
    let in_ram = ram.ranges().iter().any(|range| {
        start >= range.start
            && start
                .checked_add(len)
                .is_some_and(|e| e <= range.start + range.len)
    });
    let taken = |from: u64, to: u64| start < to && end > from;
    if !in_ram || taken(BOOT_DATA, BOOT_DATA_END) || taken(CONVENTIONAL_END, HIGH_MEMORY) {
        return Err(no_room);
    }
    Ok(end)
}

/// What an [`E820`] entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Usable memory.
    Ram = 1,
    /// Not for the guest to use.
    Reserved = 2,
}

/// One entry of the memory map that the guest is told
/// (ACPI 6.5, 15.4 "INT 15H, E820H").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820 {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: E820Kind,
}

/// The memory map of a machine with these RAM ranges, ascending.
pub fn e820(ram: &GuestRam) -> Vec<E820> {
    let entry = |start, end: u64, kind| E820 {
        start,
        len: end - start,
        kind,
    };
    let mut map = vec![
        entry(0, CONVENTIONAL_END, E820Kind::Ram),
        entry(CONVENTIONAL_END, 0xA_0000, E820Kind::Reserved),
        entry(ACPI_START, ACPI_END, E820Kind::Reserved),
    ];
    let ranges = ram.ranges();
    let ram_above = |start: u64| {
        ranges.iter().filter_map(move |range| {
            let from = range.start.max(start);
            let end = range.start + range.len;
            (from < end).then(|| entry(from, end, E820Kind::Ram))
        })
    };
    map.extend(ram_above(HIGH_MEMORY));
    map.push(entry(
        platform::ECAM_BASE,
        platform::ECAM_BASE + platform::ECAM_SIZE,
        E820Kind::Reserved,
    ));
    map.sort_by_key(|entry| entry.start);
    map
}

/// `address` rounded down to a page.
pub fn page_floor(address: u64) -> u64 {
    address & !(PAGE_SIZE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_at_the_hole() {
        let ranges = |memory| ram_ranges(memory, 40, None);
        assert_eq!(
            ranges(512 * MIB),
            Ok(vec![Range {
                start: 0,
                len: 512 * MIB
            }])
        );
        let both = ranges(5 << 30).unwrap();
        assert_eq!(both[0].len, LOW_RAM_END);
        assert_eq!(both[1].start, HIGH_RAM_START);
        assert_eq!(both[1].len, 2 << 30);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert_eq!(ram_ranges(0, 40, None), Err(SizeError::TooLittle(0)));
        assert_eq!(
            ram_ranges(MEMORY_MIN + 1, 40, None),
            Err(SizeError::Uneven(MEMORY_MIN + 1))
        );
        for bits in [0, 36, 40, 46, 52, 64, 255] {
            assert!(matches!(
                ram_ranges(!(MIB - 1), bits, None),
                Err(SizeError::Addressable { .. })
            ));
        }
        assert_eq!(
            ram_ranges(2 << 30, 40, Some(1 << 30)),
            Err(SizeError::Host {
                wanted: 2 << 30,
                there: 1 << 30
            })
        );
    }

    #[test]
    fn the_windows_of_ram_and_pci_do_not_meet() {
        for bits in 36..=52 {
            let window = pci_window_64(bits);
            let most = match ram_ranges(!(MIB - 1), bits, None) {
                Err(SizeError::Addressable { most, .. }) => most,
                other => panic!("{other:?}"),
            };
            assert!(HIGH_RAM_START + most - LOW_RAM_END <= window.start);
            assert_eq!(window.start + window.len, 1 << bits);
        }
    }

    #[test]
    fn the_guests_map_is_ordered_and_disjoint() {
        let ram = GuestRam::new(&ram_ranges(64 * MIB, 40, None).unwrap()).unwrap();
        let map = e820(&ram);
        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].len <= pair[1].start, "{pair:x?}");
        }
        let usable = map.iter().filter(|entry| entry.kind == E820Kind::Ram);
        let usable: u64 = usable.map(|entry| entry.len).sum();
        assert_eq!(usable, 64 * MIB - (HIGH_MEMORY - CONVENTIONAL_END));
    }

    #[test]
    fn the_host_has_memory() {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let total = total.unwrap().trim().strip_suffix("kB").unwrap().trim();
        let total = total.parse::<u64>().unwrap() << 10;
        assert!(host_memory().is_some_and(|memory| memory >= total));
    }

    #[test]
    fn nothing_loads_over_boot_data_or_outside_ram() {
        let ram = GuestRam::new(&ram_ranges(64 * MIB, 40, None).unwrap()).unwrap();
        assert!(check_load(&ram, 0x4000, 0x1000).is_ok());
        assert_eq!(check_load(&ram, MIB, 63 * MIB).unwrap(), 64 * MIB);
        for (start, len) in [
            (BOOT_DATA - 1, 2),
            (0, BOOT_DATA + 1),
            (0xE_0000, 16),
            (MIB, 64 * MIB),
            (u64::MAX - 1, 2),
            (MIB, u64::MAX),
        ] {
            assert!(check_load(&ram, start, len).is_err(), "{start:#x} {len:#x}");
        }
    }
}
