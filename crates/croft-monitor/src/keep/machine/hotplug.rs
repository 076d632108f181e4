//! Attaching and detaching: who asks, what the payload answers, and what of it
//! is kept in the instance's configuration.

use croft_api::Phase;
use croft_api::control::Event as Told;
use croft_api::disk::{RunDisk, disk_name};
use croft_api::net::{NAME_MAX, NicChange, NicSpec};
use croft_api::vmm;
use croft_host::store::{Disk as KeptDisk, Layer};

use super::super::keeper::Keeper;
use super::Machine;
use super::devices::{Attaching, Coming, Detaching, Devices};
use super::running::Running;
use crate::disks::Disk;
use crate::nics::Nic;

impl Keeper<Machine> {
    /// The payload, if its machine has been made.
    fn executing(&mut self) -> Result<&mut Running, String> {
        let phase = self.life.phase();
        let executes = matches!(phase, Phase::Running | Phase::Paused | Phase::Crashed);
        let running = self.own.running.as_mut().filter(|_| executes);
        let running = running.ok_or_else(|| format!("it is {phase}"))?;
        if !running.devices.has_room() {
            return Err("too many devices come and go; wait for the others".to_owned());
        }
        Ok(running)
    }

    /// Opens a disk and gives it to the payload; answered later.
    pub(super) fn attach_disk(
        &mut self,
        client: u64,
        mut disk: RunDisk,
        live_only: bool,
    ) -> Result<(), String> {
        if self.own.saving.is_some() {
            return Err("it is being saved".to_owned());
        }
        disk.index = disk.index.or(self.free_place());
        let running = self.executing()?;
        let disk = Disk::open(&disk, &running.devices.held())?;
        let found = disk.found().map_err(|error| error.to_string())?;
        let coming = Coming::Disk(found, disk.held().collect());
        running.devices.attach(client, coming, live_only);
        let request = vmm::Request::AttachDisk(Box::new(disk.describe()));
        running.give(&request, disk.into_files());
        Ok(())
    }

    /// Makes what a NIC hangs on and gives it to the payload; answered later.
    pub(super) fn attach_nic(
        &mut self,
        client: u64,
        nic: NicSpec,
        live_only: bool,
    ) -> Result<(), String> {
        if self.own.saving.is_some() {
            return Err("it is being saved".to_owned());
        }
        if nic.name.is_empty() || nic.name.len() > NAME_MAX || nic.name.starts_with("disk") {
            return Err(format!("'{}' is no name of a NIC", nic.name.escape_debug()));
        }
        let machine = self.own.run.machine.clone();
        let running = self.executing()?;
        if running.devices.has(&nic.name) {
            return Err(format!("there is a {} already", nic.name));
        }
        let open = Nic::open(&machine, &nic)?;
        let request = vmm::Request::AttachNic(Box::new(open.describe()));
        let (descriptors, wire) = open.split();
        let coming = Coming::Nic(Box::new(nic), Box::new(wire));
        running.devices.attach(client, coming, live_only);
        running.give(&request, descriptors);
        Ok(())
    }

    /// Changes a NIC.
    pub(super) fn set_nic(
        &mut self,
        name: &str,
        change: NicChange,
        live_only: bool,
    ) -> Result<(), String> {
        let running = self.executing()?;
        let mut nics = running.saved.nics.iter_mut();
        let Some(nic) = nics.find(|nic| nic.name == name) else {
            let name = name.escape_debug();
            return Err(format!("there is no NIC '{name}'; 'croft show' lists them"));
        };
        change.apply(nic);
        running.devices.nic_changed(nic);
        let (nic, limits) = (nic.name.clone(), nic.limits);
        if let Some(up) = change.link {
            let nic = nic.clone();
            running.ask(&vmm::Request::NicLink { nic, up });
        }
        running.ask(&vmm::Request::NicLimits { nic, limits });
        if live_only {
            return Ok(());
        }
        set(&mut self.own.run.nics, name, change);
        self.change_config(|config| set(&mut config.nics, name, change))
    }

    /// A place for a disk, where the machine is not to choose by itself: it
    /// does not know which places come to be used again at the next start.
    fn free_place(&self) -> Option<u8> {
        let kept = self.own.run.disks.iter().filter_map(|disk| disk.index);
        let kept: Vec<u8> = kept.collect();
        let there = |index: u8| {
            let running = self.own.running.as_ref();
            running.is_some_and(|running| running.devices.has(&disk_name(index)))
        };
        if kept.iter().all(|index| there(*index)) {
            return None;
        }
        (0..=u8::MAX).find(|index| !kept.contains(index) && !there(*index))
    }

    /// Has the payload unplug a device; answered when it is gone.
    pub(super) fn detach(
        &mut self,
        client: u64,
        device: String,
        force: bool,
        live_only: bool,
    ) -> Result<(), String> {
        let running = self.executing()?;
        running.devices.detach(client, &device, live_only);
        running.ask(&vmm::Request::Detach { device, force });
        Ok(())
    }

