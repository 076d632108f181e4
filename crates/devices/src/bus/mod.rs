//! The bus: which device answers where.
//!
//! The map of addresses is immutable once published; a change (a device added
//! or removed, a BAR moved) publishes a new one. An access therefore finds its
//! device without a lock, then takes that device's own.
//!
//! Lock order: the PCI host bridge, the map's writer lock, any other device.

mod map;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use thiserror::Error;

use crate::device::Device;
use crate::lock;
use crate::pci::{BarRoute, BarSpace};
use crate::saved::{BusState, NamedState, StateError, check_version};
use crate::timer::Alarm;
use map::{Entry, Ranges};

/// Version of [`BusState`].
const VERSION: u32 = 1;

/// A device on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(u64);

/// Why a device was not added.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BusError {
    /// Two devices of one name.
    #[error("there is a device '{0}' already; give the other one another name")]
    NameTaken(String),
    /// Two devices at one place.
    #[error(
        "device '{name}' and device '{other}' both claim {space} {first:#x}–{last:#x}; move one"
    )]
    Overlap {
        /// The device that was to be added.
        name: String,
        /// The one that is there.
        other: String,
        /// "ports" or "memory".
        space: &'static str,
        /// Start of the claimed range.
        first: u64,
        /// Its end.
        last: u64,
    },
    /// A range that ends before it starts.
    #[error("device '{name}' claims an empty range of {space} at {first:#x}")]
    EmptyRange {
        /// The device.
        name: String,
        /// "ports" or "memory".
        space: &'static str,
        /// Start of the claimed range.
        first: u64,
    },
}

/// How many accesses no device answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unclaimed {
    /// On ports.
    pub ports: u64,
    /// In memory.
    pub mmio: u64,
}

/// A device in its place.
struct Slot {
    id: DeviceId,
    name: String,
    alarm: Option<Alarm>,
    is_pci: bool,
    /// None once it was taken apart.
    device: Mutex<Option<Box<dyn Device>>>,
}

impl Slot {
    /// Uses the device, while there is one.
    fn with<R>(&self, f: impl FnOnce(&mut dyn Device) -> R) -> Option<R> {
        lock(&self.device).as_mut().map(|device| f(device.as_mut()))
    }
}

/// What is where; replaced as a whole.
#[derive(Clone, Default)]
struct Map {
    slots: Vec<Arc<Slot>>,
    ports: Ranges,
    mmio: Ranges,
}

/// A device that was removed from its bus. A vCPU that had found it before
/// may still finish one access, and may be the last to hold it: whoever must
/// not leave its end to a vCPU's thread calls
/// [`dismantle`](DetachedDevice::dismantle).
pub struct DetachedDevice(Arc<Slot>);

impl DetachedDevice {
    /// The name it was added by.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Takes the device apart, here and now: its threads have ended and what
    /// it alone held is closed when this returns.
    pub fn dismantle(self) {
        let device = lock(&self.0.device).take();
        // Without the lock: its threads may take a while to end.
        drop(device);
    }
}

impl fmt::Debug for DetachedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DetachedDevice({})", self.0.name)
    }
}

/// See the [module](self).
#[derive(Default)]
pub struct Bus {
    map: ArcSwap<Map>,
    /// Held while a new map is made; counts the devices ever added.
    writer: Mutex<u64>,
    unclaimed_ports: AtomicU64,
    unclaimed_mmio: AtomicU64,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Arc<Bus> {
        Arc::new(Bus::default())
    }

