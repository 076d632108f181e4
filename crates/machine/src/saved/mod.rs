//! A machine's saved state: what it is, and how it is written as a stream of
//! bytes, to a file or to another host.
//!
//! ```text
//!        0        8         12
//!        ┌────────┬─────────┬──────────┬──────────┬─────┐
//!        │ magic  │ version │ sections, one behind the   │
//!        │        │         │ other                      │
//!        └────────┴─────────┴──────────┴──────────┴─────┘
//! section: kind (4) · CRC-32 (4) · length (8) · payload
//!
//! description ─► memory … memory ─► state ─► end
//! ```
//!
//! All numbers are little-endian; the CRC is of kind, length and payload.
//!
//! * The *description* ([`Description`], JSON) says what the machine is made
//!   of. It comes first: a reader knows from it what to make, or why not.
//! * *Memory* is a guest-physical address and whole pages, ascending. Pages
//!   of zeros are left out.
//! * The *state* ([`MachineState`], JSON): interrupt controllers and time,
//!   vCPUs, devices. It comes after memory, so that memory can be sent while
//!   the guest runs.
//! * The *end* counts the sections before it. A stream without one was not
//!   finished, and is refused.
//!
//! What a disk contains is not part of it. A reader believes nothing: every
//! length has a limit, memory grows only as bytes arrive, and what the parts
//! say is checked by those whose state it is.

mod fit;
mod memory;
mod sections;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};

use croft_devices::virtio::fs::ShareHandle;
use croft_devices::{BusState, StateError};
use croft_engine::{CpuProfile, CpuState, PartitionState};
use croft_memory::GuestRam;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::virtio::{Disks, Nics};
pub(crate) use fit::fit;
use sections::{Kind, Reader, Writer};

/// Version of [`Description`] that this build writes.
const DESCRIPTION_VERSION: u32 = 1;

/// Why a saved state cannot be used.
#[derive(Debug, Error)]
pub enum SavedError {
    /// It does not begin as one does.
    #[error("it is not a machine's state")]
    NotSaved,
    /// A later Croft wrote it.
    #[error(
        "it has version {found}, this Croft understands up to {known}; restore it with a newer Croft"
    )]
    Version {
        /// Version found.
        found: u32,
        /// Latest version understood.
        known: u32,
    },
    /// It ends before its end.
    #[error("it is cut off: the save was not finished or the file was shortened; use another")]
    Truncated,
    /// A checksum or value is wrong.
    #[error("it is damaged: {0}; use another")]
    Damaged(String),
    /// The host could not read it.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    /// A device refuses its state.
    #[error(transparent)]
    Device(#[from] StateError),
    /// The machine to restore it to is another one.
    #[error("the machine had {had}, this one has {has}; restore it to a machine like it was")]
    Differs {
        /// What the saved machine had.
        had: String,
        /// What the machine has that was to become it.
        has: String,
    },
}

/// What a saved machine was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Version of this type.
    pub version: u32,
    /// Version of the Croft that saved it, for people.
    pub croft: String,
    /// The processor it was promised. The machine takes it along.
    pub profile: CpuProfile,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// It had the devices that outside test suites need.
    pub test_devices: bool,
    /// Its disks.
    pub disks: Vec<SavedDisk>,
    /// Its shares.
    #[serde(default)]
    pub shares: Vec<SavedShare>,
    /// It had a socket device.
    #[serde(default)]
    pub vsock: bool,
    /// Names of its virtio console's ports.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Its NICs.
    #[serde(default)]
    pub nics: Vec<SavedNic>,
}

/// A NIC of a saved machine. Its name and what is behind it may be others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNic {
    /// Its place, counted from 0.
    pub index: u8,
    /// Pairs of queues that it has.
    pub queues: u16,
}

