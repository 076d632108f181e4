//! What a machine is, in `config.json`.

use std::path::{Path, PathBuf};

use croft_api::MachineSpec;
use croft_api::disk::{DISKS_MAX, DiskFormat, DiskOptions, RunDisk, RunLayer, disk_name, place};
use croft_api::monitor::{RunRequest, RunShare};
use croft_api::net::NicSpec;
use serde::{Deserialize, Serialize};

/// A machine. Relative paths are in the instance's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The virtual hardware; its name is the instance's.
    pub machine: MachineSpec,
    /// What is started.
    pub boot: Boot,
    /// The disks, in the guest's order.
    pub disks: Vec<Disk>,
    /// Directories of the host's in the guest.
    pub shares: Vec<Share>,
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boot {
    /// This kernel.
    Kernel {
        /// Its file.
        kernel: PathBuf,
        /// The initial RAM disk's.
        initrd: Option<PathBuf>,
    },
    /// What is on the first disk, read anew at each start and reset.
    Disk,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its own file, and what is below it: its backing file, that one's, and
    /// so on. Names in images count for nothing.
    pub layers: Vec<Layer>,
    /// Its place: that of `disk<place>`, counted from 0; the first that is
    /// free without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u8>,
    /// How it is served.
    #[serde(default)]
    pub options: DiskOptions,
}

/// A file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its path.
    pub path: PathBuf,
    /// What it is; guessed from its contents when not said.
    pub format: Option<DiskFormat>,
}

/// A directory of the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its path.
    pub path: PathBuf,
    /// By which the guest mounts it.
    pub tag: String,
    /// Refuse every change.
    pub read_only: bool,
}

impl Machine {
    /// Gives every disk a place, which it keeps when others come and go.
    pub fn place_disks(&mut self) {
        place(self.disks.iter_mut().map(|disk| &mut disk.index));
    }

    /// The disk of this name.
    pub fn disk(&self, name: &str) -> Option<&Disk> {
        let mut disks = self.disks.iter();
        disks.find(|disk| disk.index.is_some_and(|index| disk_name(index) == name))
    }

    /// Adds a disk, in the lowest place that is free unless it has one.
    /// Returns its name; `None` if there are as many as there can be.
    pub fn add_disk(&mut self, disk: Disk) -> Option<String> {
        self.place_disks();
        self.disks.push(disk);
        self.place_disks();
        let index = self.disks.last().and_then(|disk| disk.index);
        let index = index.filter(|index| usize::from(*index) < DISKS_MAX);
        if index.is_none() {
            self.disks.pop();
        }
        index.map(disk_name)
    }

    /// Removes the disk of this name, while the others stay where they are.
    pub fn remove_disk(&mut self, name: &str) -> Option<Disk> {
        self.place_disks();
        let named = |disk: &Disk| disk.index.is_some_and(|index| disk_name(index) == name);
        let at = self.disks.iter().position(named)?;
        Some(self.disks.remove(at))
    }

    /// What its monitor is asked to run.
    pub(super) fn run_request(
        &self,
        nics: &[NicSpec],
        directory: &Path,
        vsock: PathBuf,
    ) -> RunRequest {
        let path = |path: &Path| directory.join(path).into_os_string();
        let (kernel, initrd) = match &self.boot {
            Boot::Disk => (None, None),
            Boot::Kernel { kernel, initrd } => (Some(kernel), initrd.as_ref()),
        };
        RunRequest {
            machine: self.machine.clone(),
            kernel: kernel.map(|kernel| path(kernel)),
            initrd: initrd.map(|initrd| path(initrd)),
            disks: self.run_disks(directory),
            nics: nics.to_vec(),
            shares: self.run_shares(directory),
            log: None,
            gdb: None,
            control: None,
            ports: Vec::new(),
            vsock: self.machine.vsock.map(|_| vsock.into()),
            terminal: false,
            no_jail: false,
        }
    }

    fn run_shares(&self, directory: &Path) -> Vec<RunShare> {
        let shares = self.shares.iter().map(|share| RunShare {
            path: directory.join(&share.path).into(),
            tag: share.tag.clone(),
            read_only: share.read_only,
        });
        shares.collect()
    }

    fn run_disks(&self, directory: &Path) -> Vec<RunDisk> {
        let layer = |layer: &Layer| RunLayer {
            path: directory.join(&layer.path).into(),
            format: layer.format,
        };
        let disks = self.disks.iter().map(|disk| RunDisk {
            layers: disk.layers.iter().map(layer).collect(),
            index: disk.index,
            options: disk.options,
        });
        disks.collect()
    }
}
