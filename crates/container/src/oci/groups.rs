//! A container's control group: where it is, and the way into it.

use std::path::{Path, PathBuf};

use croft_isolate::cgroups::{Controllers, Group, Hierarchies, LeftOut};
use oci_spec::runtime::{LinuxResources, Spec};

use super::error::Error;
use super::log::Log;
use super::store::Record;

/// Group of all containers that do not say where theirs is to be.
const PARENT: &str = "croft-oci";

/// Path of the group of a container of that name.
pub fn path(id: &str, spec: &Spec) -> PathBuf {
    let own = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_ref());
    match own {
        Some(path) if !path.as_os_str().is_empty() => path.clone(),
        _ => Path::new(PARENT).join(id),
    }
}

/// Makes the group. One that the description names may be there already, with
/// limits that whoever has made it wants to be kept.
pub fn create(path: &Path, log: &Log) -> Result<(Hierarchies, Group), Error> {
    let hierarchies = Hierarchies::find()?;
    let group = if path.starts_with(PARENT) {
        Group::create(&hierarchies, path, Controllers::all())?
    } else {
        let group = Group::take(&hierarchies, path, Controllers::all())?;
        // Nothing would run in it, and nobody be told why.
        if group.is_frozen()? {
            group.thaw()?;
        }
        group
    };
    for left_out in group.left_out() {
        log.debug(|| format!("control group {}: not {left_out}", path.display()));
    }
    Ok((hierarchies, group))
}

/// Sets a new container's limits.
pub fn limit(group: &Group, spec: &Spec, log: &Log) -> Result<(), Error> {
    let linux = spec.linux().as_ref();
    match linux.and_then(|linux| linux.resources().as_ref()) {
        Some(resources) => apply(group, &with_devices(resources), log),
        None => Ok(()),
    }
}

/// The devices that every container has are its own whatever its rules say.
fn with_devices(resources: &LinuxResources) -> LinuxResources {
    let mut resources = resources.clone();
    if let Some(rules) = resources.devices_mut() {
        rules.extend(crate::allowed_devices());
    }
    resources
}

/// Sets limits.
///
/// # Errors
///
/// Also for a limit that cannot be had here. For a user without privilege that
/// is the usual case where nothing was delegated: it is a warning then.
pub fn apply(group: &Group, resources: &LinuxResources, log: &Log) -> Result<(), Error> {
    let left_out = group.apply(resources)?;
    if left_out.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = left_out.iter().map(LeftOut::to_string).collect();
    let list = list.join(", ");
    if rustix::process::geteuid().is_root() {
        return Err(Error::Limits(list));
    }
    log.warn(&format!("without limits: {list}"));
    Ok(())
}

/// The group of a container that is there; `None` if it has none.
pub fn open(record: &Record) -> Result<Option<Group>, Error> {
    let Some(path) = &record.groups else {
        return Ok(None);
    };
    let group = Group::open(&Hierarchies::find()?, path)?;
    Ok((!group.is_nowhere()).then_some(group))
}
