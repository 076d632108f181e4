//! The map of the platform: who lives where. The machine's memory layout and
//! ACPI tables are written from these.
//!
//! ```text
//! 0x0000_0000            RAM
//! 0xC000_0000            PCI memory window, 512 MiB
//! 0xE000_0000            PCI ECAM, 1 MiB (bus 0, the only one)
//! 0xFEC0_0000            I/O APIC          } the engine's
//! 0xFEE0_0000            local APICs, MSI  }
//! 0xFF00_0000            test device (only when asked for)
//! 0x1_0000_0000          RAM again, then the 64-bit PCI window, whose place
//!                        the machine chooses by the size of RAM
//! ```

use std::ops::RangeInclusive;

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_END: u64 = 0xC000_0000;
/// RAM that does not fit below [`LOW_RAM_END`] continues here.
pub const HIGH_RAM_BASE: u64 = 0x1_0000_0000;
/// Memory window for 32-bit BARs.
pub const PCI_MMIO: RangeInclusive<u64> = 0xC000_0000..=0xDFFF_FFFF;
/// Start of the PCI configuration window (MCFG).
pub const ECAM_BASE: u64 = 0xE000_0000;
/// Length of the PCI configuration window: one bus.
pub const ECAM_SIZE: u64 = 1 << 20;
/// First and last bus number that MCFG names. Where it names more than there
/// are, Linux asks each slot of each for a device by two ports
/// (`pcibios_fixup_peer_bridges`): 16,000 exits in every boot.
pub const ECAM_BUSES: RangeInclusive<u8> = 0..=0;
/// I/O APIC.
pub const IO_APIC_BASE: u64 = 0xFEC0_0000;
/// Local APICs.
pub const LOCAL_APIC_BASE: u64 = 0xFEE0_0000;
/// Memory of the test device.
pub const TESTDEV_MMIO_BASE: u64 = 0xFF00_0000;

/// Port window for I/O BARs.
pub const PCI_IO: RangeInclusive<u16> = 0xC000..=0xFFFF;
/// i8042 data.
pub const I8042_DATA_PORT: u16 = 0x60;
/// i8042 status and command.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// Fast A20 and reset.
pub const PORT_92: u16 = 0x92;
/// CMOS index; data is the next port.
pub const RTC_PORT: u16 = 0x70;
/// Test suites' exit port.
pub const DEBUG_EXIT_PORT: u16 = 0xF4;
/// First serial port.
pub const UART_PORT: u16 = 0x3F8;
/// Guest panic notification.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI PM1a event block (4 bytes).
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// ACPI PM1a control block (2 bytes).
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// ACPI PM timer (4 bytes).
pub const PM_TIMER_PORT: u16 = 0x608;
/// ACPI GPE0 block (status, then enable).
pub const GPE0_PORT: u16 = 0x620;
/// Length of the GPE0 block in bytes.
pub const GPE0_LEN: u8 = 4;
/// PCI configuration address (mechanism #1).
pub const PCI_ADDRESS_PORT: u16 = 0xCF8;
/// Reset control register: the FADT's reset register.
pub const RESET_PORT: u16 = 0xCF9;
/// The FADT's reset value: full reset through [`RESET_PORT`].
pub const RESET_VALUE: u8 = 0x06;
/// PCI configuration data (4 bytes).
pub const PCI_DATA_PORT: u16 = 0xCFC;
/// PCI hot-plug registers, see [`crate::pci`].
pub const PCI_HOTPLUG_PORT: u16 = 0xAE00;
/// Length of the PCI hot-plug registers in bytes.
pub const PCI_HOTPLUG_LEN: u16 = 0x10;

/// Keyboard controller.
pub const KEYBOARD_IRQ: u32 = 1;
/// First serial port.
pub const UART_IRQ: u32 = 4;
/// Real-time clock.
pub const RTC_IRQ: u32 = 8;
/// ACPI system control interrupt: level, active high.
pub const SCI_IRQ: u32 = 9;

/// First of the lines that the pins of PCI slots share.
pub const INTX_FIRST: u32 = 16;
/// Number of those lines.
pub const INTX_LINES: u32 = 4;

/// The line of a PCI slot's pin (0 is INTA): neighbours have different ones.
pub const fn intx_gsi(slot: u8, pin: u8) -> u32 {
    INTX_FIRST + (slot as u32 + pin as u32) % INTX_LINES
}

/// GPE0 bit of PCI hot-plug: the DSDT's `_E01`.
pub const GPE_PCI_HOTPLUG: u8 = 1;
/// `SLP_TYP` of S5: the first element of the DSDT's `_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;
/// CMOS register of the century (FADT).
pub const RTC_CENTURY: u8 = 0x32;