    /// The payload has what it was given first.
    pub(super) fn attached(&mut self, device: String) {
        let Some(running) = &mut self.own.running else {
            return;
        };
        let Some(Attaching {
            client,
            what,
            live_only,
        }) = running.devices.attached(&device)
        else {
            return;
        };
        let kept = match what {
            Coming::Disk(mut disk, _) => {
                disk.index = (0..=u8::MAX).find(|index| disk_name(*index) == device);
                running.saved.disks.push(disk.clone());
                if live_only {
                    Ok(())
                } else {
                    self.own.run.disks.push(disk.clone());
                    self.change_config(|config| {
                        if let Some(machine) = config.machine_mut() {
                            machine.add_disk(kept_disk(&disk));
                        }
                    })
                }
            }
            Coming::Nic(nic, wire) => {
                running.kept.nics.extend([*wire]);
                running.saved.nics.push((*nic).clone());
                if live_only {
                    Ok(())
                } else {
                    self.own.run.nics.push((*nic).clone());
                    self.change_config(|config| config.nics.push(*nic))
                }
            }
        };
        self.say(&format!("{device} is attached"));
        let event = match kept {
            Ok(()) => Told::Plugged { device },
            Err(error) => Told::Failed {
                message: format!("{device} is attached, but not at the next start: {error}"),
            },
        };
        self.clients.answer(client, &event, vec![]);
    }

    /// The payload did not take what it was given first.
    pub(super) fn attach_failed(&mut self, message: String) {
        let running = self.own.running.as_mut();
        let failed = running.and_then(|running| running.devices.attach_failed());
        if let Some(Attaching { client, .. }) = failed {
            self.clients
                .answer(client, &Told::Failed { message }, vec![]);
        }
    }

    /// The payload has closed a device.
    pub(super) fn detached(&mut self, device: &str) {
        let Some(running) = &mut self.own.running else {
            return;
        };
        running.saved.disks.retain(|disk| !is_named(disk, device));
        running.saved.nics.retain(|nic| nic.name != device);
        running.kept.nics.remove(device);
        match running.devices.detached(device) {
            Some(wanted) => {
                self.say(&format!("{device} is detached"));
                self.gone(wanted);
            }
            // It is there again at the next start, as it is configured.
            None => self.say(&format!("the guest has let {device} go by itself")),
        }
    }

    /// The payload keeps a device.
    pub(super) fn detach_failed(&mut self, device: &str, message: &str) {
        let running = self.own.running.as_mut();
        let wanted = running.and_then(|running| running.devices.detach_failed(device));
        for client in wanted.into_iter().flat_map(|wanted| wanted.clients) {
            let message = message.to_owned();
            self.clients
                .answer(client, &Told::Failed { message }, vec![]);
        }
    }

    /// A device that was to go is gone.
    fn gone(&mut self, wanted: Detaching) {
        let Detaching {
            device,
            clients,
            live_only,
        } = wanted;
        let kept = if live_only {
            Ok(())
        } else {
            let disks = &mut self.own.run.disks;
            disks.retain(|disk| !is_named(disk, &device));
            self.own.run.nics.retain(|nic| nic.name != device);
            self.change_config(|config| {
                if let Some(machine) = config.machine_mut() {
                    machine.remove_disk(&device);
                }
                config.nics.retain(|nic| nic.name != device);
            })
        };
        let event = match kept {
            Ok(()) => Told::Done,
            Err(error) => Told::Failed {
                message: format!("{device} is gone, but there at the next start: {error}"),
            },
        };
        for client in clients {
            self.clients.answer(client, &event, vec![]);
        }
    }

    /// The payload is gone: whoever waits for a device to come waits in vain,
    /// and what was to go has gone.
    pub(super) fn end_hotplug(&mut self, devices: Devices) {
        let (coming, going) = devices.end();
        for Attaching { client, .. } in coming {
            let message = "the machine ended before the device was attached".to_owned();
            self.clients
                .answer(client, &Told::Failed { message }, vec![]);
        }
        for wanted in going {
            self.gone(wanted);
        }
    }
}

/// Changes the NIC of this name.
fn set(nics: &mut [NicSpec], name: &str, change: NicChange) {
    if let Some(nic) = nics.iter_mut().find(|nic| nic.name == name) {
        change.apply(nic);
    }
}

fn is_named(disk: &RunDisk, name: &str) -> bool {
    disk.index.is_some_and(|index| disk_name(index) == name)
}

/// As it is in the configuration.
fn kept_disk(disk: &RunDisk) -> KeptDisk {
    let layers = disk.layers.iter().map(|layer| Layer {
        path: (&layer.path).into(),
        format: layer.format,
    });
    KeptDisk {
        layers: layers.collect(),
        index: disk.index,
        options: disk.options,
    }
}
