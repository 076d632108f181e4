//! The virtio devices of a machine: which slot each has, and how they reach
//! the partition.
//!
//! | slot | device                                     |
//! |------|--------------------------------------------|
//! | 1    | entropy                                    |
//! | 2–17 | disks, by their places                     |
//! | 18–24 | NICs, by their places                     |
//! | 25–28 | shares                                    |
//! | 29   | sockets (vsock)                            |
//! | 30   | terminal and byte streams (console)        |
//! | 31   | balloon                                    |

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use croft_devices::pci::PciHandle;
use croft_devices::virtio::balloon::{BalloonHandle, VirtioBalloon};
use croft_devices::virtio::blk::{BlkHandle, BlkOptions, FaultSink, Limits, OnError, VirtioBlk};
use croft_devices::virtio::console::{
    ConsoleHandle, NAME_MAX, PORTS_MAX, PortConfig, VirtioConsole,
};
use croft_devices::virtio::fs::{ShareHandle, VirtioFs};
use croft_devices::virtio::net::{NicHandle, NicHost, NicOptions, VirtioNet};
use croft_devices::virtio::rng::VirtioRng;
use croft_devices::virtio::vsock::{VirtioVsock, VsockHandle, VsockHost};
use croft_devices::virtio::{DoorbellRegistry, LogSink, VirtioDevice, VirtioHost, VirtioPci};
use croft_devices::{Device, SharedLine, platform};
use croft_disk::{DiskError, Layer, OpenOptions};
use croft_engine::{Doorbell, DoorbellAddress};
use croft_memory::GuestRam;
use vmm_sys_util::eventfd::EventFd;

use crate::chipset::{Chipset, PartitionSide};
use crate::console::ConsoleBackend;
use crate::error::MachineError;
use crate::events::{Event, Events};

/// Slot of the entropy device.
const RNG_SLOT: u8 = 1;
/// First slot of a disk.
const DISK_SLOT: u8 = 2;
/// First slot of a NIC.
const NIC_SLOT: u8 = 18;
/// Most NICs of a machine.
pub const NICS_MAX: usize = 7;
/// First slot of a share.
const SHARE_SLOT: u8 = 25;
/// Most shares of a machine.
pub const SHARES_MAX: usize = 4;
/// Slot of the balloon. Devices that a machine has one of are at the end, so
/// that disks have neighbouring slots.
const BALLOON_SLOT: u8 = 31;
/// Slot of the console.
const CONSOLE_SLOT: u8 = 30;
/// Slot of the socket device.
const VSOCK_SLOT: u8 = 29;
/// Most disks of a machine.
pub const DISKS_MAX: usize = 16;
/// Queues of a disk at most: each in use has a thread.
const DISK_QUEUES_MAX: u32 = 4;

/// A disk that a machine is made with.
#[derive(Debug)]
pub struct DiskConfig {
    /// Its file and those below it, locked by whoever opened them.
    pub layers: Vec<Layer>,
    /// As the user wrote it.
    pub name: String,
    /// Its place, counted from 0; the first that is free without.
    pub index: Option<u8>,
    /// How it is opened.
    pub options: OpenOptions,
    /// A write is flushed before the guest is told that it is done.
    pub write_through: bool,
    /// How much it may do.
    pub limits: Limits,
    /// What is done when the host fails.
    pub on_error: OnError,
}

impl DiskConfig {
    /// A disk of these layers, by default.
    pub fn new(name: impl Into<String>, layers: Vec<Layer>) -> Self {
        DiskConfig {
            layers,
            name: name.into(),
            index: None,
            options: OpenOptions::default(),
            write_through: false,
            limits: Limits::default(),
            on_error: OnError::default(),
        }
    }
}

/// A disk in its place.
pub struct PluggedDisk {
    /// For working on it.
    pub handle: BlkHandle,
    /// As the user wrote it.
    pub file: String,
    /// The machine boots from it.
    pub boots: bool,
}

