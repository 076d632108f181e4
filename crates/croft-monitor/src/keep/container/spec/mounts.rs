//! What is mounted in a container.

use std::path::Path;

use croft_api::container::{ContainerRole, VolumeSource};
use oci_spec::runtime::Mount;

use super::Given;

/// Group of terminals (`tty` of every distribution).
const TTY: u32 = 5;

/// All mounts, in the order in which they are made.
pub fn mounts(given: &Given<'_>) -> Vec<Mount> {
    let container = given.container;
    let system = container.role == ContainerRole::System;
    let terminals = format!("gid={TTY}");
    let mut pts = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    // One with but its root has no such group.
    if container.ids.is_none_or(|ids| ids.count > TTY) {
        pts.push(&terminals);
    }
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            // An init has groups of its own beneath its own.
            &[
                "nosuid",
                "noexec",
                "nodev",
                "relatime",
                if system { "rw" } else { "ro" },
            ],
        ),
    ];
    if system {
        // What an init finds mounted it leaves alone; what it would mount
        // itself has no limit.
        mounts.extend([
            mount("/run", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=755"]),
            mount(
                "/run/lock",
                "tmpfs",
                "tmpfs",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=5120k"],
            ),
        ]);
    }
    for tmpfs in &container.tmpfs {
        let mut options = vec!["nosuid", "nodev"];
        options.extend(tmpfs.options.iter().map(String::as_str));
        mounts.push(mount(&tmpfs.destination, "tmpfs", "tmpfs", &options));
    }
    for (volume, path) in container.volumes.iter().zip(given.volumes) {
        let mut options = vec![if volume.read_only { "ro" } else { "rw" }];
        // Its files have the ids that they have in containers, whatever those
        // are on the host.
        let ours = !matches!(volume.source, VolumeSource::Path(_));
        if ours && given.maker.is_none() && container.ids.is_some() {
            options.push("idmap");
        }
        mounts.push(bind(path, &volume.destination, &options));
    }
    // A volume around them does not cover them.
    for (path, destination) in given.files {
        mounts.push(bind(path, destination, &["rw"]));
    }
    mounts
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.into()));
    let options = options.iter().map(|option| (*option).to_owned());
    mount.set_options(Some(options.collect()));
    mount
}

fn bind(path: &Path, destination: &str, options: &[&str]) -> Mount {
    let options = [&["rbind", "rprivate"], options].concat();
    let mut bind = mount(destination, "bind", "", &options);
    bind.set_source(Some(path.to_owned()));
    bind
}
