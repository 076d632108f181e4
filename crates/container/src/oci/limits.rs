//! `pause`, `resume`, `update`: what a running container may have.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use croft_isolate::cgroups::Group;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::Context;
use super::args::{Name, Update};
use super::error::Error;
use super::groups;
use super::status::{self, Status};
use super::store::{Entry, read_bounded};

/// `pause`.
pub fn pause(context: &Context, options: &Name) -> Result<u8, Error> {
    let (_, status, group) = open(context, &options.id)?;
    if status != Status::Running && status != Status::Created {
        return Err(status.refuse(&options.id, "only a running container can be paused"));
    }
    group.freeze()?;
    Ok(0)
}

/// `resume`.
pub fn resume(context: &Context, options: &Name) -> Result<u8, Error> {
    let (_, status, group) = open(context, &options.id)?;
    // A created one that is paused is still a created one.
    if status != Status::Paused && !(status == Status::Created && group.is_frozen()?) {
        return Err(status.refuse(&options.id, "only a paused container can be resumed"));
    }
    group.thaw()?;
    Ok(0)
}

/// `update`.
pub fn update(context: &Context, options: &Update) -> Result<u8, Error> {
    let (_, status, group) = open(context, &options.id)?;
    if !status.is_alive() {
        return Err(status.refuse(&options.id, "it has no limits any more"));
    }
    groups::apply(&group, &resources(options)?, &context.log)?;
    Ok(0)
}

fn open(context: &Context, id: &str) -> Result<(Entry, Status, Group), Error> {
    let entry = context.store.open(id)?;
    let record = entry.record()?;
    let status = status::of(&entry, record.as_ref())?;
    let group = match &record {
        Some(record) => groups::open(record)?,
        None => None,
    };
    let group = group.ok_or_else(|| status.refuse(id, "it has no control group"))?;
    Ok((entry, status, group))
}

/// What is to change: from a file, or the options.
fn resources(options: &Update) -> Result<LinuxResources, Error> {
    if let Some(path) = &options.resources {
        let file = if path.as_os_str() == "-" {
            duplicate_input()
        } else {
            File::open(path)
        };
        let file = file.map_err(|error| Error::file("open", path, error))?;
        let text = read_bounded(file, path)?;
        return serde_json::from_slice(&text).map_err(|error| Error::Content {
            path: path.clone(),
            why: error.to_string(),
        });
    }
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_cpu(cpu(options));
    resources.set_memory(memory(options));
    if let Some(limit) = options.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if let Some(weight) = options.blkio_weight {
        let mut io = LinuxBlockIo::default();
        io.set_weight(Some(weight));
        resources.set_block_io(Some(io));
    }
    Ok(resources)
}

fn duplicate_input() -> io::Result<File> {
    let input: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(input.into())
}

fn cpu(options: &Update) -> Option<LinuxCpu> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(options.cpu_share);
    cpu.set_quota(options.cpu_quota);
    cpu.set_burst(options.cpu_burst);
    cpu.set_period(options.cpu_period);
    cpu.set_realtime_runtime(options.cpu_rt_runtime);
    cpu.set_realtime_period(options.cpu_rt_period);
    cpu.set_cpus(options.cpuset_cpus.clone());
    cpu.set_mems(options.cpuset_mems.clone());
    cpu.set_idle(options.cpu_idle);
    (cpu != LinuxCpu::default()).then_some(cpu)
}

fn memory(options: &Update) -> Option<LinuxMemory> {
    let mut memory = LinuxMemory::default();
    memory.set_limit(options.memory);
    memory.set_reservation(options.memory_reservation);
    memory.set_swap(options.memory_swap);
    (memory != LinuxMemory::default()).then_some(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_changes() {
        let none = resources(&Update::default()).unwrap();
        assert_eq!(none.cpu(), &None);
        assert_eq!(none.memory(), &None);
        assert_eq!(none.pids(), &None);
        assert_eq!(none.devices(), &None);
        let options = Update {
            memory: Some(-1),
            cpu_quota: Some(5000),
            pids_limit: Some(20),
            ..Update::default()
        };
        let some = resources(&options).unwrap();
        let memory = some.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(-1), None));
        let cpu = some.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(5000), None));
        assert!(some.block_io().is_none());
    }

    #[test]
    fn a_file_counts_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resources.json");
        std::fs::write(&path, r#"{"pids":{"limit":7}}"#).unwrap();
        let options = Update {
            resources: Some(path.clone()),
            memory: Some(5),
            ..Update::default()
        };
        let read = resources(&options).unwrap();
        assert_eq!(read.memory(), &None);
        assert!(read.pids().is_some());
        std::fs::write(&path, "[").unwrap();
        assert!(
            resources(&options)
                .unwrap_err()
                .to_string()
                .contains("resources.json")
        );
    }
}