/// Disks by their places.
pub type Disks = BTreeMap<u8, PluggedDisk>;

/// The name of the disk in this place, on the bus and for people.
pub fn disk_name(index: u8) -> String {
    format!("disk{index}")
}

/// Its slot.
pub fn disk_slot(index: u8) -> u8 {
    DISK_SLOT + index
}

/// NICs by their places.
pub type Nics = BTreeMap<u8, NicHandle>;

/// The place that a NIC's name tells: `net2` is in place 2.
pub fn nic_place(name: &str) -> Option<u8> {
    (0..NICS_MAX as u8).find(|index| format!("net{index}") == name)
}

/// The name on the bus of the NIC in this place.
pub fn nic_device(index: u8) -> String {
    format!("nic{index}")
}

/// Its slot.
pub fn nic_slot(index: u8) -> u8 {
    NIC_SLOT + index
}

/// Tells the machine's owner of a disk that failed.
struct Faults {
    /// The disk's name on the bus, and as the user wrote it.
    name: String,
    file: String,
    events: Events,
}

impl FaultSink for Faults {
    fn disk_failed(&self, error: &DiskError) {
        // A machine that has ended needs no stop.
        let _ = self.events.send(Event::DiskFailed {
            disk: self.name.clone(),
            message: format!("{}: {error}", self.file),
        });
    }
}

/// Tells the operator of a NIC that leads nowhere any more.
struct LostNics(Arc<dyn ConsoleBackend>);

impl NicHost for LostNics {
    fn lost(&self, name: &str) {
        self.0.nic_lost(name);
    }
}

/// A directory of the host's that a machine is made with.
#[derive(Debug)]
pub struct ShareConfig {
    /// The directory, open as a place (`O_PATH`) or for reading.
    pub directory: OwnedFd,
    /// By which the guest mounts it.
    pub tag: String,
    /// Refuse every change.
    pub read_only: bool,
}

/// The socket device that a machine is made with.
#[derive(Clone)]
pub struct VsockConfig {
    /// The guest's context id.
    pub cid: u32,
    /// Makes the connections that the guest asks for.
    pub host: Arc<dyn VsockHost>,
}

impl fmt::Debug for VsockConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockConfig")
            .field("cid", &self.cid)
            .finish_non_exhaustive()
    }
}

impl DoorbellRegistry for PartitionSide {
    fn add(&self, address: u64) -> Option<EventFd> {
        // Without one the bus hears of the write, which is slower.
        self.0.doorbell(doorbell(address)).ok()
    }

    fn remove(&self, address: u64) {
        self.0.remove_doorbell(doorbell(address));
    }
}

fn doorbell(address: u64) -> Doorbell {
    Doorbell {
        address: DoorbellAddress::Memory(address),
        len: 0,
        value: None,
    }
}

/// Hands lines to the operator.
struct OperatorLog(Arc<dyn ConsoleBackend>);

impl LogSink for OperatorLog {
    fn log(&self, line: &str) {
        self.0.log(line);
    }
}

/// Plugs a machine's virtio devices.
pub struct Plugger {
    pci: PciHandle,
    side: Arc<PartitionSide>,
    ram: GuestRam,
    log: Arc<dyn LogSink>,
    nics: Arc<dyn NicHost>,
    lines: Vec<SharedLine>,
    vcpus: u32,
}

impl Plugger {
    /// Into the slots of the `chipset` of a machine with so many `vcpus`,
    /// with lines for the operator to `console`.
    pub fn new(
        chipset: &Chipset,
        ram: &GuestRam,
        console: &Arc<dyn ConsoleBackend>,
        vcpus: u32,
    ) -> Self {
        let line = |n| SharedLine::new(chipset.clock.clone(), platform::INTX_FIRST + n);
        Plugger {
            pci: chipset.pci.clone(),
            side: chipset.clock.clone(),
            ram: ram.clone(),
            log: Arc::new(OperatorLog(console.clone())),
            nics: Arc::new(LostNics(console.clone())),
            lines: (0..platform::INTX_LINES).map(line).collect(),
            vcpus,
        }
    }