impl SavedNic {
    /// Those of a machine.
    pub(crate) fn all(nics: &Nics) -> Vec<Self> {
        let nics = nics.iter().map(|(index, nic)| SavedNic {
            index: *index,
            queues: nic.pairs(),
        });
        nics.collect()
    }
}

/// A disk of a saved machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisk {
    /// Its place, counted from 0; those of older files had each the next.
    #[serde(default)]
    pub index: Option<u8>,
    /// Its size.
    pub bytes: u64,
    /// The guest could not write to it.
    pub read_only: bool,
}

/// A share of a saved machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedShare {
    /// By which the guest mounts it.
    pub tag: String,
    /// The guest could not change it.
    pub read_only: bool,
}

impl SavedShare {
    pub(crate) fn of(share: &ShareHandle) -> Self {
        SavedShare {
            tag: share.tag().to_owned(),
            read_only: share.is_read_only(),
        }
    }
}

impl SavedDisk {
    /// Those of a machine.
    pub(crate) fn all(disks: &Disks) -> Vec<Self> {
        let disks = disks.iter().map(|(index, disk)| {
            let disk = disk.handle.disk();
            SavedDisk {
                index: Some(*index),
                bytes: disk.size(),
                read_only: disk.is_read_only(),
            }
        });
        disks.collect()
    }
}

impl Description {
    pub(crate) fn new(
        profile: CpuProfile,
        vcpus: u32,
        memory: u64,
        test_devices: bool,
        disks: Vec<SavedDisk>,
        shares: Vec<SavedShare>,
    ) -> Self {
        Description {
            version: DESCRIPTION_VERSION,
            croft: env!("CARGO_PKG_VERSION").to_owned(),
            profile,
            vcpus,
            memory,
            test_devices,
            disks,
            shares,
            vsock: false,
            ports: Vec::new(),
            nics: Vec::new(),
        }
    }

    /// With these disks.
    pub(crate) fn with_disks(self, disks: Vec<SavedDisk>) -> Self {
        Description { disks, ..self }
    }

    /// With these NICs.
    pub(crate) fn with_nics(self, nics: Vec<SavedNic>) -> Self {
        Description { nics, ..self }
    }

    /// With these ports of a virtio console.
    pub(crate) fn with_ports(self, ports: Vec<String>) -> Self {
        Description { ports, ..self }
    }

    /// With a socket device, or without.
    pub(crate) fn with_vsock(self, vsock: bool) -> Self {
        Description { vsock, ..self }
    }

    /// Refuses a machine that is not made of the same.
    pub(crate) fn compare(&self, now: &Description) -> Result<(), SavedError> {
        let differs = |had: String, has: String| Err(SavedError::Differs { had, has });
        if self.vcpus != now.vcpus {
            let text = |count: u32| format!("{count} processors");
            return differs(text(self.vcpus), text(now.vcpus));
        }
        if self.memory != now.memory {
            let text = |bytes: u64| format!("{bytes} bytes of memory");
            return differs(text(self.memory), text(now.memory));
        }
        if self.test_devices != now.test_devices {
            let text = |there: bool| {
                if there {
                    "test devices"
                } else {
                    "no test devices"
                }
            };
            return differs(
                text(self.test_devices).to_owned(),
                text(now.test_devices).to_owned(),
            );
        }
        if self.ports != now.ports {
            let text = |ports: &[String]| format!("console ports {ports:?}");
            return differs(text(&self.ports), text(&now.ports));
        }
        if self.vsock != now.vsock {
            let text = |there: bool| if there { "vsock" } else { "no vsock" };
            return differs(text(self.vsock).to_owned(), text(now.vsock).to_owned());
        }
        if self.nics != now.nics {
            let text = |nics: &[SavedNic]| {
                let nic = |nic: &SavedNic| format!("{} in place {}", nic.queues, nic.index);
                let queues: Vec<_> = nics.iter().map(nic).collect();
                format!("{} NICs with [{}] queues", nics.len(), queues.join(", "))
            };
            return differs(text(&self.nics), text(&now.nics));
        }
        if self.disks.len() != now.disks.len() {
            let text = |count: usize| format!("{count} disks");
            return differs(text(self.disks.len()), text(now.disks.len()));
        }
        for (order, (had, has)) in (0u8..).zip(self.disks.iter().zip(&now.disks)) {
            let placed = |disk: &SavedDisk| SavedDisk {
                index: disk.index.or(Some(order)),
                ..*disk
            };
            let (had, has) = (placed(had), placed(has));
            if had != has {
                let text = |disk: &SavedDisk| {
                    let way = if disk.read_only { ", read-only," } else { "" };
                    let index = disk.index.unwrap_or(order);
                    format!("{} bytes{way} as disk{index}", disk.bytes)
                };
                return differs(text(&had), text(&has));
            }
        }
        if self.shares != now.shares {
            let text = |shares: &[SavedShare]| {
                let share = |share: &SavedShare| {
                    let way = if share.read_only { ",readonly" } else { "" };
                    format!("'{}{way}'", share.tag.escape_debug())
                };
                let shares: Vec<_> = shares.iter().map(share).collect();
                format!("shares [{}]", shares.join(", "))
            };
            return differs(text(&self.shares), text(&now.shares));
        }
        Ok(())
    }
}