    /// Adds a device, also while vCPUs run. Names are unique; they identify
    /// devices in saved states.
    pub fn add(&self, name: &str, mut device: Box<dyn Device>) -> Result<DeviceId, BusError> {
        let ports: Vec<(u64, u64)> = device.ports().map_or_else(Vec::new, |d| {
            let ranges = d.port_ranges();
            ranges
                .iter()
                .map(|r| (u64::from(*r.start()), u64::from(*r.end())))
                .collect()
        });
        let mmio: Vec<(u64, u64)> = device.mmio().map_or_else(Vec::new, |d| {
            let ranges = d.mmio_ranges();
            ranges.iter().map(|r| (*r.start(), *r.end())).collect()
        });
        let alarm = device.timer().map(|t| t.alarm());
        let is_pci = device.pci().is_some();

        let mut writer = lock(&self.writer);
        let mut map = Map::clone(&self.map.load());
        if map.slots.iter().any(|s| s.name == name) {
            return Err(BusError::NameTaken(name.to_owned()));
        }
        let slot = Arc::new(Slot {
            id: DeviceId(*writer),
            name: name.to_owned(),
            alarm,
            is_pci,
            device: Mutex::new(Some(device)),
        });
        claim(&mut map.ports, BarSpace::Io, &slot, &ports)?;
        claim(&mut map.mmio, BarSpace::Memory, &slot, &mmio)?;
        let id = slot.id;
        map.slots.push(slot);
        self.map.store(Arc::new(map));
        *writer += 1;
        drop(writer);
        // BARs that overlap the new device's ranges give way, and its own are
        // mapped.
        self.reroute_all();
        Ok(id)
    }

    /// Takes a device off the bus, also while vCPUs run.
    pub fn remove(&self, id: DeviceId) -> Option<DetachedDevice> {
        let writer = lock(&self.writer);
        let mut map = Map::clone(&self.map.load());
        let at = map.slots.iter().position(|s| s.id == id)?;
        let slot = map.slots.remove(at);
        map.ports.remove(|e| e.slot.id == id);
        map.mmio.remove(|e| e.slot.id == id);
        self.map.store(Arc::new(map));
        drop(writer);
        // Other functions' BARs may have waited for these addresses.
        self.reroute_all();
        Some(DetachedDevice(slot))
    }

    /// The device of this name.
    pub fn find(&self, name: &str) -> Option<DeviceId> {
        let map = self.map.load();
        map.slots.iter().find(|s| s.name == name).map(|s| s.id)
    }

    /// Uses a device; `None` when it is not on this bus. The closure must not
    /// use the bus.
    pub fn with<R>(&self, id: DeviceId, f: impl FnOnce(&mut dyn Device) -> R) -> Option<R> {
        self.slot(id)?.with(f)
    }

