//! ACPI tables: what the platform is made of, for the guest
//! (ACPI 6.5; figures in brackets are its sections).
//!
//! ```text
//! RSDP ─► XSDT ─┬─► FADT ─┬─► FACS
//!               │         └─► DSDT
//!               ├─► MADT
//!               └─► MCFG
//! ```

mod dsdt;
mod fadt;
mod madt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use croft_devices::platform;
use croft_memory::{GuestRam, MemoryError, Range};

use crate::memory_map::{ACPI_END, ACPI_START};

/// Maker of the tables, in each of them.
const OEM: [u8; 6] = *b"CROFT ";
/// Name of the machine, in each of them.
const OEM_TABLE: [u8; 8] = *b"CROFTVM ";
/// Version of the tables.
const OEM_REVISION: u32 = 1;

/// Where the root pointer is: the search for it begins here too.
pub const RSDP: u64 = ACPI_START;

/// What the tables depend on.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Number of vCPUs; APIC ids are `0..vcpus`.
    pub vcpus: u32,
    /// The 64-bit PCI window.
    pub pci_window_64: Range,
}

/// Most vCPUs whose description fits the space for tables.
pub const VCPUS_MAX: u32 = 1024;

/// Writes all tables and returns where the root pointer is.
pub fn write(config: &Config, ram: &GuestRam) -> Result<u64, MemoryError> {
    for (address, table) in build(config) {
        ram.write(address, &table)?;
    }
    Ok(RSDP)
}

/// The tables with the guest-physical addresses where they go.
fn build(config: &Config) -> Vec<(u64, Vec<u8>)> {
    let mut tables: Vec<(u64, Vec<u8>)> = Vec::new();
    // The FACS must be 64-byte aligned [5.2.10]; so is everything.
    let mut next = RSDP + 64;
    let mut place = |table: &dyn Aml| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = next;
        next = (next + bytes.len() as u64).next_multiple_of(64);
        tables.push((address, bytes));
        address
    };
    let facs = place(&FACS::new());
    let dsdt = place(&Table(dsdt::build(config)));
    let fadt = place(&fadt::build(facs, dsdt));
    let madt = place(&Table(madt::build(config.vcpus)));
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    let (first, last) = platform::ECAM_BUSES.into_inner();
    mcfg.add_ecam(platform::ECAM_BASE, 0, first, last);
    let mcfg = place(&mcfg);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = place(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    tables.push((RSDP, rsdp));
    debug_assert!(next <= ACPI_END);
    tables
}

/// A finished table as an [`Aml`] object.
struct Table(Vec<u8>);

impl Aml for Table {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

#[cfg(test)]
mod tests;
