//! MADT: interrupt controllers [5.2.12].

use acpi_tables::sdt::Sdt;
use croft_devices::platform;

use super::{OEM, OEM_REVISION, OEM_TABLE};

/// Revision that knows x2APIC structures.
const REVISION: u8 = 4;
/// Header and the two fields before the structures.
const FIXED_LEN: u32 = 44;
/// PICs are there too.
const PCAT_COMPAT: u32 = 1;
/// Local APIC flag: usable.
const ENABLED: u32 = 1;
/// Ids up to this fit a local APIC structure; 255 means all.
const LAPIC_ID_MAX: u32 = 254;

// MPS INTI flags [5.2.12.5].
const BUS_DEFAULT: u16 = 0;
const ACTIVE_HIGH: u16 = 0b01;
const LEVEL: u16 = 0b11 << 2;

pub fn build(vcpus: u32) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", FIXED_LEN, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    madt.write_u32(36, platform::LOCAL_APIC_BASE as u32);
    madt.write_u32(40, PCAT_COMPAT);
    let mut structures = Vec::new();
    for id in 0..vcpus {
        if id <= LAPIC_ID_MAX {
            // Processor local APIC: UID, APIC id, flags.
            structures.extend_from_slice(&[0, 8, id as u8, id as u8]);
            structures.extend_from_slice(&ENABLED.to_le_bytes());
        } else {
            // Processor local x2APIC: reserved, x2APIC id, flags, UID.
            structures.extend_from_slice(&[9, 16, 0, 0]);
            for word in [id, ENABLED, id] {
                structures.extend_from_slice(&word.to_le_bytes());
            }
        }
    }
    // I/O APIC: id, reserved, address, first GSI.
    structures.extend_from_slice(&[1, 12, 0, 0]);
    for word in [platform::IO_APIC_BASE as u32, 0] {
        structures.extend_from_slice(&word.to_le_bytes());
    }
    // ISA interrupts that differ: bus, source, GSI, flags.
    for (source, gsi, flags) in [
        (0, 2, BUS_DEFAULT),
        (
            platform::SCI_IRQ as u8,
            platform::SCI_IRQ,
            ACTIVE_HIGH | LEVEL,
        ),
    ] {
        structures.extend_from_slice(&[2, 10, 0, source]);
        structures.extend_from_slice(&gsi.to_le_bytes());
        structures.extend_from_slice(&flags.to_le_bytes());
    }
    // NMI at LINT1 of every local APIC: UID, flags, input.
    structures.extend_from_slice(&[4, 6, 0xFF]);
    structures.extend_from_slice(&BUS_DEFAULT.to_le_bytes());
    structures.push(1);
    if vcpus > LAPIC_ID_MAX + 1 {
        // The same for x2APICs: flags, UID, input, reserved.
        structures.extend_from_slice(&[0x0A, 12]);
        structures.extend_from_slice(&BUS_DEFAULT.to_le_bytes());
        structures.extend_from_slice(&u32::MAX.to_le_bytes());
        structures.extend_from_slice(&[1, 0, 0, 0]);
    }
    madt.append_slice(&structures);
    madt.as_slice().to_vec()
}
