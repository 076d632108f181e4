//! Mounts of type `cgroup`: the container's own groups, as its programs expect
//! them on a host of the same kind: version 2 at the place itself, version 1
//! and mixtures as directories of controllers.

use std::os::fd::OwnedFd;
use std::path::Path;

use croft_isolate::cgroups::{Hierarchy, Version};
use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::mounts::{Planned, attach, clone_tree, read_only};
use super::options::Options;
use super::resolve::InRoot;
use crate::error::At;
use crate::{Error, Groups, Step};

/// Name of the hierarchy of version 2 beside those of version 1.
const UNIFIED: &str = "unified";

/// Mounts them where `planned` says. `own` says that the container has a
/// cgroup namespace: its groups are then the roots of their hierarchies by
/// themselves.
pub fn mount(
    root: InRoot<'_>,
    planned: &Planned,
    groups: Option<Groups<'_>>,
    own: bool,
) -> Result<(), Error> {
    let what = || {
        format!(
            "mounting the control groups at {}",
            planned.destination.display()
        )
    };
    let Some(groups) = groups else {
        let text = format!("{}: the container has none", what());
        return Err(Error::new(Step::Mounts, text));
    };
    let pure = groups.hierarchies.is_pure();
    let view = View {
        groups,
        own,
        attr: MountAttrFlags::from_bits_retain(planned.options.set as _),
    };
    if pure {
        let Some(hierarchy) = groups.hierarchies.unified() else {
            return Ok(());
        };
        let tree = view.open(hierarchy).at(Step::Mounts, what)?;
        let place = planned.place(root, &tree)?;
        return planned.attach(&tree, &place);
    }
    // Its size is that of a few links.
    let mut above = Planned {
        destination: planned.destination.clone(),
        kind: "tmpfs".to_owned(),
        source: "tmpfs".into(),
        options: Options::parse(["mode=755"]),
        maps: None,
    };
    above.options.set = planned.options.set & !crate::sys::ATTR_RDONLY;
    above.options.propagation = planned.options.propagation.clone();
    let tree = above.open_new()?;
    let place = above.place(root, &tree)?;
    above.attach(&tree, &place)?;
    for hierarchy in groups.hierarchies.iter() {
        if view.own_path(hierarchy).is_none() {
            continue;
        }
        view.add(&tree, hierarchy).at(Step::Mounts, what)?;
    }
    if planned.options.set & crate::sys::ATTR_RDONLY != 0 {
        read_only(&tree).at(Step::Mounts, what)?;
    }
    Ok(())
}

/// Controllers by their names in version 1.
fn old_words(hierarchy: &Hierarchy) -> impl Iterator<Item = &'static str> {
    let words = hierarchy.controllers.words();
    words.map(|word| if word == "io" { "blkio" } else { word })
}

struct View<'a> {
    groups: Groups<'a>,
    own: bool,
    attr: MountAttrFlags,
}

impl View<'_> {
    /// The container's group in a hierarchy.
    fn own_path(&self, hierarchy: &Hierarchy) -> Option<&Path> {
        let beneath = |path: &&Path| path.starts_with(&hierarchy.mount);
        self.groups.group.paths().filter(beneath).find(|path| {
            // The unified hierarchy of a mixture is mounted beneath nothing of
            // its own; the longest mount that is a path's beginning is its.
            let longer = |other: &Hierarchy| {
                other.mount.starts_with(&hierarchy.mount)
                    && other.mount != hierarchy.mount
                    && path.starts_with(&other.mount)
            };
            !self.groups.hierarchies.iter().any(longer)
        })
    }

    /// A hierarchy as the container sees it, apart from any tree.
    fn open(&self, hierarchy: &Hierarchy) -> Result<OwnedFd, Errno> {
        if self.own {
            match self.open_own(hierarchy) {
                // Not in a user namespace that does not own the groups'.
                Err(Errno::PERM | Errno::BUSY | Errno::INVAL) => {}
                result => return result,
            }
        }
        let path = self.own_path(hierarchy).ok_or(Errno::NOENT)?;
        let tree = clone_tree(path, false)?;
        let attr = crate::sys::MountAttr {
            set: u64::from(self.attr.bits()),
            ..Default::default()
        };
        crate::sys::mount_setattr(&tree, false, &attr)?;
        Ok(tree)
    }

    fn open_own(&self, hierarchy: &Hierarchy) -> Result<OwnedFd, Errno> {
        let cloexec = FsOpenFlags::FSOPEN_CLOEXEC;
        let context = match hierarchy.version {
            Version::Two => fsopen(c"cgroup2", cloexec)?,
            Version::One => {
                let context = fsopen(c"cgroup", cloexec)?;
                for word in old_words(hierarchy) {
                    match word.strip_prefix("name=") {
                        Some(name) => {
                            fsconfig_set_flag(&context, c"none")?;
                            fsconfig_set_string(&context, c"name", name)?;
                        }
                        None => fsconfig_set_flag(&context, word)?,
                    }
                }
                context
            }
        };
        fsconfig_set_string(&context, c"source", c"cgroup")?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, self.attr)
    }

    /// Puts a hierarchy into the directory of all of them.
    fn add(&self, above: &OwnedFd, hierarchy: &Hierarchy) -> Result<(), Errno> {
        let words: Vec<&str> = old_words(hierarchy).collect();
        let name = match hierarchy.version {
            Version::Two => UNIFIED.to_owned(),
            // As it is called on the host; systemd's is after its name.
            Version::One => {
                let last = hierarchy.mount.file_name().and_then(|name| name.to_str());
                last.map_or_else(|| words.join(","), str::to_owned)
            }
        };
        let tree = self.open(hierarchy)?;
        mkdirat(above, name.as_str(), Mode::from_raw_mode(0o755))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(above, name.as_str(), flags, Mode::empty())?;
        attach(tree, place)?;
        if words.len() > 1 {
            for word in words {
                match symlinkat(name.as_str(), above, word) {
                    Err(Errno::EXIST) | Ok(()) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}
