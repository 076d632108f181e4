//! The control groups that a container's processes are put into, as open
//! descriptors: who makes them and sets their limits is `croft-isolate`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use croft_isolate::cgroups::{Group, Hierarchies, Hierarchy, Version};
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::{Errno, write};

use crate::{Error, Step};

/// Where hierarchies are mounted, here and in containers.
const MOUNTS: &str = "/sys/fs/cgroup";

/// Groups to be in. Without any a container stays in its maker's.
#[derive(Debug, Default)]
pub struct Groups {
    /// Directory of the group of version 2: the clone begins in it.
    pub unified: Option<OwnedFd>,
    /// `tasks` files of version 1, open for writing: the clone writes itself
    /// into each.
    pub tasks: Vec<OwnedFd>,
    /// What a mount of type `cgroup` shows, one for each hierarchy.
    pub views: Vec<View>,
}

/// One hierarchy, as a container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its directory in the container's `/sys/fs/cgroup`: `memory`,
    /// `cpu,cpuacct`, `systemd`, `unified`; empty for a host that has version 2
    /// alone.
    pub name: String,
    /// Options of its mount (`memory`, `none,name=systemd`); none for version 2.
    pub options: Option<String>,
    /// The container's own group in it, on the host.
    pub path: PathBuf,
}

impl Groups {
    /// The way into a group that was made, or opened.
    pub fn of(hierarchies: &Hierarchies, group: &Group) -> Result<Self, Error> {
        let mut groups = Groups::default();
        for path in group.paths() {
            let beneath = |one: &&Hierarchy| path.starts_with(&one.mount);
            let Some(hierarchy) = hierarchies.iter().find(beneath) else {
                continue;
            };
            match hierarchy.version {
                Version::Two => {
                    groups.unified = Some(descriptor(path, OFlags::PATH | OFlags::DIRECTORY)?);
                }
                Version::One => {
                    let tasks = descriptor(&path.join("tasks"), OFlags::WRONLY)?;
                    groups.tasks.push(tasks);
                }
            }
            groups.views.push(View::of(hierarchy, path));
        }
        Ok(groups)
    }

    /// The clone enters the groups of version 1. `tasks` and `0`, not
    /// `cgroup.procs` and its number: the kernel then need not stop all forks
    /// of the host, which takes milliseconds.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        self.tasks.iter().try_for_each(enter)
    }

    /// Whoever calls it enters all of them.
    pub(crate) fn enter_all(&self) -> Result<(), Errno> {
        self.enter()?;
        self.enter_unified()
    }

    /// The clone enters the group of version 2, where it was not cloned into
    /// it.
    pub(crate) fn enter_unified(&self) -> Result<(), Errno> {
        let Some(directory) = &self.unified else {
            return Ok(());
        };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        enter(&openat(directory, c"cgroup.procs", flags, Mode::empty())?)
    }
}

/// Writes `0`, which is whoever writes.
fn enter(file: &OwnedFd) -> Result<(), Errno> {
    match write(file, b"0")? {
        1 => Ok(()),
        _ => Err(Errno::IO),
    }
}

impl View {
    fn of(hierarchy: &Hierarchy, path: &Path) -> Self {
        let name = hierarchy
            .mount
            .strip_prefix(MOUNTS)
            .unwrap_or(Path::new(""));
        let options = match hierarchy.version {
            Version::Two => None,
            Version::One => Some(options(hierarchy)),
        };
        View {
            name: name.to_string_lossy().into_owned(),
            options,
            path: path.to_path_buf(),
        }
    }
}

/// Options that mount a hierarchy of version 1.
fn options(hierarchy: &Hierarchy) -> String {
    let words: Vec<&str> = hierarchy
        .controllers
        .words()
        .map(|word| match word {
            "io" => "blkio",
            "name=systemd" => "none,name=systemd",
            word => word,
        })
        .collect();
    words.join(",")
}

fn descriptor(path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
        let error = std::io::Error::from(error);
        Error::new(
            Step::Groups,
            format!("cannot open {}: {error}", path.display()),
        )
    })
}
