//! What a device is.

use std::ops::RangeInclusive;

use crate::pci::PciFunction;
use crate::saved::{DeviceState, StateError};
use crate::timer::Alarm;

/// First and last port.
pub type PortRange = RangeInclusive<u16>;
/// First and last guest-physical address.
pub type MmioRange = RangeInclusive<u64>;

/// A piece of virtual hardware behind the bus.
///
/// What a device can do is asked for: each query returns the device's view of
/// one kind, or `None`. The answers' presence, and the ranges in them, must
/// not change during a device's life (PCI BARs are what moves at run time).
///
/// # Lifecycle
///
/// ```text
/// new ──► added ──start──► running ◄──pause / resume──► paused
///            │                                            │
///            └───────────── reset, restore ───────────────┘ save
/// ```
///
/// * `start`, `pause`, `resume`, `reset`, `save` and `restore` come from the
///   machine's owner thread, with every vCPU stopped.
/// * `start` comes once, before the first guest instruction.
/// * After `pause` a device neither touches guest memory nor drives an
///   interrupt, and takes nothing more from the host side, until `resume`.
///   Guest time stands still meanwhile.
/// * `reset` gives the state at power-on (battery-backed and host-side state
///   stays), with interrupt lines low, and leaves the device added or paused
///   as it was. The interrupt controllers are reset before the devices.
/// * `save` comes when paused. `restore` comes when added or paused, after
///   the interrupt controllers were restored; it drives the device's lines to
///   what its state says. A refused `restore` leaves the device unchanged.
///
/// Nothing a guest writes may panic, allocate without bound or block.
pub trait Device: Send {
    /// Answers on I/O ports.
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        None
    }

    /// Answers at fixed guest-physical addresses.
    fn mmio(&mut self) -> Option<&mut dyn MmioDevice> {
        None
    }

    /// Is a PCI function.
    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        None
    }

    /// Has a timer.
    fn timer(&mut self) -> Option<&mut dyn TimerDevice> {
        None
    }

    /// The guest is about to run for the first time.
    fn start(&mut self) {}

    /// Stand still.
    fn pause(&mut self) {}

    /// Go on after a pause.
    fn resume(&mut self) {}

    /// Back to the state at power-on.
    fn reset(&mut self);

    /// The complete state.
    fn save(&mut self) -> DeviceState;

    /// Counterpart of [`save`](Device::save).
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
}

/// A device on I/O ports.
pub trait PortDevice {
    /// The ports claimed; asked once, when the device is added.
    fn port_ranges(&self) -> Vec<PortRange>;

    /// `in`: an access that lies within one claimed range. `data` (1, 2 or 4
    /// bytes, little-endian) holds all ones.
    fn port_read(&mut self, port: u16, data: &mut [u8]);

    /// `out`: an access that lies within one claimed range.
    fn port_write(&mut self, port: u16, data: &[u8]);
}

/// A device at fixed guest-physical addresses.
pub trait MmioDevice {
    /// The addresses claimed; asked once, when the device is added.
    fn mmio_ranges(&self) -> Vec<MmioRange>;

    /// A read that lies within one claimed range. `data` (1, 2, 4 or 8
    /// bytes, little-endian) holds all ones.
    fn mmio_read(&mut self, address: u64, data: &mut [u8]);

    /// A write that lies within one claimed range.
    fn mmio_write(&mut self, address: u64, data: &[u8]);
}

/// A device with a timer.
pub trait TimerDevice {
    /// The device's alarm; asked once, when the device is added.
    fn alarm(&self) -> Alarm;

    /// The deadline passed and was cleared; `now` is guest time. The device
    /// sets the next one.
    fn expire(&mut self, now: u64);
}
