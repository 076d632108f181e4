//! Limits of a line or two.

use std::collections::{BTreeMap, HashMap};

use oci_spec::runtime::{LinuxNetwork, LinuxPids, LinuxRdma};

use super::writes::Writes;
use crate::cgroups::{Controllers, Error};

/// Processes and threads: below zero there is no limit, zero says nothing.
pub fn pids(writes: &mut Writes<'_>, pids: &LinuxPids) -> Result<(), Error> {
    let value = match pids.limit() {
        0 => return Ok(()),
        ..0 => "max".to_owned(),
        limit => limit.to_string(),
    };
    match writes.place(Controllers::PIDS) {
        Some((dir, _)) => dir.write("pids.max", &value),
        None => Ok(()),
    }
}

/// Handles and objects of each device of remote memory access.
pub fn rdma(writes: &mut Writes<'_>, rdma: &HashMap<String, LinuxRdma>) -> Result<(), Error> {
    if rdma.is_empty() {
        return Ok(());
    }
    let Some((dir, _)) = writes.place(Controllers::RDMA) else {
        return Ok(());
    };
    let sorted: BTreeMap<_, _> = rdma.iter().collect();
    for (device, limits) in sorted {
        if device.contains(char::is_whitespace) {
            return Err(Error::Value {
                what: "rdma",
                value: device.clone(),
                why: "the name of a device is wanted".to_owned(),
            });
        }
        let mut line = device.clone();
        if let Some(handles) = limits.hca_handles() {
            line.push_str(&format!(" hca_handle={handles}"));
        }
        if let Some(objects) = limits.hca_objects() {
            line.push_str(&format!(" hca_object={objects}"));
        }
        dir.write("rdma.max", &line)?;
    }
    Ok(())
}

/// Marks and priorities of packets; version 1 alone has them.
pub fn network(writes: &mut Writes<'_>, network: &LinuxNetwork) -> Result<(), Error> {
    if let Some(class) = network.class_id().filter(|class| *class != 0)
        && let Some((dir, _)) = writes.place(Controllers::NET_CLS)
    {
        dir.write("net_cls.classid", &class.to_string())?;
    }
    let priorities = network.priorities().as_deref().unwrap_or_default();
    if !priorities.is_empty()
        && let Some((dir, _)) = writes.place(Controllers::NET_PRIO)
    {
        for one in priorities {
            let line = format!("{} {}", one.name(), one.priority());
            dir.write("net_prio.ifpriomap", &line)?;
        }
    }
    Ok(())
}

/// Files of version 2, by name.
pub fn unified(writes: &mut Writes<'_>, files: &HashMap<String, String>) -> Result<(), Error> {
    let sorted: BTreeMap<_, _> = files.iter().collect();
    for (file, value) in sorted {
        // Those of the core move processes and change what the group is.
        let named = file.contains('.') && !file.contains(['/', '\0']);
        let core = file.starts_with("cgroup.") && !file.starts_with("cgroup.max.");
        if !named || core || file.starts_with('.') {
            return Err(Error::Value {
                what: "unified",
                value: file.clone(),
                why: "the name of a controller's file is wanted".to_owned(),
            });
        }
        match writes.unified() {
            Some(dir) if dir.has(file) => {
                for line in value.lines() {
                    dir.write(file, line)?;
                }
            }
            Some(_) => writes.leave_out(file, "the group has no such file"),
            None => writes.leave_out(file, "this host has no version 2"),
        }
    }
    Ok(())
}
