//! Devices that come and go while the machine exists.
//!
//! What the place of a disk or NIC goes through:
//!
//! ```text
//!      attach: opened, plugged            detach
//! free ───────────────────────► there ───────────────► leaving ──┐ detach, again:
//!  ▲                            │   │                  │  │  ▲   │ the guest is
//!  │     the guest ejects it    │   │ detach           │  │  └───┘ asked again
//!  ├────────────────────────────┘   │ with force       │  │
//!  │     it ejects it, reset        │                  │  │
//!  ├────────────────────────────────│──────────────────┘  │ detach with force
//!  │     reset                      ▼                     │
//!  └───────────────────────────── pulled ◄────────────────┘
//! ```
//!
//! However a device leaves, the owner takes it apart: its threads have ended,
//! what was written to it is flushed and its files are closed (which frees
//! their locks) when [`ConsoleBackend::detached`] is called. A vCPU's thread,
//! on which the guest ejects, does none of that.
//!
//! * A guest that does not answer (no ACPI, or it crashed) leaves the device
//!   *leaving* for as long as it likes; a reset then completes it.
//! * A *pulled* place is not given to another device before the next reset,
//!   unless it is named: the guest may still have a driver bound to what was
//!   there, and would not look for something new.
//! * In a machine that is paused devices are attached at once and found by
//!   the guest when it goes on; what it is asked to eject it ejects then.
//! * What a machine boots from stays.
//!
//! [`ConsoleBackend::detached`]: crate::ConsoleBackend::detached

#[cfg(test)]
mod tests;

use std::sync::Arc;

use croft_devices::bus::DetachedDevice;
use croft_devices::pci::PciError;
use croft_devices::virtio::net::NicOptions;
use thiserror::Error;

use crate::config::Ended;
use crate::error::MachineError;
use crate::machine::Machine;
use crate::sync::{Shared, lock};
use crate::virtio::{
    DISKS_MAX, DiskConfig, Disks, NICS_MAX, Nics, disk_name, disk_slot, nic_device, nic_place,
    nic_slot,
};

/// Why a device was not attached. Nothing of it is left.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The machine has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// No place is left.
    #[error("all {most} places for {what} are taken; detach one first")]
    Full {
        /// What was to be attached, in the plural.
        what: &'static str,
        /// How many there can be.
        most: usize,
    },
    /// A place that was named is not free.
    #[error("there is a {0} already; detach it first, or leave the choice of a place to Croft")]
    Taken(String),
    /// Something about it is wrong, or the host failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Why a device stays where it is.
#[derive(Debug, Error)]
pub enum DetachError {
    /// The machine has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// There is none of this name.
    #[error("there is no device '{}' that could be detached; there are: {have}", name.escape_debug())]
    None {
        /// What was asked for.
        name: String,
        /// What there is.
        have: String,
    },
    /// A reset would have nothing to boot from.
    #[error("the machine boots from {0}, which stays")]
    Boots(String),
    /// The slot says no.
    #[error(transparent)]
    Pci(#[from] PciError),
}

/// What is in the places of a machine.
#[derive(Default)]
pub struct Places {
    /// By their place, counted from 0.
    pub disks: Disks,
    /// The same; their host's side is for any thread.
    pub nics: Arc<Shared<Nics>>,
    /// Slots that were pulled since the last reset.
    pulled: u32,
}

impl Places {
    /// With what the machine has from the start.
    pub fn new(disks: Disks, nics: Nics) -> Self {
        Places {
            disks,
            nics: Arc::new(Shared::new(nics)),
            pulled: 0,
        }
    }

    /// The machine was reset: its guest knows of nothing any more.
    pub fn reset(&mut self) {
        self.pulled = 0;
    }

    /// Where a disk goes that may have asked for a place.
    fn for_disk(&self, wanted: Option<u8>) -> Result<u8, AttachError> {
        let taken = |index: &u8| self.disks.contains_key(index);
        if let Some(index) = wanted {
            if usize::from(index) >= DISKS_MAX {
                return Err(MachineError::DiskPlace(index).into());
            }
            if taken(&index) {
                return Err(AttachError::Taken(disk_name(index)));
            }
            return Ok(index);
        }
        let free = |index: &u8| !taken(index) && self.pulled >> disk_slot(*index) & 1 == 0;
        let mut all = 0..DISKS_MAX as u8;
        all.find(free).ok_or(AttachError::Full {
            what: "disks",
            most: DISKS_MAX,
        })
    }

