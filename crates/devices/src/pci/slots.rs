//! The slots of bus 0: plugging and ejecting.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use thiserror::Error;

use crate::bus::{Bus, BusError, DetachedDevice, DeviceId};
use crate::device::Device;
use crate::lock;
use crate::platform::GPE_PCI_HOTPLUG;
use crate::pm::PmHandle;

/// Number of slots, the host bridge's own among them.
pub(super) const SLOTS: u8 = 32;

/// Why a device was not plugged or unplugged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PciError {
    /// Slots are 1–31.
    #[error("there is no PCI slot {0} for a device; slots are 1 to 31")]
    NoSuchSlot(u8),
    /// Two devices in one slot.
    #[error("PCI slot {0} is taken; choose a free one")]
    Taken(u8),
    /// Nothing to unplug.
    #[error("PCI slot {0} is empty")]
    Empty(u8),
    /// The device was plugged for good.
    #[error("the device in PCI slot {0} cannot be removed while the machine runs")]
    NotRemovable(u8),
    /// The device has no PCI side.
    #[error("device '{0}' is not a PCI function")]
    NotPci(String),
    /// The bus refused it.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The bus is gone.
    #[error("the machine is being taken down")]
    Gone,
}

/// Learns of ejected devices. Called on a vCPU's thread under the bridge's
/// lock: pass the device on to another thread, which takes it apart.
pub trait HotplugSink: Send + Sync {
    /// The guest released the device in `slot`, or the machine was reset
    /// after a request; the device is off the bus.
    fn ejected(&self, slot: u8, device: DetachedDevice);
}

/// How a device is plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ForGood,
    Removable,
    Hot,
}

pub(super) struct Slots {
    bus: Weak<Bus>,
    pm: PmHandle,
    sink: Arc<dyn HotplugSink>,
    devices: [Option<DeviceId>; SLOTS as usize],
    removable: u32,
    pub up: u32,
    pub down: u32,
}

impl Slots {
    pub fn new(bus: &Arc<Bus>, pm: PmHandle, sink: Arc<dyn HotplugSink>) -> Self {
        Slots {
            bus: Arc::downgrade(bus),
            pm,
            sink,
            devices: [None; SLOTS as usize],
            removable: 0,
            up: 0,
            down: 0,
        }
    }

    /// The function in a slot, and the bus it is on.
    pub fn function(&self, slot: u8) -> Option<(Arc<Bus>, DeviceId)> {
        let id = (*self.devices.get(usize::from(slot))?)?;
        Some((self.bus.upgrade()?, id))
    }

    pub fn occupied(&self) -> u32 {
        (0..)
            .zip(&self.devices)
            .filter(|(_, device)| device.is_some())
            .fold(0, |mask, (slot, _)| mask | 1 << slot)
    }

    pub fn removable(&self) -> u32 {
        self.removable
    }

    /// Takes the devices of all slots in `mask` that may go off the bus.
    pub fn eject(&mut self, mask: u32) {
        let mask = mask & self.removable;
        for slot in (0..SLOTS).filter(|slot| mask >> slot & 1 != 0) {
            if let Some(device) = self.take(slot) {
                self.sink.ejected(slot, device);
            }
        }
    }

    /// Empties a slot.
    fn take(&mut self, slot: u8) -> Option<DetachedDevice> {
        let (bus, id) = self.function(slot)?;
        if let Some(device) = self.devices.get_mut(usize::from(slot)) {
            *device = None;
        }
        let rest = !(1 << slot);
        self.removable &= rest;
        self.up &= rest;
        self.down &= rest;
        bus.remove(id)
    }

    /// Whether there is a device that may go.
    fn check_removable(&self, slot: u8) -> Result<(), PciError> {
        match self.devices.get(usize::from(slot)) {
            _ if slot == 0 => Err(PciError::NoSuchSlot(slot)),
            None => Err(PciError::NoSuchSlot(slot)),
            Some(None) => Err(PciError::Empty(slot)),
            Some(Some(_)) if self.removable >> slot & 1 == 0 => Err(PciError::NotRemovable(slot)),
            Some(Some(_)) => Ok(()),
        }
    }

    fn plug(
        &mut self,
        slot: u8,
        name: &str,
        mut device: Box<dyn Device>,
        way: Way,
    ) -> Result<DeviceId, PciError> {
        if device.pci().is_none() {
            return Err(PciError::NotPci(name.to_owned()));
        }
        let bus = self.bus.upgrade().ok_or(PciError::Gone)?;
        match self.devices.get(usize::from(slot)) {
            Some(None) if slot != 0 => {}
            Some(Some(_)) => return Err(PciError::Taken(slot)),
            _ => return Err(PciError::NoSuchSlot(slot)),
        }
        let id = bus.add(name, device)?;
        self.devices[usize::from(slot)] = Some(id);
        if way != Way::ForGood {
            self.removable |= 1 << slot;
        }
        if way == Way::Hot {
            self.up |= 1 << slot;
            self.pm.raise_gpe(GPE_PCI_HOTPLUG);
        }
        Ok(id)
    }
}

/// Plugs devices, from any thread but a device's own.
#[derive(Clone)]
pub struct PciHandle(pub(super) Arc<Mutex<Slots>>);

impl PciHandle {
    /// Adds `device` to the bus under `name`, in `slot` (1–31), for good.
    pub fn plug(
        &self,
        slot: u8,
        name: &str,
        device: Box<dyn Device>,
    ) -> Result<DeviceId, PciError> {
        lock(&self.0).plug(slot, name, device, Way::ForGood)
    }

    /// As [`plug`](Self::plug), before the machine runs; the device can be
    /// unplugged.
    pub fn plug_removable(
        &self,
        slot: u8,
        name: &str,
        device: Box<dyn Device>,
    ) -> Result<DeviceId, PciError> {
        lock(&self.0).plug(slot, name, device, Way::Removable)
    }

    /// As [`plug_removable`](Self::plug_removable), into a machine whose
    /// guest is told of it. The device is started if `running`; else it is
    /// with the others when the machine goes on.
    pub fn hot_plug(
        &self,
        slot: u8,
        name: &str,
        mut device: Box<dyn Device>,
        running: bool,
    ) -> Result<DeviceId, PciError> {
        if running {
            // Nothing can reach it yet; once it is plugged the guest may.
            device.start();
        }
        lock(&self.0).plug(slot, name, device, Way::Hot)
    }

    /// Asks the guest to release a slot; [`HotplugSink::ejected`] follows if
    /// it does. May be asked again.
    pub fn request_unplug(&self, slot: u8) -> Result<(), PciError> {
        let mut slots = lock(&self.0);
        slots.check_removable(slot)?;
        slots.down |= 1 << slot;
        slots.pm.raise_gpe(GPE_PCI_HOTPLUG);
        Ok(())
    }

    /// Takes a device away without asking the guest, which finds nothing
    /// where it was.
    pub fn pull(&self, slot: u8) -> Result<DetachedDevice, PciError> {
        let mut slots = lock(&self.0);
        slots.check_removable(slot)?;
        slots.take(slot).ok_or(PciError::Gone)
    }

    /// Whether the guest was asked to release a slot, and has not.
    pub fn is_asked(&self, slot: u8) -> bool {
        slot < SLOTS && lock(&self.0).down >> slot & 1 != 0
    }

    /// The lowest free slot.
    pub fn free_slot(&self) -> Option<u8> {
        let occupied = lock(&self.0).occupied();
        (1..SLOTS).find(|slot| occupied >> slot & 1 == 0)
    }
}

impl fmt::Debug for PciHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PciHandle(occupied {:#010x})", lock(&self.0).occupied())
    }
}
