//! DSDT: devices that cannot be discovered, and hot-plug.
//!
//! PCI hot-plug is event 1 of GPE0: its handler reads which slots came and
//! went from the hot-plug registers (see `croft_devices::pci`) and tells
//! the slots' drivers.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local,
    Memory32Fixed, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Or, Package,
    PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;
use croft_devices::platform;

use super::{Config, OEM, OEM_REVISION, OEM_TABLE, Table};

/// Revision from which integers are 64 bits wide.
const REVISION: u8 = 2;
/// Length of a table's header.
const HEADER_LEN: u32 = 36;
/// Slots of PCI bus 0. Slot 0 is the host bridge.
const SLOTS: u8 = 32;
/// Pins of a PCI function.
const PINS: u8 = 4;
/// `_STA`: present, enabled, shown, working [6.3.7].
const WORKING: u8 = 0xF;
/// Notifications [5.6.6]: look for devices; eject.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// What `_OSC` is asked about for a PCI host bridge (PCI Firmware 3.3, 4.5).
const OSC_PCI: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// `_OSC` answers "unknown UUID" by this bit [6.2.11].
const OSC_UNKNOWN_UUID: u8 = 1 << 2;

pub fn build(config: &Config) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_LEN, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let mut body = Vec::new();
    Package::new(vec![&platform::SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO])
        .name("\\_S5_")
        .to_aml_bytes(&mut body);
    processors(config.vcpus).to_aml_bytes(&mut body);
    host_bridge(config).to_aml_bytes(&mut body);
    Scope::new(
        "\\_SB_".into(),
        vec![&hotplug_registers(), &hotplug_fields()],
    )
    .to_aml_bytes(&mut body);
    slots().to_aml_bytes(&mut body);
    event_handlers().to_aml_bytes(&mut body);
    legacy_devices().to_aml_bytes(&mut body);
    dsdt.append_slice(&body);
    dsdt.as_slice().to_vec()
}

/// AML bytes of several objects together.
fn all(objects: &[&dyn Aml]) -> Table {
    let mut bytes = Vec::new();
    for object in objects {
        object.to_aml_bytes(&mut bytes);
    }
    Table(bytes)
}

/// `Name (path, object)`.
trait Named: Aml + Sized {
    fn name(self, path: &str) -> Name {
        Name::new(path.into(), &self)
    }
}

impl<T: Aml> Named for T {}

/// `_CRS` of these resources.
fn resources(resources: Vec<&dyn Aml>) -> Name {
    ResourceTemplate::new(resources).name("_CRS")
}

/// A device under `\_SB` that is named by EISA id and only has resources.
fn simple(name: &str, id: &str, uid: u8, crs: Vec<&dyn Aml>) -> Table {
    all(&[&Device::new(
        name.into(),
        vec![
            &EISAName::new(id).name("_HID"),
            &uid.name("_UID"),
            &resources(crs),
        ],
    )])
}

fn processors(vcpus: u32) -> Table {
    let devices: Vec<Table> = (0..vcpus)
        .map(|id| {
            let name = format!("C{id:03X}");
            all(&[&Device::new(
                name.as_str().into(),
                vec![&"ACPI0007".name("_HID"), &id.name("_UID")],
            )])
        })
        .collect();
    let devices = devices.iter().map(|device| device as &dyn Aml).collect();
    all(&[&Scope::new("\\_SB_".into(), devices)])
}

fn host_bridge(config: &Config) -> Table {
    let window_32 = platform::PCI_MMIO;
    let window_64 = config.pci_window_64;
    let (bus_first, bus_last) = platform::ECAM_BUSES.into_inner();
    let crs = resources(vec![
        &AddressSpace::new_bus_number(u16::from(bus_first), u16::from(bus_last)),
        &IO::new(platform::PCI_ADDRESS_PORT, platform::PCI_ADDRESS_PORT, 1, 8),
        &AddressSpace::new_io(*platform::PCI_IO.start(), *platform::PCI_IO.end(), None),
        &AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            *window_32.start() as u32,
            *window_32.end() as u32,
            None,
        ),
        &AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            window_64.start,
            window_64.start + (window_64.len - 1),
            None,
        ),
    ]);
    all(&[&Device::new(
        "\\_SB_.PCI0".into(),
        vec![
            &EISAName::new("PNP0A08").name("_HID"),
            &EISAName::new("PNP0A03").name("_CID"),
            &ZERO.name("_SEG"),
            &ZERO.name("_BBN"),
            &ZERO.name("_UID"),
            &crs,
            &interrupt_routing().name("_PRT"),
            &operating_system_capabilities(),
        ],
    )])
}

/// `_PRT` [6.2.13]: address, pin, no link device, GSI.
fn interrupt_routing() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 0..SLOTS {
        for pin in 0..PINS {
            let gsi = platform::intx_gsi(slot, pin);
            let address = u32::from(slot) << 16 | 0xFFFF;
            table.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
        }
    }
    table
}