    /// Where a NIC of this name goes.
    fn for_nic(&self, name: &str) -> Result<u8, AttachError> {
        let nics = lock(&self.nics);
        if nics.values().any(|nic| nic.name() == name) {
            return Err(AttachError::Taken(name.to_owned()));
        }
        if let Some(index) = nic_place(name) {
            return match nics.get(&index) {
                None => Ok(index),
                Some(other) => Err(AttachError::Taken(other.name().to_owned())),
            };
        }
        let free =
            |index: &u8| !nics.contains_key(index) && self.pulled >> nic_slot(*index) & 1 == 0;
        let mut all = 0..NICS_MAX as u8;
        all.find(free).ok_or(AttachError::Full {
            what: "NICs",
            most: NICS_MAX,
        })
    }

    /// The slot of a device.
    fn slot(&self, name: &str) -> Result<u8, DetachError> {
        let disk = self
            .disks
            .iter()
            .find(|(index, _)| disk_name(**index) == name);
        let nics = lock(&self.nics);
        let nic = nics.iter().find(|(_, nic)| nic.name() == name);
        if let Some((index, _)) = nic {
            return Ok(nic_slot(*index));
        }
        drop(nics);
        match disk {
            Some((_, disk)) if disk.boots => Err(DetachError::Boots(name.to_owned())),
            Some((index, _)) => Ok(disk_slot(*index)),
            None => Err(DetachError::None {
                name: name.to_owned(),
                have: self.names(),
            }),
        }
    }

    /// Whether these are the names of all that is there.
    pub fn are(&self, names: &[String]) -> bool {
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        let has = self.disks.keys().map(|index| disk_name(*index));
        let mut has: Vec<String> = has.collect();
        has.extend(lock(&self.nics).values().map(|nic| nic.name().to_owned()));
        has.sort_unstable();
        has == names
    }

    /// All that could be detached, for messages.
    fn names(&self) -> String {
        let disks = self.disks.iter().filter(|(_, disk)| !disk.boots);
        let mut names: Vec<String> = disks.map(|(index, _)| disk_name(*index)).collect();
        names.extend(lock(&self.nics).values().map(|nic| nic.name().to_owned()));
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    }
}

/// Done by the owner, one after the other.
impl Machine {
    /// Opens a disk and plugs it in; it serves at once if the devices are
    /// `running`. Returns its place.
    pub(crate) fn attach_disk(
        &mut self,
        config: DiskConfig,
        running: bool,
    ) -> Result<u8, AttachError> {
        let index = self.places.for_disk(config.index)?;
        let (device, disk) = self.plugger.disk(config, index, &self.events)?;
        let name = disk_name(index);
        self.plugger
            .hot_add(disk_slot(index), &name, device, running)?;
        self.places.disks.insert(index, disk);
        self.console.attached(&name);
        Ok(index)
    }

    /// Plugs a NIC in, likewise.
    pub(crate) fn attach_nic(
        &mut self,
        options: NicOptions,
        running: bool,
    ) -> Result<(), AttachError> {
        let index = self.places.for_nic(&options.name)?;
        let name = options.name.clone();
        let (device, nic) = self.plugger.nic(options);
        self.plugger
            .hot_add(nic_slot(index), &nic_device(index), device, running)?;
        lock(&self.places.nics).insert(index, nic);
        self.console.attached(&name);
        Ok(())
    }

    /// Asks the guest to release a device, or takes it away with `force`.
    pub(crate) fn detach(&mut self, name: &str, force: bool) -> Result<(), DetachError> {
        let slot = self.places.slot(name)?;
        if !force {
            return Ok(self.chipset.pci.request_unplug(slot)?);
        }
        let device = self.chipset.pci.pull(slot)?;
        self.places.pulled |= 1 << slot;
        self.detached(device);
        Ok(())
    }

    /// Takes a device apart that is off the bus, and tells of it.
    pub(crate) fn detached(&mut self, device: DetachedDevice) {
        let name = device.name().to_owned();
        let named = |index: &u8| disk_name(*index) == name;
        let disk = self.places.disks.keys().copied().find(named);
        let disk = disk.and_then(|index| self.places.disks.remove(&index));
        let mut nics = lock(&self.places.nics);
        let nic = nics
            .keys()
            .copied()
            .find(|index| nic_device(*index) == name);
        let nic = nic.and_then(|index| nics.remove(&index));
        drop(nics);
        device.dismantle();
        if let Some(disk) = disk
            && let Err(error) = disk.handle.disk().flush()
        {
            // It is gone nevertheless; somebody should look at the file.
            self.console.log(&format!(
                "{name} ({}): what was written to it last may be lost: {error}",
                disk.file
            ));
        }
        match nic {
            Some(nic) => {
                // Whoever still holds it holds no descriptor.
                nic.set_backend(None);
                self.console.detached(nic.name());
            }
            None => self.console.detached(&name),
        }
    }
}
