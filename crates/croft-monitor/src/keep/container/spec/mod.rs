//! What a container is, as `croft-container` takes it: the OCI's description
//! (runtime-spec, `config.md`) of an instance's configuration.
//!
//! Pure: whatever of the host is needed is [`Given`].

mod mounts;
mod process;
mod resources;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use croft_api::ContainerSpec;
use croft_api::container::{ContainerRole, IDS, IdRange, Seccomp};
use croft_isolate::seccomp;
use oci_spec::runtime::{
    Arch, Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Root, Spec,
};

pub use self::process::{capabilities, process, rights};
pub use self::resources::{Disk, limits, resources};
use super::users::User;

/// Version of the description (runtime-spec, `config.md`, "Specification
/// version").
const VERSION: &str = "1.2.0";
/// What tells of the host, or would change it.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What can be looked at only.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What a description needs beside the configuration.
#[derive(Debug)]
pub struct Given<'a> {
    /// The configuration.
    pub container: &'a ContainerSpec,
    /// Its user, as the image knows it.
    pub user: &'a User,
    /// Files of the host's that stand in for the image's: their paths, and
    /// where they are in the container.
    pub files: &'a [(PathBuf, &'static str)],
    /// Sources of the container's volumes, in their order.
    pub volumes: &'a [PathBuf],
    /// The devices that it was given.
    pub devices: &'a [HostDevice],
    /// The disks with limits.
    pub disks: &'a [Disk],
    /// Its control group, beneath those of the host.
    pub group: &'a Path,
    /// User and group of whoever makes it, if that is not root.
    pub maker: Option<(u32, u32)>,
    /// Memory is limited by version 2.
    pub unified_memory: bool,
    /// A profile of system calls that somebody named.
    pub profile: Option<LinuxSeccomp>,
}

/// A device of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Its path in the container.
    pub path: PathBuf,
    /// Its kind: a block device, or one of characters.
    pub block: bool,
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}

/// The description of a container.
pub fn describe(given: &Given<'_>) -> Result<Spec, String> {
    let container = given.container;
    let mut root = Root::default();
    // It is of layers: nothing is at this path.
    root.set_path("rootfs".into());
    root.set_readonly(Some(container.read_only));
    let mut spec = Spec::default();
    spec.set_version(VERSION.to_owned());
    spec.set_root(Some(root));
    spec.set_hostname(Some(hostname(container)));
    spec.set_mounts(Some(mounts::mounts(given)));
    spec.set_process(Some(process(container, given.user)?));
    spec.set_linux(Some(linux(given)?));
    Ok(spec)
}

/// A container's host name.
pub fn hostname(container: &ContainerSpec) -> String {
    if container.hostname.is_empty() {
        // Names of instances have characters that names of hosts have not.
        container.name.replace('_', "-")
    } else {
        container.hostname.clone()
    }
}

fn linux(given: &Given<'_>) -> Result<Linux, String> {
    let container = given.container;
    let system = container.role == ContainerRole::System;
    let mut linux = Linux::default();
    if let Some(ids) = container.ids {
        let (users, groups) = maps(ids, given.maker)?;
        linux.set_uid_mappings(Some(users));
        linux.set_gid_mappings(Some(groups));
    }
    linux.set_namespaces(Some(namespaces(container)));
    linux.set_cgroups_path(Some(given.group.to_owned()));
    linux.set_resources(Some(resources(container, given)?));
    linux.set_devices(Some(given.devices.iter().map(device).collect()));
    linux.set_sysctl(Some(sysctls(container)));
    let texts = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    linux.set_masked_paths(Some(texts(&MASKED)));
    // An init sets what belongs to its own namespaces; the rest refuses by its
    // owner, who is nobody there.
    let settable = system && container.ids.is_some();
    linux.set_readonly_paths(Some(if settable {
        texts(&READ_ONLY.map(|path| match path {
            "/proc/sys" => "/proc/sys/kernel/core_pattern",
            path => path,
        }))
    } else {
        texts(&READ_ONLY)
    }));
    linux.set_seccomp(match &container.seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Profile(_) => given.profile.clone(),
        Seccomp::Default => {
            let capabilities: Vec<_> = capabilities(container)?.into_iter().collect();
            Some(seccomp::default_profile(
                &capabilities,
                Arch::ScmpArchX86_64,
            ))
        }
    });
    // What is mounted in it stays in it, what the host unmounts goes there too.
    linux.set_rootfs_propagation(Some("rslave".to_owned()));
    Ok(linux)
}

/// Lines of a user namespace's map.
type Map = Vec<LinuxIdMapping>;

/// The maps of a container's users and groups. What a user makes has that user
/// too, as one more id behind its own: it is made in the user's directories,
/// which are closed to all others. Where the container's only id is its maker's,
/// so is its only group.
pub fn maps(ids: IdRange, maker: Option<(u32, u32)>) -> Result<(Map, Map), String> {
    let line = |first: u32, host: u32, size: u32| {
        let line = LinuxIdMappingBuilder::default()
            .container_id(first)
            .host_id(host)
            .size(size);
        line.build().map_err(|error| error.to_string())
    };
    let map = |own: Option<u32>| match own {
        Some(own) if ids.count == 1 => Ok(vec![line(0, own, 1)?]),
        Some(own) => Ok(vec![
            line(0, ids.first, ids.count)?,
            line(ids.count, own, 1)?,
        ]),
        None => Ok::<_, String>(vec![line(0, ids.first, ids.count)?]),
    };
    let (user, group) = maker.unzip();
    Ok((map(user)?, map(group)?))
}

fn namespaces(container: &ContainerSpec) -> Vec<LinuxNamespace> {
    let all = [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
        LinuxNamespaceType::Time,
    ];
    let user = container.ids.map(|_| LinuxNamespaceType::User);
    let all = user.into_iter().chain(all);
    let namespaces = all.map(|typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace
    });
    namespaces.collect()
}

/// Settings of its own network: programs without rights may listen at every
/// port and send pings, as nobody else is behind its addresses.
fn sysctls(container: &ContainerSpec) -> HashMap<String, String> {
    let groups = container.ids.map_or(IDS, |ids| ids.count);
    let own = [
        ("net.ipv4.ip_unprivileged_port_start", "0".to_owned()),
        (
            "net.ipv4.ping_group_range",
            format!("0 {}", groups.saturating_sub(1)),
        ),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value));
    let given = container.sysctls.iter();
    let given = given.map(|(name, value)| (name.clone(), value.clone()));
    own.into_iter().chain(given).collect()
}

fn device(host: &HostDevice) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device.set_path(host.path.clone());
    device.set_typ(kind(host));
    device.set_major(host.major.into());
    device.set_minor(host.minor.into());
    device.set_file_mode(Some(0o660));
    device
}

fn kind(host: &HostDevice) -> LinuxDeviceType {
    if host.block {
        LinuxDeviceType::B
    } else {
        LinuxDeviceType::C
    }
}
