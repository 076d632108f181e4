//! `croft disk`, `croft nic`: disks and NICs that an instance gets and loses, while it runs or for
//! its next start.
//!
//! What runs belongs to its monitor, which changes the configuration too; what
//! is stopped has a configuration only.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use croft_api::control::{Event, Request};
use croft_api::disk::{RunDisk, RunLayer, disk_name};
use croft_api::net::NicChange;
use croft_host::store::{Boot, Config, Disk, Machine};
use croft_host::{ClientError, InstanceName, Instances};

use super::resize::resize;
use super::{Fault, SOON, connect, finish, machine_of, nics, open, spec};
use crate::args::net::Net;
use crate::args::nic::{AttachOptions as NicAttachOptions, Link, NicCommand, SetOptions};
use crate::args::resize::{AttachOptions, DetachOptions, DiskCommand};
use crate::exit::Exit;
use crate::{print, say};

/// Does something to an instance's disks.
pub fn disk(command: &DiskCommand) -> Exit {
    finish(open().and_then(|instances| match command {
        DiskCommand::Resize(options) => resize(&instances, options),
        DiskCommand::Attach(options) => attach(&instances, options),
        DiskCommand::Detach(options) => detach(&instances, options),
    }))
}

/// Does something to an instance's NICs.
pub fn nic(command: &NicCommand) -> Exit {
    finish(open().and_then(|instances| match command {
        NicCommand::Attach(options) => attach_nic(&instances, options),
        NicCommand::Detach(options) => detach(&instances, options),
        NicCommand::Set(options) => set(&instances, options),
    }))
}

fn attach(instances: &Instances, options: &AttachOptions) -> Result<Exit, Fault> {
    let name = &options.name.name;
    let live = instances.status(name)?.phase.is_live();
    machine_of(&instances.config(name)?, name)?;
    let disks = spec::disks(std::slice::from_ref(&options.disk))?;
    let Some(disk) = disks.into_iter().next() else {
        return Err(Fault::usage("name a disk"));
    };
    let device = if live {
        let request = Request::AttachDisk {
            disk: run_disk(&disk),
            live_only: options.live_only,
        };
        plug(instances, name, &request)?
    } else {
        only_live(name, options.live_only)?;
        let directory = instances.directories().instance(name);
        let added = instances.change(name, |config| add(config, disk, &directory))?;
        added.map_err(|fault| fault.of(name))?
    };
    Ok(print(format!("{device}\n").as_bytes()))
}

fn attach_nic(instances: &Instances, options: &NicAttachOptions) -> Result<Exit, Fault> {
    let name = &options.name.name;
    let Net::Nic(wanted) = &options.net else {
        return Err(Fault::usage("--net none is no NIC; name where it leads to"));
    };
    let status = instances.status(name)?;
    let another = |config: &Config, names: &[String]| {
        let nic = nics::another((**wanted).clone(), &config.nics, names);
        nic.map_err(|message| Fault::usage(message).of(name))
    };
    let device = if status.phase.is_live() {
        let names = status.devices.into_iter().map(|device| device.name);
        let names: Vec<String> = names.collect();
        let nic = another(&instances.config(name)?, &names)?;
        let request = Request::AttachNic {
            nic: Box::new(nic),
            live_only: options.live_only,
        };
        plug(instances, name, &request)?
    } else {
        only_live(name, options.live_only)?;
        let added = instances.change(name, |config| {
            let nic = another(config, &[])?;
            let device = nic.name.clone();
            config.nics.push(nic);
            Ok::<_, Fault>(device)
        })?;
        added?
    };
    Ok(print(format!("{device}\n").as_bytes()))
}