    /// `in` of 1, 2 or 4 bytes.
    #[inline]
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xFF);
        let map = self.map.load();
        read(&map.ports, u64::from(port), data, &self.unclaimed_ports);
    }

    /// `out` of 1, 2 or 4 bytes.
    #[inline]
    pub fn port_write(&self, port: u16, data: &[u8]) {
        let map = self.map.load();
        write(&map.ports, u64::from(port), data, &self.unclaimed_ports);
    }

    /// A read of guest-physical memory that is not RAM.
    #[inline]
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xFF);
        let map = self.map.load();
        read(&map.mmio, address, data, &self.unclaimed_mmio);
    }

    /// A write to guest-physical memory that is not RAM.
    #[inline]
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        let map = self.map.load();
        write(&map.mmio, address, data, &self.unclaimed_mmio);
    }

    /// Accesses that nobody answered since the bus was made.
    pub fn unclaimed(&self) -> Unclaimed {
        Unclaimed {
            ports: self.unclaimed_ports.load(Ordering::Relaxed),
            mmio: self.unclaimed_mmio.load(Ordering::Relaxed),
        }
    }

    /// The earliest deadline of all devices, in guest nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        let map = self.map.load();
        map.slots
            .iter()
            .filter_map(|s| s.alarm.as_ref()?.deadline())
            .min()
    }

    /// Lets every device act whose deadline has passed at guest time `now`.
    pub fn expire(&self, now: u64) {
        for slot in &self.map.load().slots {
            if slot.alarm.as_ref().is_some_and(|a| a.take_due(now)) {
                slot.with(|device| {
                    if let Some(timer) = device.timer() {
                        timer.expire(now);
                    }
                });
            }
        }
    }

    /// [`Device::start`] for all, in the order in which they were added.
    pub fn start(&self) {
        self.each(|d| d.start());
    }

    /// [`Device::pause`] for all.
    pub fn pause(&self) {
        self.each(|d| d.pause());
    }

    /// [`Device::resume`] for all.
    pub fn resume(&self) {
        self.each(|d| d.resume());
    }

    /// [`Device::reset`] for all; BARs are unmapped by it.
    pub fn reset(&self) {
        self.each(|d| d.reset());
        self.reroute_all();
    }

    /// The states of all devices.
    pub fn save(&self) -> BusState {
        let map = self.map.load();
        BusState {
            version: VERSION,
            devices: map
                .slots
                .iter()
                .filter_map(|s| {
                    Some(NamedState {
                        name: s.name.clone(),
                        state: s.with(|device| device.save())?,
                    })
                })
                .collect(),
        }
    }

    /// Counterpart of [`save`](Bus::save), for a bus with the same devices.
    /// After an error some devices may have been restored and others not:
    /// reset the machine or give it up.
    pub fn restore(&self, state: &BusState) -> Result<(), StateError> {
        check_version("the bus", state.version, VERSION)?;
        let map = self.map.load_full();
        let stranger = |name: &str| StateError::OtherDevices {
            name: name.to_owned(),
        };
        for slot in &map.slots {
            if !state.devices.iter().any(|d| d.name == slot.name) {
                return Err(stranger(&slot.name));
            }
        }
        for saved in &state.devices {
            let slot = map
                .slots
                .iter()
                .find(|s| s.name == saved.name)
                .ok_or_else(|| stranger(&saved.name))?;
            slot.with(|device| device.restore(&saved.state))
                .unwrap_or_else(|| Err(stranger(&saved.name)))?;
        }
        self.reroute_all();
        Ok(())
    }

    /// Publishes what a PCI function decodes now, after its BARs or command
    /// register changed.
    pub(crate) fn reroute(&self, id: DeviceId) {
        let _writer = lock(&self.writer);
        let mut map = Map::clone(&self.map.load());
        let Some(slot) = map.slots.iter().find(|s| s.id == id).cloned() else {
            return;
        };
        route(&mut map, &slot);
        self.map.store(Arc::new(map));
        slot.with(|device| {
            if let Some(function) = device.pci() {
                function.bars_moved();
            }
        });
    }

    fn reroute_all(&self) {
        let ids: Vec<DeviceId> = {
            let map = self.map.load();
            map.slots
                .iter()
                .filter(|s| s.is_pci)
                .map(|s| s.id)
                .collect()
        };
        for id in ids {
            self.reroute(id);
        }
    }

    fn slot(&self, id: DeviceId) -> Option<Arc<Slot>> {
        self.map.load().slots.iter().find(|s| s.id == id).cloned()
    }

    fn each(&self, f: impl Fn(&mut dyn Device)) {
        for slot in &self.map.load_full().slots {
            slot.with(&f);
        }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = self.map.load();
        f.debug_list()
            .entries(map.slots.iter().map(|s| &s.name))
            .finish()
    }
}

/// Enters a new device's fixed ranges; BARs that a guest put there give way.
fn claim(
    ranges: &mut Ranges,
    space: BarSpace,
    slot: &Arc<Slot>,
    claimed: &[(u64, u64)],
) -> Result<(), BusError> {
    for &(first, last) in claimed {
        if first > last {
            return Err(BusError::EmptyRange {
                name: slot.name.clone(),
                space: space.name(),
                first,
            });
        }
        if let Some(other) = ranges.fixed_overlap(first, last) {
            return Err(BusError::Overlap {
                name: slot.name.clone(),
                other: other.slot.name.clone(),
                space: space.name(),
                first,
                last,
            });
        }
        ranges.remove(|e| e.first <= last && first <= e.last);
        ranges.insert(Entry {
            first,
            last,
            space,
            slot: slot.clone(),
            bar: None,
        });
    }
    Ok(())
}

