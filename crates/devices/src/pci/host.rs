//! The host bridge: ways into configuration space, reset control and the
//! hot-plug registers.

use std::sync::{Arc, Mutex};

use super::config::{ConfigSpace, Identity};
use super::slots::{HotplugSink, PciHandle, Slots};
use super::state::{HOST_VERSION, PciHostState};
use crate::bus::Bus;
use crate::device::{Device, MmioDevice, MmioRange, PortDevice, PortRange};
use crate::lock;
use crate::platform::{
    PCI_ADDRESS_PORT, PCI_DATA_PORT, PCI_HOTPLUG_LEN, PCI_HOTPLUG_PORT, RESET_PORT,
};
use crate::pm::PmHandle;
use crate::power::PowerSink;
use crate::saved::{DeviceState, StateError, check_version, damaged};

const ADDRESS_ENABLE: u32 = 1 << 31;
/// Enable, bus, slot, function, dword.
const ADDRESS_WRITABLE: u32 = 0x80FF_FFFC;
const RESET_NOW: u8 = 1 << 2;
/// Kind of reset, reset, full reset (power cycle).
const RESET_WRITABLE: u8 = 0x0E;
const DATA_LAST: u16 = PCI_DATA_PORT + 3;
const HOTPLUG_LAST: u16 = PCI_HOTPLUG_PORT + PCI_HOTPLUG_LEN - 1;
const UP: u16 = PCI_HOTPLUG_PORT;
const DOWN: u16 = PCI_HOTPLUG_PORT + 4;
const EJECT: u16 = PCI_HOTPLUG_PORT + 8;
const REMOVABLE: u16 = PCI_HOTPLUG_PORT + 12;

/// What a host bridge is made from.
pub struct PciHostConfig {
    /// Start of the ECAM window, at a multiple of 1 MiB.
    pub ecam_base: u64,
    /// Its length: 1 MiB for each bus, at least one.
    pub ecam_size: u64,
    /// Learns of resets.
    pub power: Arc<dyn PowerSink>,
    /// Raises the hot-plug event.
    pub pm: PmHandle,
    /// Learns of ejected devices.
    pub hotplug: Arc<dyn HotplugSink>,
}

/// The device.
pub struct PciHost {
    ecam_base: u64,
    ecam_size: u64,
    power: Arc<dyn PowerSink>,
    config: ConfigSpace,
    address: u32,
    reset_control: u8,
    slots: Arc<Mutex<Slots>>,
}

/// Where in configuration space an access goes.
#[derive(Clone, Copy)]
struct Place {
    slot: u8,
    offset: u16,
}

impl PciHost {
    /// A host bridge for the devices of `bus`, to be added to that bus.
    pub fn new(bus: &Arc<Bus>, config: PciHostConfig) -> Self {
        PciHost {
            ecam_base: config.ecam_base,
            ecam_size: config.ecam_size.max(1 << 20),
            power: config.power,
            config: ConfigSpace::new(Identity {
                vendor: 0x1B36,
                device: 0x0008,
                revision: 0,
                class: 0x06_00_00,
                subsystem_vendor: 0x1AF4,
                subsystem: 0x1100,
            }),
            address: 0,
            reset_control: 0,
            slots: Arc::new(Mutex::new(Slots::new(bus, config.pm, config.hotplug))),
        }
    }

    /// For plugging devices.
    pub fn handle(&self) -> PciHandle {
        PciHandle(self.slots.clone())
    }

    /// By mechanism #1: the address register and a data port.
    fn place_by_address(&self, port: u16) -> Option<Place> {
        let bus_and_function = self.address & 0x00FF_0700;
        (self.address & ADDRESS_ENABLE != 0 && bus_and_function == 0).then_some(Place {
            slot: (self.address >> 11 & 0x1F) as u8,
            offset: (self.address & 0xFC) as u16 | port & 3,
        })
    }

    /// By ECAM; an access may not cross into the next function.
    fn place_by_ecam(&self, address: u64, len: usize) -> Option<Place> {
        let at = address.checked_sub(self.ecam_base)?;
        let bus_and_function = at >> 20 << 3 | at >> 12 & 7;
        let offset = (at & 0xFFF) as u16;
        let fits = usize::from(offset) + len <= 0x1000;
        (bus_and_function == 0 && fits).then_some(Place {
            slot: (at >> 15 & 0x1F) as u8,
            offset,
        })
    }

    fn read_config(&mut self, place: Place, data: &mut [u8]) {
        if place.slot == 0 {
            self.config.read(place.offset, data);
            return;
        }
        let Some((bus, id)) = lock(&self.slots).function(place.slot) else {
            return;
        };
        bus.with(id, |device| {
            if let Some(function) = device.pci() {
                each_dword(place.offset, data.len(), |offset, range| {
                    if let Some(part) = data.get_mut(range) {
                        function.config_read(offset, part);
                    }
                });
            }
        });
    }

