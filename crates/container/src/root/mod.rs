//! The root of a container: what is mounted, made and hidden in it.
//!
//! ```text
//! Trees::open    what is of the host, as mounts apart from any tree: by the
//!    │           maker where the container's ids may not reach it, else by init
//! enter          the new root over the old one, in init's own mount namespace
//! fill           mounts in their order, /dev, what is masked
//! switch         pivot_root; the old root and all beneath are gone
//! ```

pub mod cgroup;
mod copy_up;
pub mod devices;
pub mod masks;
pub mod mounts;
pub mod options;
pub mod overlay;
pub mod resolve;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, UnmountFlags, fspick, unmount};

use crate::error::At;
use crate::namespaces::{CGROUP, PID, USER};
use crate::plan::Plan;
use crate::{Error, Root, Step};

use mounts::{Planned, attach, clone_tree, propagate, read_only};
use options::propagation;
use resolve::InRoot;

/// What of the host is in a container.
#[derive(Debug)]
pub struct Trees {
    /// The root.
    pub root: OwnedFd,
    /// What covers masked files, if any are masked.
    pub null: Option<OwnedFd>,
    /// Devices that cannot be made, in the order of [`devices::defaults`] and
    /// then the description's.
    pub devices: Vec<OwnedFd>,
    /// What is bound, in the order of the description; of init's own doing
    /// each is opened when its turn comes.
    pub binds: Vec<OwnedFd>,
}

/// Keeps a file system from ending with the last of its mounts, of which `mount`
/// is one: what has been written to it goes to the disk when this is dropped,
/// and not in the last moment of a container's init, whose parent waits for it.
/// Nothing where the kernel has no such handle for this process.
pub fn hold(mount: impl AsFd) -> Option<OwnedFd> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    fspick(mount, c"", flags).ok()
}

impl Trees {
    /// Opens the root, and all the rest if `all`. `ids` are the container's.
    pub fn open(plan: &Plan<'_>, ids: Option<BorrowedFd<'_>>, all: bool) -> Result<Self, Error> {
        let own = plan.namespaces.has(USER) && !all;
        let root = match plan.root {
            Root::Overlay(layers) => overlay::open(layers, ids, own)?,
            Root::Spec => {
                let path = &plan.root_path;
                let what = || format!("the root {}", path.display());
                let tree = clone_tree(path, true).at(Step::Mounts, what)?;
                if !resolve::is_directory(&tree).at(Step::Mounts, what)? {
                    let text = format!("{} is no directory", what());
                    return Err(Error::new(Step::Mounts, text));
                }
                tree
            }
        };
        let mut trees = Trees {
            root,
            null: None,
            devices: Vec::new(),
            binds: Vec::new(),
        };
        if !plan.masked.is_empty() {
            trees.null = Some(devices::null()?);
        }
        if all {
            if plan.binds_devices() {
                let nodes = devices::defaults().filter(|_| plan.fills_dev());
                for node in nodes.chain(plan.devices.iter().cloned()) {
                    trees.devices.push(node.open_host()?);
                }
            }
            let propagation = plan.propagation_of_binds();
            for mount in plan.mounts.iter().filter(|one| one.options.bind.is_some()) {
                trees.binds.push(mount.open_bind(ids, Some(propagation))?);
            }
            trees.part(plan).at(Step::Mounts, || "the host's mounts")?;
        }
        Ok(trees)
    }

    /// What was opened in the host's mount namespace is a peer of what it was
    /// copied from: mounts in it would be mounts of the host's.
    fn part(&self, plan: &Plan<'_>) -> Result<(), Errno> {
        // A root that is shared could not become one.
        let kind = match plan.propagation_of_binds() {
            libc::MS_SHARED => libc::MS_PRIVATE,
            kind => kind,
        };
        propagate(&self.root, kind, true)?;
        let single = self.devices.iter().chain(&self.null);
        single
            .into_iter()
            .try_for_each(|one| propagate(one, libc::MS_SLAVE, false))
    }

    /// Descriptors, to be handed over.
    pub fn handles(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.root.as_fd()];
        all.extend(self.null.iter().map(AsFd::as_fd));
        all.extend(self.devices.iter().map(AsFd::as_fd));
        all.extend(self.binds.iter().map(AsFd::as_fd));
        all
    }

    /// The other way.
    pub fn take(plan: &Plan<'_>, handles: Vec<OwnedFd>) -> Option<Self> {
        let mut handles = handles.into_iter();
        let root = handles.next()?;
        let null = match plan.masked.is_empty() {
            true => None,
            false => Some(handles.next()?),
        };
        let mut devices = 0;
        if plan.binds_devices() {
            devices = plan.devices.len();
            if plan.fills_dev() {
                devices += devices::defaults().count();
            }
        }
        Some(Trees {
            root,
            null,
            devices: handles.by_ref().take(devices).collect(),
            binds: handles.collect(),
        })
    }
}

/// Puts the new root over the old one, in a mount namespace of its own.
/// Absolute paths go on leading to the old one.
pub fn enter(plan: &Plan<'_>, root: &OwnedFd) -> Result<(), Error> {
    let what = || "the container's root";
    if plan.asked_propagation() == Some(libc::MS_SHARED) {
        propagate(root, libc::MS_PRIVATE, true).at(Step::Mounts, what)?;
        let old = old_root().at(Step::Mounts, what)?;
        propagate(old, libc::MS_PRIVATE, false).at(Step::Mounts, what)?;
    }
    let old = old_root().at(Step::Mounts, what)?;
    attach(root, old).at(Step::Mounts, what)
}

