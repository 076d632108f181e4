//! Mounts of type `cgroup`: the container's own groups, as its programs expect
//! them on a host of the same kind: version 2 at the place itself, version 1
//! and mixtures as directories of controllers.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::symlinkat;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::mounts::{Planned, attach, clone_tree, read_only};
use super::options::Options;
use super::resolve::{InRoot, Kind};
use crate::error::At;
use crate::sys::{ATTR_RDONLY, MountAttr, mount_setattr};
use crate::{Error, Groups, Step, View};

/// Mounts them where `planned` says. `own` says that the container has a
/// cgroup namespace: its groups are then the roots of their hierarchies by
/// themselves.
pub fn mount(root: InRoot<'_>, planned: &Planned, groups: &Groups, own: bool) -> Result<(), Error> {
    let place = planned.destination.display();
    let what = || format!("mounting the control groups at {place}");
    if let [view] = groups.views.as_slice()
        && view.name.is_empty()
    {
        let tree = open(view, planned, own).at(Step::Mounts, what)?;
        let place = planned.place(root, &tree)?;
        return planned.attach(&tree, &place);
    }
    // It has a few directories and links, and can be written to until then.
    let above = Planned {
        destination: planned.destination.clone(),
        kind: "tmpfs".to_owned(),
        source: "cgroup".into(),
        options: Options {
            set: attributes(planned) & !ATTR_RDONLY,
            propagation: planned.options.propagation.clone(),
            ..Options::parse(["mode=755"])
        },
        maps: None,
    };
    let tree = above.open_new()?;
    let place = above.place(root, &tree)?;
    above.attach(&tree, &place)?;
    for view in groups.views.iter().filter(|view| !view.name.is_empty()) {
        add(&tree, view, planned, own).at(Step::Mounts, || format!("{}: {}", what(), view.name))?;
    }
    if attributes(planned) & ATTR_RDONLY != 0 {
        read_only(&tree).at(Step::Mounts, what)?;
    }
    Ok(())
}

/// Of the mount and all beneath: of its own doing there is nothing else.
fn attributes(planned: &Planned) -> u64 {
    planned.options.set | planned.options.set_all
}

/// A hierarchy as the container sees it, apart from any tree.
fn open(view: &View, planned: &Planned, own: bool) -> Result<OwnedFd, Errno> {
    let set = attributes(planned);
    if own {
        match open_own(view, MountAttrFlags::from_bits_retain(set as _)) {
            // Not where the groups' namespace is not the container's own, or
            // what is to be mounted is not what is mounted on the host.
            Err(Errno::PERM | Errno::BUSY | Errno::INVAL) => {}
            result => return result,
        }
    }
    let tree = clone_tree(&view.path, false)?;
    let attr = MountAttr {
        set,
        ..MountAttr::default()
    };
    mount_setattr(&tree, false, &attr)?;
    Ok(tree)
}

fn open_own(view: &View, attr: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let cloexec = FsOpenFlags::FSOPEN_CLOEXEC;
    let context = match &view.options {
        None => fsopen(c"cgroup2", cloexec)?,
        Some(options) => {
            let context = fsopen(c"cgroup", cloexec)?;
            for word in options.split(',') {
                match word.split_once('=') {
                    Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                    None => fsconfig_set_flag(&context, word)?,
                }
            }
            context
        }
    };
    fsconfig_set_string(&context, c"source", c"cgroup")?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attr)
}

/// Puts a hierarchy into the directory of all of them.
fn add(above: &OwnedFd, view: &View, planned: &Planned, own: bool) -> Result<(), Errno> {
    let tree = open(view, planned, own)?;
    let place = InRoot(above.as_fd()).ensure(Path::new(&view.name), Kind::Directory)?;
    attach(tree, place)?;
    // `cpu` is `cpu,cpuacct`, and the other way round.
    let words: Vec<&str> = view.name.split(',').collect();
    if words.len() > 1 {
        for word in words {
            match symlinkat(view.name.as_str(), above, word) {
                Err(Errno::EXIST) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
