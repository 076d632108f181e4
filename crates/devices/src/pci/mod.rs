//! PCI: the host bridge, configuration space, hot-plug.
//!
//! Bus 0 has 32 slots with one function (0) each. Slot 0 is the host bridge
//! itself (1B36:0008, class 06:00: an identity that no driver binds to and no
//! operating system has a workaround for); slots 1–31 are for devices. What is
//! not there reads as all ones.
//!
//! | place          | bytes | contents                                        |
//! |----------------|-------|-------------------------------------------------|
//! | ports 0xCF8    | 4     | configuration address, dword access only: enable (31), bus (23:16), slot (15:11), function (10:8), register (7:2) |
//! | port 0xCF9     | 1     | reset control, byte access: bit 2 going up resets the machine |
//! | ports 0xCFC    | 4     | configuration data, any width                   |
//! | ECAM window    | 1 MiB a bus | slot (19:15), function (14:12), register (11:0) |
//!
//! # Hot-plug
//!
//! ACPI hot-plug: the DSDT gives each slot a device with `_SUN` and `_EJ0`,
//! and the event method of GPE 1 notifies slots by these registers (each a
//! dword with a bit for each slot, at
//! [`PCI_HOTPLUG_PORT`](crate::platform::PCI_HOTPLUG_PORT)):
//!
//! | offset | read                                       | write            |
//! |--------|--------------------------------------------|------------------|
//! | 0x0    | UP: slots that appeared; the read clears   | –                |
//! | 0x4    | DOWN: slots the guest is asked to release  | –                |
//! | 0x8    | 0                                          | EJECT: slots that the guest released |
//! | 0xC    | REMOVABLE: occupied slots that may be ejected | –             |
//!
//! Registers are read and written as whole dwords; other accesses read all
//! ones and write nothing.
//!
//! ```text
//!         plug_removable
//!        ┌───────────────────────► present
//!        │ hot_plug                  │  ▲ the guest reads UP
//! empty ─┴──────────► present + UP ──┼──┘
//!   ▲                   │            │ request_unplug, any number of times
//!   │                   │            ▼
//!   │                   │        present + DOWN
//!   │ EJECT, pull       │            │ EJECT, pull, reset
//!   └───────────────────┴────────────┘ HotplugSink::ejected, or to whoever pulls
//! ```
//!
//! A guest may eject what it was not asked for. What was plugged by `plug`
//! stays for good.

mod config;
mod host;
mod slots;
mod state;
#[cfg(test)]
mod tests;

pub use config::{
    BarKind, BarRoute, BarSpace, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, Identity,
};
pub use host::{PciHost, PciHostConfig};
pub use slots::{HotplugSink, PciError, PciHandle};
pub use state::{ConfigState, PciHostState};

/// A PCI function: the view of a [`Device`](crate::Device) that the host
/// bridge and the bus use.
pub trait PciFunction {
    /// Reads configuration space at `offset` (0–4095). `data` is 1, 2 or 4
    /// bytes, within one dword, and holds all ones.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);

    /// Writes configuration space. True when that changed what
    /// [`bars`](Self::bars) answers.
    fn config_write(&mut self, offset: u16, data: &[u8]) -> bool;

    /// The BARs decoded at the moment.
    fn bars(&self) -> Vec<BarRoute>;

    /// The bus has taken up what [`bars`](Self::bars) answers: the time to
    /// move doorbells. Comes after every change, reset and restore, and may
    /// come without one.
    fn bars_moved(&mut self) {}

    /// A read at `offset` in BAR `bar`; `data` (1, 2, 4 or 8 bytes) holds all
    /// ones. One access to an old place may come after the BAR moved.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// A write at `offset` in BAR `bar`.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]);
}