/// Replaces a PCI function's BAR ranges by those it decodes now.
fn route(map: &mut Map, slot: &Arc<Slot>) {
    map.ports
        .remove(|e| e.slot.id == slot.id && e.bar.is_some());
    map.mmio.remove(|e| e.slot.id == slot.id && e.bar.is_some());
    let routes: Option<Vec<BarRoute>> = slot
        .with(|device| device.pci().map(|function| function.bars()))
        .flatten();
    let Some(routes) = routes else {
        return;
    };
    for route in routes {
        let last = route.size.checked_sub(1);
        let Some(last) = last.and_then(|n| route.base.checked_add(n)) else {
            continue;
        };
        let entry = Entry {
            first: route.base,
            last,
            space: route.space,
            slot: slot.clone(),
            bar: Some((route.bar, route.base)),
        };
        match route.space {
            BarSpace::Io if last > u64::from(u16::MAX) => {}
            BarSpace::Io => map.ports.insert_around(entry),
            BarSpace::Memory => map.mmio.insert_around(entry),
        }
    }
}

impl Entry {
    /// Whether an access of `len` bytes at `address` (which is inside) ends
    /// inside too.
    fn holds(&self, address: u64, len: usize) -> bool {
        self.last - address >= (len as u64).saturating_sub(1)
    }

    fn read(&self, address: u64, data: &mut [u8]) {
        self.slot.with(|device| match (self.bar, self.space) {
            (Some((bar, base)), _) => {
                if let Some(function) = device.pci() {
                    function.bar_read(bar, address - base, data);
                }
            }
            (None, BarSpace::Io) => {
                if let Some(ports) = device.ports() {
                    ports.port_read(address as u16, data);
                }
            }
            (None, BarSpace::Memory) => {
                if let Some(mmio) = device.mmio() {
                    mmio.mmio_read(address, data);
                }
            }
        });
    }

    fn write(&self, address: u64, data: &[u8]) {
        self.slot.with(|device| match (self.bar, self.space) {
            (Some((bar, base)), _) => {
                if let Some(function) = device.pci() {
                    function.bar_write(bar, address - base, data);
                }
            }
            (None, BarSpace::Io) => {
                if let Some(ports) = device.ports() {
                    ports.port_write(address as u16, data);
                }
            }
            (None, BarSpace::Memory) => {
                if let Some(mmio) = device.mmio() {
                    mmio.mmio_write(address, data);
                }
            }
        });
    }
}

/// Reads from one device, or byte by byte from whoever answers for each byte.
#[inline]
fn read(ranges: &Ranges, address: u64, data: &mut [u8], unclaimed: &AtomicU64) {
    match ranges.find(address) {
        Some(entry) if entry.holds(address, data.len()) => entry.read(address, data),
        _ => {
            let mut claimed = false;
            for (i, byte) in (0u64..).zip(data.iter_mut()) {
                if let Some((address, entry)) = ranges.find_at(address, i) {
                    claimed = true;
                    entry.read(address, std::slice::from_mut(byte));
                }
            }
            if !claimed {
                unclaimed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Counterpart of [`read`].
#[inline]
fn write(ranges: &Ranges, address: u64, data: &[u8], unclaimed: &AtomicU64) {
    match ranges.find(address) {
        Some(entry) if entry.holds(address, data.len()) => entry.write(address, data),
        _ => {
            let mut claimed = false;
            for (i, byte) in (0u64..).zip(data) {
                if let Some((address, entry)) = ranges.find_at(address, i) {
                    claimed = true;
                    entry.write(address, std::slice::from_ref(byte));
                }
            }
            if !claimed {
                unclaimed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
