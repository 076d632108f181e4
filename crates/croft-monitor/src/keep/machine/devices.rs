//! The devices of a payload that come and go, and who waits for that.
//!
//! ```text
//!        AttachDisk            Attached             Detach
//! (file) ──────────► attaching ────────► there ─────────────► leaving ──┐ Detach,
//!    ▲                   │                 │                  │    ▲    │ again
//!    │ AttachFailed      │                 │ Detached: the    │    └────┘
//!    └───────────────────┘                 │ guest's own wish │
//!    ▲                                     │ or by force      │ Detached, or the
//!    └─────────────────────────────────────┴──────────────────┘ payload's end
//! ```
//!
//! The payload alone has the files open, and their locks are its own: what it
//! closes, or what its death closes, is free.

use std::collections::{BTreeMap, VecDeque};

use croft_api::disk::{RunDisk, disk_name};
use croft_api::instance::Plugged;
use croft_api::net::NicSpec;

use crate::disks::{Disk, Held};
use crate::files::quoted;
use crate::nics::Wire;

/// Most requests waiting for the payload.
const WAITING_MAX: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub struct Devices {
    there: BTreeMap<String, Device>,
    attaching: VecDeque<Attaching>,
    detaching: Vec<Detaching>,
}

/// A device that is plugged in.
#[derive(Debug)]
struct Device {
    held: Vec<Held>,
    what: String,
    live_only: bool,
}

/// A device that the payload was given.
#[derive(Debug)]
pub struct Attaching {
    /// Who asked for it.
    pub client: u64,
    /// What it is.
    pub what: Coming,
    /// It is not there at the next start.
    pub live_only: bool,
}

/// What a payload is given.
#[derive(Debug)]
pub enum Coming {
    /// A disk, with absolute paths, and its open files.
    Disk(RunDisk, Vec<Held>),
    /// A NIC, and what it hangs on.
    Nic(Box<NicSpec>, Box<Wire>),
}

impl Coming {
    fn held(&self) -> &[Held] {
        match self {
            Coming::Disk(_, held) => held,
            Coming::Nic(..) => &[],
        }
    }

    fn describe(&self) -> String {
        match self {
            Coming::Disk(disk, _) => {
                let top = disk.layers.first();
                let name = top.map(|top| quoted(&top.path)).unwrap_or_default();
                describe_disk(name, disk.options.read_only)
            }
            Coming::Nic(nic, _) => nic.describe(),
        }
    }
}

/// What a disk is.
fn describe_disk(mut name: String, read_only: bool) -> String {
    if read_only {
        name.push_str(", read-only");
    }
    name
}

/// A device that the payload was asked to unplug.
#[derive(Debug)]
pub struct Detaching {
    /// Its name.
    pub device: String,
    /// Who waits for it.
    pub clients: Vec<u64>,
    /// It is there again at the next start.
    pub live_only: bool,
}

impl Devices {
    /// What a payload is started with.
    pub fn new(disks: &[Disk], nics: &[NicSpec]) -> Self {
        let nics = nics.iter().map(|nic| {
            let device = Device {
                held: Vec::new(),
                what: nic.describe(),
                live_only: false,
            };
            (nic.name.clone(), device)
        });
        let there = disks.iter().filter_map(|disk| {
            let start = disk.describe();
            let device = Device {
                held: disk.held().collect(),
                what: describe_disk(start.name, start.options.read_only),
                live_only: false,
            };
            Some((disk_name(start.index?), device))
        });
        Devices {
            there: there.chain(nics).collect(),
            attaching: VecDeque::new(),
            detaching: Vec::new(),
        }
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.there.keys().cloned().collect()
    }

    /// What there is to tell of them.
    pub fn status(&self) -> Vec<Plugged> {
        let all = self.there.iter().map(|(name, device)| Plugged {
            name: name.clone(),
            what: device.what.clone(),
            live_only: device.live_only,
            leaving: self.detaching.iter().any(|leaving| leaving.device == *name),
        });
        all.collect()
    }

    /// Whether one is being attached.
    pub fn is_attaching(&self) -> bool {
        !self.attaching.is_empty()
    }

    /// Whether more can be asked of the payload.
    pub fn has_room(&self) -> bool {
        let waiting = self.detaching.iter().map(|leaving| leaving.clients.len());
        self.attaching.len() + waiting.sum::<usize>() < WAITING_MAX
    }

    /// Whether a device is there.
    pub fn has(&self, name: &str) -> bool {
        self.there.contains_key(name)
    }