fn set(instances: &Instances, options: &SetOptions) -> Result<Exit, Fault> {
    let name = &options.name.name;
    let change = NicChange {
        link: options.link.map(|link| link == Link::Up),
        inbound: options.limit_in.map(|limit| limit.0),
        outbound: options.limit_out.map(|limit| limit.0),
    };
    if instances.status(name)?.phase.is_live() {
        let request = Request::SetNic {
            nic: options.nic.clone(),
            change,
            live_only: options.live_only,
        };
        let mut monitor = connect(instances, name).map_err(|fault| fault.of(name))?;
        let answer = monitor.ask_within(&request, vec![], Some(SOON));
        answer.map_err(|error| Fault::from(error).of(name))?;
        return Ok(Exit::PowerOff);
    }
    only_live(name, options.live_only)?;
    let changed = instances.change(name, |config| {
        let mut nics = config.nics.iter_mut();
        match nics.find(|nic| nic.name == options.nic) {
            Some(nic) => {
                change.apply(nic);
                Ok(())
            }
            None => Err(none(config, &options.nic)),
        }
    })?;
    changed.map_err(|fault| fault.of(name))?;
    Ok(Exit::PowerOff)
}

/// Has a running instance's monitor plug something in. Returns its name.
fn plug(instances: &Instances, name: &InstanceName, request: &Request) -> Result<String, Fault> {
    let mut monitor = connect(instances, name).map_err(|fault| fault.of(name))?;
    let answer = monitor.ask_within(request, vec![], Some(SOON));
    match answer.map_err(|error| Fault::from(error).of(name))? {
        (Event::Plugged { device }, _) => Ok(device),
        _ => Err(Fault::failed("its monitor says something else").of(name)),
    }
}

/// Adds a disk to what an instance is.
fn add(config: &mut Config, disk: Disk, directory: &Path) -> Result<String, Fault> {
    let machine = config.machine_mut();
    let machine = machine.ok_or_else(|| Fault::usage("a container has no disks"))?;
    check_files(&machine.disks, &disk, directory)?;
    machine
        .add_disk(disk)
        .ok_or_else(|| Fault::usage("it has as many disks as it can have; detach one first"))
}

/// Refuses a disk with a file that is written to and is there already.
fn check_files(disks: &[Disk], disk: &Disk, directory: &Path) -> Result<(), Fault> {
    // A disk writes to the first of its files.
    let files = |disk: &Disk| {
        let files = disk.layers.iter().enumerate().map(|(order, layer)| {
            let writes = order == 0 && !disk.options.read_only;
            (file(&directory.join(&layer.path)), writes)
        });
        files.filter(|(file, _)| file.is_some()).collect::<Vec<_>>()
    };
    let mine = files(disk);
    let taken = disks.iter().flat_map(files).any(|(file, writes)| {
        let mut mine = mine.iter();
        mine.any(|(one, writes_one)| *one == file && (writes || *writes_one))
    });
    if taken {
        let name = disk
            .layers
            .first()
            .map(|layer| layer.path.display().to_string());
        return Err(Fault::usage(format!(
            "'{}' or a file below it is a disk of it already",
            name.unwrap_or_default().escape_debug()
        )));
    }
    Ok(())
}

/// Which file that is.
fn file(path: &Path) -> Option<(u64, u64)> {
    let about = path.metadata().ok()?;
    Some((about.dev(), about.ino()))
}