/// Everything of a machine that is neither memory nor disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineState {
    /// Interrupt controllers and time.
    pub partition: PartitionState,
    /// The vCPUs, in order.
    pub vcpus: Vec<CpuState>,
    /// The devices.
    pub devices: BusState,
}

/// Writes a machine that stands still. The stream is good once this has
/// returned.
pub(crate) fn write(
    out: &mut dyn Write,
    description: &Description,
    ram: &GuestRam,
    state: &MachineState,
) -> io::Result<()> {
    let mut writer = Writer::new(out)?;
    writer.json(Kind::Description, description)?;
    memory::write(&mut writer, ram)?;
    writer.json(Kind::State, state)?;
    writer.end()
}

/// A saved machine whose description was read; the rest follows.
#[derive(Debug)]
pub struct SavedMachine<R> {
    reader: Reader<R>,
    description: Description,
}

impl<R: Read> SavedMachine<R> {
    /// Reads the description, or says why this is no state of a machine.
    pub fn open(source: R) -> Result<Self, SavedError> {
        let mut reader = Reader::new(source)?;
        if reader.next()? != Kind::Description {
            return Err(SavedError::Damaged("no description comes first".to_owned()));
        }
        let description: Description = reader.json()?;
        if description.version > DESCRIPTION_VERSION {
            return Err(SavedError::Version {
                found: description.version,
                known: DESCRIPTION_VERSION,
            });
        }
        Ok(SavedMachine {
            reader,
            description,
        })
    }

    /// What the machine was.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Reads the rest: memory into `ram`, which has nothing but zeros, and
    /// the state, of which only the form is known to be good.
    pub fn read(mut self, ram: &GuestRam) -> Result<MachineState, SavedError> {
        let mut loaded = memory::Loader::new(ram);
        let state: MachineState = loop {
            match self.reader.next()? {
                Kind::Memory => loaded.load(self.reader.payload())?,
                Kind::State => break self.reader.json()?,
                Kind::Description | Kind::End => {
                    let what = "its parts are in another order".to_owned();
                    return Err(SavedError::Damaged(what));
                }
            }
        };
        self.reader.end()?;
        if state.partition.tsc_khz != self.description.profile.tsc_khz {
            let what = "it describes another TSC than it has".to_owned();
            return Err(SavedError::Damaged(what));
        }
        let vcpus = self.description.vcpus;
        if state.vcpus.len() as u64 != u64::from(vcpus) {
            return Err(SavedError::Damaged(format!(
                "it has {} vCPUs and describes {vcpus}",
                state.vcpus.len()
            )));
        }
        Ok(state)
    }
}