    fn write_config(&mut self, place: Place, data: &[u8]) {
        if place.slot == 0 {
            self.config.write(place.offset, data);
            return;
        }
        let Some((bus, id)) = lock(&self.slots).function(place.slot) else {
            return;
        };
        let moved = bus.with(id, |device| {
            let mut moved = false;
            if let Some(function) = device.pci() {
                each_dword(place.offset, data.len(), |offset, range| {
                    if let Some(part) = data.get(range) {
                        moved |= function.config_write(offset, part);
                    }
                });
            }
            moved
        });
        if moved == Some(true) {
            bus.reroute(id);
        }
    }

    fn write_reset_control(&mut self, value: u8) {
        let resets = value & !self.reset_control & RESET_NOW != 0;
        self.reset_control = value & RESET_WRITABLE;
        if resets {
            self.power.reset();
        }
    }

    fn read_hotplug(&mut self, port: u16) -> u32 {
        let mut slots = lock(&self.slots);
        match port {
            UP => std::mem::take(&mut slots.up),
            DOWN => slots.down,
            EJECT => 0,
            REMOVABLE => slots.removable() & slots.occupied(),
            _ => u32::MAX,
        }
    }

    fn state(&self) -> PciHostState {
        let slots = lock(&self.slots);
        PciHostState {
            version: HOST_VERSION,
            address: self.address,
            reset_control: self.reset_control,
            up: slots.up,
            down: slots.down,
            occupied: slots.occupied(),
            config: self.config.save(),
        }
    }

    fn set_state(&mut self, state: &PciHostState) -> Result<(), StateError> {
        check_version("pci host bridge", state.version, HOST_VERSION)?;
        let mut slots = lock(&self.slots);
        let occupied = slots.occupied();
        if state.occupied != occupied {
            let what = format!(
                "it has devices in slots {:#010x}, this machine in {occupied:#010x}",
                state.occupied
            );
            return Err(damaged("pci host bridge", what));
        }
        self.config.restore(&state.config)?;
        self.address = state.address & ADDRESS_WRITABLE;
        self.reset_control = state.reset_control & RESET_WRITABLE;
        slots.up = state.up & occupied;
        slots.down = state.down & occupied;
        Ok(())
    }
}

/// Splits an access at dword boundaries: the offset of each part, and its
/// place in the data.
fn each_dword(offset: u16, len: usize, mut f: impl FnMut(u16, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = usize::from(offset) + done;
        let part = (4 - at % 4).min(len - done);
        f(at as u16, done..done + part);
        done += part;
    }
}

impl PortDevice for PciHost {
    fn port_ranges(&self) -> Vec<PortRange> {
        vec![
            PCI_ADDRESS_PORT..=DATA_LAST,
            PCI_HOTPLUG_PORT..=HOTPLUG_LAST,
        ]
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        match (port, data.len()) {
            (PCI_ADDRESS_PORT, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (RESET_PORT, 1) => data.fill(self.reset_control),
            (PCI_DATA_PORT..=DATA_LAST, _) => {
                if let Some(place) = self.place_by_address(port) {
                    self.read_config(place, data);
                }
            }
            (PCI_HOTPLUG_PORT..=HOTPLUG_LAST, 4) => {
                let value = self.read_hotplug(port);
                data.copy_from_slice(&value.to_le_bytes());
            }
            _ => {}
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        let dword = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
        match (port, dword, data) {
            (PCI_ADDRESS_PORT, Ok(value), _) => self.address = value & ADDRESS_WRITABLE,
            (RESET_PORT, _, [value]) => self.write_reset_control(*value),
            (PCI_DATA_PORT..=DATA_LAST, _, _) => {
                if let Some(place) = self.place_by_address(port) {
                    self.write_config(place, data);
                }
            }
            (EJECT, Ok(mask), _) => lock(&self.slots).eject(mask),
            _ => {}
        }
    }
}

impl MmioDevice for PciHost {
    fn mmio_ranges(&self) -> Vec<MmioRange> {
        vec![self.ecam_base..=self.ecam_base.saturating_add(self.ecam_size - 1)]
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        if let Some(place) = self.place_by_ecam(address, data.len()) {
            self.read_config(place, data);
        }
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        if let Some(place) = self.place_by_ecam(address, data.len()) {
            self.write_config(place, data);
        }
    }
}

impl Device for PciHost {
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioDevice> {
        Some(self)
    }

    /// Devices whose release was asked for are gone after it; the functions
    /// are reset by the bus like all devices.
    fn reset(&mut self) {
        self.config.reset();
        self.address = 0;
        self.reset_control = 0;
        let mut slots = lock(&self.slots);
        slots.up = 0;
        let asked = slots.down;
        slots.eject(asked);
    }

    fn save(&mut self) -> DeviceState {
        DeviceState::PciHost(self.state())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::PciHost(state) => self.set_state(state),
            other => Err(StateError::WrongDevice {
                device: "pci host bridge",
                found: other.kind(),
            }),
        }
    }
}