    /// All files that the payload has open, or is about to.
    pub fn held(&self) -> Vec<Held> {
        let there = self.there.values().flat_map(|device| &device.held);
        let coming = self.attaching.iter().flat_map(|coming| coming.what.held());
        there.chain(coming).cloned().collect()
    }

    /// A NIC that is there has changed.
    pub fn nic_changed(&mut self, nic: &NicSpec) {
        if let Some(device) = self.there.get_mut(&nic.name) {
            device.what = nic.describe();
        }
    }

    /// The payload is given something.
    pub fn attach(&mut self, client: u64, what: Coming, live_only: bool) {
        self.attaching.push_back(Attaching {
            client,
            what,
            live_only,
        });
    }

    /// It has what it was given first, under this name.
    pub fn attached(&mut self, name: &str) -> Option<Attaching> {
        let done = self.attaching.pop_front()?;
        let device = Device {
            held: done.what.held().to_vec(),
            what: done.what.describe(),
            live_only: done.live_only,
        };
        self.there.insert(name.to_owned(), device);
        Some(done)
    }

    /// It did not take what it was given first.
    pub fn attach_failed(&mut self) -> Option<Attaching> {
        self.attaching.pop_front()
    }

    /// The payload is asked to unplug a device. Who asks last says whether it
    /// is to come back.
    pub fn detach(&mut self, client: u64, device: &str, live_only: bool) {
        let mut all = self.detaching.iter_mut();
        match all.find(|leaving| leaving.device == device) {
            Some(leaving) => {
                leaving.clients.push(client);
                leaving.live_only = live_only;
            }
            None => self.detaching.push(Detaching {
                device: device.to_owned(),
                clients: vec![client],
                live_only,
            }),
        }
    }

    /// It is gone; returns who wanted that.
    pub fn detached(&mut self, device: &str) -> Option<Detaching> {
        self.there.remove(device);
        self.detach_failed(device)
    }

    /// It stays; returns who wanted it to go.
    pub fn detach_failed(&mut self, device: &str) -> Option<Detaching> {
        let mut all = self.detaching.iter();
        let at = all.position(|leaving| leaving.device == device)?;
        Some(self.detaching.remove(at))
    }

    /// The payload is gone, and with it all that was to go. Returns what was
    /// to come, and what was to go.
    pub fn end(self) -> (VecDeque<Attaching>, Vec<Detaching>) {
        (self.attaching, self.detaching)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        image
    }

    fn open(image: &tempfile::NamedTempFile, devices: &Devices) -> Result<Disk, String> {
        Disk::open(&RunDisk::new(image.path()), &devices.held())
    }

    fn coming(disk: &Disk) -> Coming {
        Coming::Disk(disk.found().unwrap(), disk.held().collect())
    }

    #[test]
    fn a_file_is_held_from_its_attaching_to_its_end() {
        let mut devices = Devices::new(&[], &[]);
        let image = image();
        let disk = open(&image, &devices).unwrap();
        devices.attach(7, coming(&disk), true);
        assert!(devices.is_attaching());
        // The payload has it.
        drop(disk);
        assert!(open(&image, &devices).unwrap_err().contains("once more"));
        assert_eq!(devices.attached("disk3").unwrap().client, 7);
        assert!(open(&image, &devices).unwrap_err().contains("once more"));
        devices.detach(8, "disk3", true);
        devices.detach(9, "disk3", false);
        let status = devices.status();
        assert!(status[0].leaving && status[0].live_only, "{status:?}");
        let leaving = devices.detached("disk3").unwrap();
        assert_eq!((leaving.clients, leaving.live_only), (vec![8, 9], false));
        assert!(devices.names().is_empty());
        let disk = open(&image, &devices).unwrap();
        devices.attach(7, coming(&disk), false);
        devices.attach_failed().unwrap();
        drop(disk);
        open(&image, &devices).unwrap();
        // What a payload says that nobody asked for.
        assert!(devices.attached("disk0").is_none());
        assert!(devices.attach_failed().is_none());
        assert!(devices.detached("disk0").is_none());
        assert!(devices.detach_failed("disk0").is_none());
    }

    #[test]
    fn requests_are_bounded() {
        let mut devices = Devices::new(&[], &[]);
        for client in 0..WAITING_MAX as u64 {
            assert!(devices.has_room());
            devices.detach(client, "disk0", false);
        }
        assert!(!devices.has_room());
        assert_eq!(devices.end().1.len(), 1);
    }
}