    /// The entropy device.
    pub fn plug_rng(&self) -> Result<(), MachineError> {
        self.add(RNG_SLOT, "rng0", VirtioRng)
    }

    /// `disks`, each in its place; one that has none gets the first that is
    /// free. If the machine `boots` from a disk, that is the first. Those that
    /// stop the machine say so to `events`.
    pub fn plug_disks(
        &self,
        disks: Vec<DiskConfig>,
        boots: bool,
        events: &Events,
    ) -> Result<Disks, MachineError> {
        if disks.len() > DISKS_MAX {
            return Err(MachineError::Disks(disks.len()));
        }
        let mut taken = 0u32;
        for index in disks.iter().filter_map(|disk| disk.index) {
            if usize::from(index) >= DISKS_MAX {
                return Err(MachineError::DiskPlace(index));
            }
            if taken >> index & 1 != 0 {
                return Err(MachineError::DiskTwice(index));
            }
            taken |= 1 << index;
        }
        let mut plugged = Disks::new();
        for (order, config) in disks.into_iter().enumerate() {
            // There are as many places as disks can be.
            let index = config.index.unwrap_or(taken.trailing_ones() as u8);
            taken |= 1 << index;
            let (device, mut disk) = self.disk(config, index, events)?;
            disk.boots = boots && order == 0;
            let (slot, name) = (disk_slot(index), disk_name(index));
            if disk.boots {
                self.add(slot, &name, device)?;
            } else {
                let function = self.function(slot, &name, device)?;
                self.pci.plug_removable(slot, &name, function)?;
            }
            plugged.insert(index, disk);
        }
        Ok(plugged)
    }

    /// Opens a disk for a place.
    pub fn disk(
        &self,
        config: DiskConfig,
        index: u8,
        events: &Events,
    ) -> Result<(VirtioBlk, PluggedDisk), MachineError> {
        let name = disk_name(index);
        let disk = croft_disk::open(config.layers, config.options).map_err(|source| {
            MachineError::Disk {
                name: config.name.clone(),
                source,
            }
        })?;
        let options = BlkOptions {
            queues: self.vcpus.min(DISK_QUEUES_MAX) as u16,
            serial: name.clone(),
            name: name.clone(),
            write_through: config.write_through,
            limits: config.limits,
            on_error: config.on_error,
        };
        let faults = Arc::new(Faults {
            name,
            file: config.name.clone(),
            events: events.clone(),
        });
        let device = VirtioBlk::new(disk, options, self.log.clone(), faults);
        let plugged = PluggedDisk {
            handle: device.handle(),
            file: config.name,
            boots: false,
        };
        Ok((device, plugged))
    }

    /// A device for a guest that may run already, and then hears of it.
    pub fn hot_add(
        &self,
        slot: u8,
        name: &str,
        device: impl VirtioDevice + 'static,
        running: bool,
    ) -> Result<(), MachineError> {
        let function = self.function(slot, name, device)?;
        self.pci.hot_plug(slot, name, function, running)?;
        Ok(())
    }

    /// NICs, each in its place; one whose name tells none gets the first that
    /// is free.
    pub fn plug_nics(&self, nics: Vec<NicOptions>) -> Result<Nics, MachineError> {
        if nics.len() > NICS_MAX {
            return Err(MachineError::Nics(nics.len()));
        }
        let named = nics.iter().filter_map(|nic| nic_place(&nic.name));
        let mut taken = named.fold(0u8, |taken, index| taken | 1 << index);
        let mut plugged = Nics::new();
        for options in nics {
            if plugged.values().any(|nic| nic.name() == options.name) {
                return Err(MachineError::NicTwice(options.name));
            }
            // There are as many places as NICs can be.
            let index = nic_place(&options.name).unwrap_or(taken.trailing_ones() as u8);
            taken |= 1 << index;
            let (device, nic) = self.nic(options);
            let (slot, name) = (nic_slot(index), nic_device(index));
            let function = self.function(slot, &name, device)?;
            self.pci.plug_removable(slot, &name, function)?;
            plugged.insert(index, nic);
        }
        Ok(plugged)
    }