/// Keeps the host's mount table from what happens here: to be done before a
/// tree is opened.
pub fn isolate(plan: &Plan<'_>) -> Result<(), Error> {
    let kind = match plan.asked_propagation() {
        Some(libc::MS_SHARED) => return Ok(()),
        None | Some(libc::MS_SLAVE) => libc::MS_SLAVE,
        Some(_) => libc::MS_PRIVATE,
    };
    let old = old_root().at(Step::Mounts, || "the old root")?;
    propagate(old, kind, true).at(Step::Mounts, || "the old root")
}

fn old_root() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, c"/", flags, Mode::empty())
}

/// Mounts, makes and hides what the description says.
pub fn fill(plan: &Plan<'_>, trees: Trees) -> Result<OwnedFd, Error> {
    let root = InRoot(trees.root.as_fd());
    let mut binds = trees.binds.into_iter();
    let mut late = Vec::new();
    for mount in &plan.mounts {
        if mount.options.remount {
            mount.remount(root)?;
            continue;
        }
        if matches!(mount.kind.as_str(), "cgroup" | "cgroup2") && mount.options.bind.is_none() {
            cgroup::mount(root, mount, plan.groups, plan.namespaces.has(CGROUP))?;
            continue;
        }
        let tree = match mount.options.bind {
            Some(_) => match binds.next() {
                Some(tree) => tree,
                None => mount.open_bind(None, None)?,
            },
            None => open_new(plan, mount)?,
        };
        let place = mount.place(root, &tree)?;
        if mount.options.copy_up && mount.kind == "tmpfs" {
            let what = || format!("copying {} into a tmpfs", mount.destination.display());
            copy_up::copy(&place, &tree).at(Step::Mounts, what)?;
        }
        mount.attach(&tree, &place)?;
        if mount.is_late() {
            late.push(tree);
        }
    }
    let mut devices = trees.devices;
    let bound = plan.binds_devices();
    if plan.fills_dev() {
        let own = devices.split_off(devices::defaults().count().min(devices.len()));
        devices::fill(root, bound.then_some(devices.as_slice()))?;
        devices = own;
    }
    for (index, node) in plan.devices.iter().enumerate() {
        // The host's own, which stay as they are.
        if !plan.fills_dev() && node.path.starts_with("/dev") {
            continue;
        }
        match devices.get(index) {
            Some(device) => node.bind(root, device)?,
            None if bound => node.bind(root, &node.open_host()?)?,
            None => node.make(root)?,
        }
    }
    for cover in plan.covers {
        let what = || format!("covering {}", cover.destination.display());
        match root.find(cover.destination) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            found => {
                let place = found.at(Step::Mounts, what)?;
                attach(cover.mount, place).at(Step::Mounts, what)?;
            }
        }
    }
    masks::protect(root, plan.read_only)?;
    if let Some(null) = trees.null {
        masks::mask(root, plan.masked, null)?;
    }
    for mount in late {
        read_only(mount).at(Step::Mounts, || "making a tmpfs read-only")?;
    }
    Ok(trees.root)
}

/// A file system of the container's own, or the host's where the container
/// does not own the namespace that it shows.
fn open_new(plan: &Plan<'_>, mount: &Planned) -> Result<OwnedFd, Error> {
    match mount.open_new() {
        Err(error) if plan.namespaces.has(USER) => {
            let path = match mount.kind.as_str() {
                "sysfs" => Path::new("/sys"),
                // The host's would show the host's processes.
                "proc" if !plan.namespaces.has(PID) => Path::new("/proc"),
                _ => return Err(error),
            };
            let Ok(tree) = clone_tree(path, true) else {
                return Err(error);
            };
            let attr = mount.options.attr();
            crate::sys::mount_setattr(&tree, true, &attr)
                .at(Step::Mounts, || format!("{error}; the host's"))?;
            Ok(tree)
        }
        result => result,
    }
}

/// Makes it the root, and leaves the old one.
pub fn switch(plan: &Plan<'_>, root: &OwnedFd) -> Result<(), Error> {
    let what = || "changing to the container's root";
    let change = || -> Result<(), Errno> {
        if !plan.pivot {
            // The new root is over the old one already: an old root that is
            // the kernel's first one cannot be moved away.
            rustix::process::fchdir(root)?;
            rustix::process::chroot(c".")?;
            return rustix::process::chdir(c"/");
        }
        let old = old_root()?;
        rustix::process::fchdir(root)?;
        rustix::process::pivot_root(c".", c".")?;
        rustix::process::fchdir(&old)?;
        if plan.asked_propagation() == Some(libc::MS_SHARED) {
            propagate(&old, libc::MS_SLAVE, true)?;
        }
        unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")
    };
    change().at(Step::Mounts, what)?;
    if let Some((kind, recursive)) = plan.propagation.and_then(propagation) {
        propagate(root, kind, recursive).at(Step::Mounts, || "the root's propagation")?;
    }
    if plan.root_read_only {
        read_only(root).at(Step::Mounts, || "making the root read-only")?;
    }
    Ok(())
}

/// The root of a container without a mount namespace of its own.
pub fn change_only(plan: &Plan<'_>) -> Result<OwnedFd, Error> {
    let what = || format!("the root {}", plan.root_path.display());
    let root = resolve::directory(&plan.root_path).at(Step::Mounts, what)?;
    change_to(&root).at(Step::Mounts, what)?;
    Ok(root)
}

/// Makes a directory this process's root, in the mount namespace that it is in.
pub fn change_to(root: &OwnedFd) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}