fn detach(instances: &Instances, options: &DetachOptions) -> Result<Exit, Fault> {
    let (name, device) = (&options.name.name, &options.device);
    let mut config = instances.config(name)?;
    let stays = config.machine_mut().is_some_and(|machine| {
        machine.place_disks();
        first(machine).is_some_and(|first| machine.disk(device) == Some(first))
    });
    if stays {
        return Err(Fault::usage(format!(
            "{name}: it boots from {device}, which stays; 'croft delete' deletes an instance with its own disk"
        )));
    }
    if !instances.status(name)?.phase.is_live() {
        only_live(name, options.live_only)?;
        let removed = instances.change(name, |config| {
            let nics = config.nics.len();
            config.nics.retain(|nic| nic.name != *device);
            let machine = config.machine_mut();
            let disk = machine.and_then(|machine| machine.remove_disk(device));
            config.nics.len() < nics || disk.is_some()
        })?;
        return match removed {
            true => Ok(Exit::PowerOff),
            false => Err(none(&config, device).of(name)),
        };
    }
    let request = Request::Detach {
        device: device.clone(),
        force: options.force,
        live_only: options.live_only,
    };
    let mut monitor = connect(instances, name).map_err(|fault| fault.of(name))?;
    let patience = Duration::from_secs(options.timeout);
    match monitor.ask_within(&request, vec![], Some(patience)) {
        Ok(_) => Ok(Exit::PowerOff),
        Err(ClientError::Late) => {
            say::line(&format!(
                "croft: {name}: the guest has not released {device} within {} s; it stays asked, and \
                 {device} goes when it answers or is reset; --force takes it away",
                options.timeout
            ));
            Ok(Exit::Timeout)
        }
        Err(error) => Err(Fault::from(error).of(name)),
    }
}

/// The disk that the instance boots from.
fn first(machine: &Machine) -> Option<&Disk> {
    let boots = matches!(machine.boot, Boot::Disk);
    machine.disks.first().filter(|_| boots)
}

fn none(config: &Config, device: &str) -> Fault {
    let disks = config
        .machine()
        .into_iter()
        .flat_map(|machine| &machine.disks);
    let disks = disks.filter_map(|disk| disk.index);
    let nics = config.nics.iter().map(|nic| nic.name.clone());
    let names: Vec<String> = disks.map(disk_name).chain(nics).collect();
    let device = device.escape_debug();
    if names.is_empty() {
        Fault::usage(format!(
            "there is no '{device}'; it has neither disks nor NICs"
        ))
    } else {
        Fault::usage(format!(
            "there is no '{device}'; there are {}",
            names.join(", ")
        ))
    }
}

fn only_live(name: &InstanceName, live_only: bool) -> Result<(), Fault> {
    if live_only {
        return Err(Fault::usage(format!(
            "{name}: it does not run, and --live-only is for an instance that does"
        )));
    }
    Ok(())
}

/// As its monitor is told.
fn run_disk(disk: &Disk) -> RunDisk {
    let layers = disk.layers.iter().map(|layer| RunLayer {
        path: (&layer.path).into(),
        format: layer.format,
    });
    RunDisk {
        layers: layers.collect(),
        index: disk.index,
        options: disk.options,
    }
}

#[cfg(test)]
mod tests {
    use croft_host::store::Layer;

    use super::*;

    fn disk(path: &Path, read_only: bool) -> Disk {
        let layer = Layer {
            path: path.to_owned(),
            format: None,
        };
        let mut disk = Disk {
            layers: vec![layer],
            index: None,
            options: Default::default(),
        };
        disk.options.read_only = read_only;
        disk
    }

    #[test]
    fn a_file_is_added_once_unless_it_is_only_read() {
        let place = tempfile::tempdir().unwrap();
        let paths = ["one", "two"].map(|name| place.path().join(name));
        for path in &paths {
            std::fs::write(path, "disk").unwrap();
        }
        let [one, two] = &paths;
        let mut disks = Vec::new();
        let mut add = |new: Disk| added(&mut disks, &new, place.path());
        add(disk(Path::new("one"), false)).unwrap();
        assert!(add(disk(one, false)).is_err());
        assert!(add(disk(one, true)).is_err());
        add(disk(two, true)).unwrap();
        add(disk(two, true)).unwrap();
        assert!(add(disk(two, false)).is_err());
        let mut over = disk(Path::new("none"), false);
        over.layers.extend(disk(two, false).layers);
        add(over.clone()).unwrap();
        over.layers.extend(disk(one, false).layers);
        assert!(add(over).is_err());
    }

    fn added(disks: &mut Vec<Disk>, new: &Disk, directory: &Path) -> Result<(), Fault> {
        check_files(disks, new, directory)?;
        disks.push(new.clone());
        Ok(())
    }
}