    /// A NIC for a place.
    pub fn nic(&self, options: NicOptions) -> (VirtioNet, NicHandle) {
        let device = VirtioNet::new(options, self.nics.clone());
        let handle = device.handle();
        (device, handle)
    }

    /// The console, if it has ports. Returns the operator's side of it.
    pub fn plug_console(
        &self,
        ports: Vec<PortConfig>,
    ) -> Result<Option<ConsoleHandle>, MachineError> {
        if ports.is_empty() {
            return Ok(None);
        }
        if ports.len() > PORTS_MAX {
            return Err(MachineError::Ports(ports.len()));
        }
        if let Some(port) = ports.iter().find(|port| port.name.len() > NAME_MAX) {
            return Err(MachineError::PortName(port.name.clone()));
        }
        let device = VirtioConsole::new(ports);
        let handle = device.handle();
        self.add(CONSOLE_SLOT, "console0", device)?;
        Ok(Some(handle))
    }

    /// The socket device. Returns the host's side of it.
    pub fn plug_vsock(&self, config: VsockConfig) -> Result<VsockHandle, MachineError> {
        let device = VirtioVsock::new(config.cid, config.host);
        let handle = device.handle();
        self.add(VSOCK_SLOT, "vsock0", device)?;
        Ok(handle)
    }

    /// The balloon.
    pub fn plug_balloon(&self) -> Result<BalloonHandle, MachineError> {
        let name = "balloon0";
        let device = VirtioBalloon::new(self.ram.size(), name, self.log.clone());
        let handle = device.handle();
        self.add(BALLOON_SLOT, name, device)?;
        Ok(handle)
    }

    /// Directories of the host's.
    pub fn plug_shares(&self, shares: Vec<ShareConfig>) -> Result<Vec<ShareHandle>, MachineError> {
        if shares.len() > SHARES_MAX {
            return Err(MachineError::Shares(shares.len()));
        }
        let count = shares.len();
        let mut plugged: Vec<ShareHandle> = Vec::with_capacity(count);
        for (index, config) in (0u8..).zip(shares) {
            if plugged.iter().any(|share| share.tag() == config.tag) {
                return Err(MachineError::ShareTwice(config.tag));
            }
            let device = VirtioFs::new(config.directory, &config.tag, config.read_only, count)?;
            plugged.push(device.handle());
            self.add(SHARE_SLOT + index, &format!("share{index}"), device)?;
        }
        Ok(plugged)
    }

    fn add(
        &self,
        slot: u8,
        name: &str,
        device: impl VirtioDevice + 'static,
    ) -> Result<(), MachineError> {
        let function = self.function(slot, name, device)?;
        self.pci.plug(slot, name, function)?;
        Ok(())
    }

    fn function(
        &self,
        slot: u8,
        name: &str,
        device: impl VirtioDevice + 'static,
    ) -> Result<Box<dyn Device>, MachineError> {
        let line = platform::intx_gsi(slot, 0) - platform::INTX_FIRST;
        let host = VirtioHost {
            name: name.to_owned(),
            ram: self.ram.clone(),
            interrupts: self.side.clone(),
            line: self.lines.get(line as usize).map(SharedLine::input),
            doorbells: self.side.clone(),
            log: self.log.clone(),
        };
        let failed = |source: io::Error| MachineError::Device {
            name: name.to_owned(),
            source,
        };
        let function = VirtioPci::new(device, host).map_err(failed)?;
        Ok(Box::new(function))
    }
}
