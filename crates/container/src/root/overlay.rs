//! A root of layers.

use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::mounts::{clone_tree, map_ids, propagate};
use super::resolve::directory;
use crate::error::At;
use crate::{Error, OverlayRoot, Step};

/// Most layers: what fits into one parameter of fsconfig(2), 255 bytes, as
/// numbers of three digits.
pub const LAYERS: usize = 60;

/// Mounts it, apart from any tree. Layers that are never written to have their
/// ids mapped by `ids`: the file system of layers cannot be mapped as a whole,
/// those below can (`Documentation/filesystems/overlayfs.rst`).
///
/// `own` says that the mount is made in the container's user namespace, where
/// the kernel keeps its notes in `user.*` attributes.
pub fn open(root: &OverlayRoot, ids: Option<BorrowedFd<'_>>, own: bool) -> Result<OwnedFd, Error> {
    if root.lowers.is_empty() || root.lowers.len() > LAYERS {
        let text = format!("a root has 1 to {LAYERS} layers, not {}", root.lowers.len());
        return Err(Error::new(Step::Spec, text));
    }
    let mut lowers = Vec::with_capacity(root.lowers.len());
    // The highest comes first.
    for path in root.lowers.iter().rev() {
        let what = || format!("the layer {}", path.display());
        let layer = match ids {
            None => directory(path).at(Step::Mounts, what)?,
            Some(ids) => {
                let tree = clone_tree(path, false).at(Step::Mounts, what)?;
                propagate(&tree, libc::MS_PRIVATE, false).at(Step::Mounts, what)?;
                map_ids(&tree, ids, false).at(Step::Mounts, || {
                    format!("{}: its ids cannot be mapped on this file system", what())
                })?;
                tree
            }
        };
        lowers.push(layer);
    }
    let upper = directory(&root.upper).at(Step::Mounts, || root.upper.display())?;
    let work = directory(&root.work).at(Step::Mounts, || root.work.display())?;
    mount(&lowers, &upper, &work, own).at(Step::Mounts, || {
        format!("the layers of {}", root.upper.display())
    })
}

fn mount(lowers: &[OwnedFd], upper: &OwnedFd, work: &OwnedFd, own: bool) -> Result<OwnedFd, Errno> {
    // Paths are the layers' numbers in /proc/self/fd: short, without the
    // characters that have a meaning in a list, and the very directories that
    // were opened.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let before = openat(CWD, c".", flags, Mode::empty())?;
    rustix::process::chdir(c"/proc/self/fd")?;
    let made = || -> Result<OwnedFd, Errno> {
        let number = |file: &OwnedFd| file.as_raw_fd().to_string();
        let list: Vec<String> = lowers.iter().map(number).collect();
        let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, c"source", c"croft")?;
        fsconfig_set_string(&context, c"lowerdir", list.join(":").as_str())?;
        fsconfig_set_string(&context, c"upperdir", number(upper).as_str())?;
        fsconfig_set_string(&context, c"workdir", number(work).as_str())?;
        if own {
            fsconfig_set_flag(&context, c"userxattr")?;
        }
        fsconfig_create(&context)?;
        let attr = MountAttrFlags::empty();
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)
    };
    let result = made();
    rustix::process::fchdir(&before)?;
    result
}