/// `_OSC`: nothing is handed to the guest, since there is no PCI Express
/// port whose services it could take.
fn operating_system_capabilities() -> Table {
    let status = Path::new("CDW1");
    let control = Path::new("CDW3");
    all(&[&Method::new(
        "_OSC".into(),
        4,
        false,
        vec![
            &CreateDWordField::new(&status, &Arg(3), &ZERO),
            &CreateDWordField::new(&control, &Arg(3), &8u8),
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new(OSC_PCI)),
                vec![&Store::new(&control, &ZERO)],
            ),
            &Else::new(vec![&Or::new(&status, &status, &OSC_UNKNOWN_UUID)]),
            &Return::new(&Arg(3)),
        ],
    )])
}

fn hotplug_registers() -> Table {
    all(&[&OpRegion::new(
        "PCIH".into(),
        OpRegionSpace::SystemIO,
        &platform::PCI_HOTPLUG_PORT,
        &platform::PCI_HOTPLUG_LEN,
    )])
}

/// One bit a slot in each register.
fn hotplug_fields() -> Field {
    Field::new(
        "PCIH".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"PCIU", 32),
            FieldEntry::Named(*b"PCID", 32),
            FieldEntry::Named(*b"PCIE", 32),
        ],
    )
}

/// Slots that can be ejected, and the method that notifies one by the mask
/// of those that something happened to.
fn slots() -> Table {
    let mut objects: Vec<Table> = Vec::new();
    let mut dispatch: Vec<Table> = Vec::new();
    for slot in 1..SLOTS {
        let name = format!("S{slot:02X}_");
        let mask = 1u32 << slot;
        objects.push(all(&[&Device::new(
            name.as_str().into(),
            vec![
                &(u32::from(slot) << 16).name("_ADR"),
                &slot.name("_SUN"),
                &Method::new(
                    "_EJ0".into(),
                    1,
                    true,
                    vec![&Store::new(&Path::new("\\_SB_.PCIE"), &mask)],
                ),
            ],
        )]));
        let device = Path::new(&name);
        dispatch.push(all(&[&If::new(
            &And::new(&ZERO, &Arg(0), &mask),
            vec![&Notify::new(&device, &Arg(1))],
        )]));
    }
    let dispatch = dispatch.iter().map(|object| object as &dyn Aml).collect();
    objects.push(all(&[&Method::new("TELL".into(), 2, true, dispatch)]));
    let objects = objects.iter().map(|object| object as &dyn Aml).collect();
    all(&[&Scope::new("\\_SB_.PCI0".into(), objects)])
}

/// `\_GPE._E01`: an edge of GPE0 event 1.
fn event_handlers() -> Table {
    // Reading a register may clear it: it is read once.
    let tell = |register: &str, what: u8| {
        let mask = Local(0);
        all(&[
            &Store::new(&mask, &Path::new(register)),
            &MethodCall::new("\\_SB_.PCI0.TELL".into(), vec![&mask, &what]),
        ])
    };
    let handler = format!("_E{:02X}", platform::GPE_PCI_HOTPLUG);
    all(&[&Scope::new(
        "\\_GPE".into(),
        vec![&Method::new(
            handler.as_str().into(),
            0,
            true,
            vec![
                &tell("\\_SB_.PCIU", DEVICE_CHECK),
                &tell("\\_SB_.PCID", EJECT_REQUEST),
            ],
        )],
    )])
}

fn legacy_devices() -> Table {
    let irq = |number| Interrupt::new(true, true, false, false, number);
    // Memory that drivers must leave alone: the PCI configuration window.
    let reserved = simple(
        "MBRD",
        "PNP0C02",
        0,
        vec![&Memory32Fixed::new(
            true,
            platform::ECAM_BASE as u32,
            platform::ECAM_SIZE as u32,
        )],
    );
    let serial = simple(
        "COM1",
        "PNP0501",
        0,
        vec![
            &IO::new(platform::UART_PORT, platform::UART_PORT, 1, 8),
            &irq(platform::UART_IRQ),
        ],
    );
    let clock = simple(
        "RTC_",
        "PNP0B00",
        0,
        vec![
            &IO::new(platform::RTC_PORT, platform::RTC_PORT, 1, 2),
            &irq(platform::RTC_IRQ),
        ],
    );
    let panic = all(&[&Device::new(
        "PVPC".into(),
        vec![
            &"QEMU0001".name("_HID"),
            &WORKING.name("_STA"),
            &resources(vec![&IO::new(
                platform::PVPANIC_PORT,
                platform::PVPANIC_PORT,
                1,
                1,
            )]),
        ],
    )]);
    all(&[&Scope::new(
        "\\_SB_".into(),
        vec![&reserved, &serial, &clock, &panic],
    )])
}
