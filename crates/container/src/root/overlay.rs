//! A root of layers.

use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use rustix::process::{WaitOptions, waitpid};

use super::mounts::{attach, clone_tree, map_ids, propagate};
use super::old_root;
use super::resolve::directory;
use crate::channel::{self, Message, receive, send};
use crate::error::At;
use crate::launch::refuse;
use crate::namespaces::MOUNT;
use crate::{Error, OverlayRoot, Step, sys};

/// Most layers: as many as images have.
pub const LAYERS: usize = 128;
/// Most layers in one parameter of fsconfig(2), which has 255 bytes, as numbers
/// of three digits. More are given one by one, which older kernels do not know.
const AT_ONCE: usize = 60;

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
    let what = || format!("the layers of {}", root.upper.display());
    let made = match mount(&lowers, &upper, &work, own) {
        Err(Errno::INVAL) if ids.is_some() => elsewhere(root, &lowers, own),
        result => result.at(Step::Mounts, what),
    };
    made.map_err(|error| match lowers.len() > AT_ONCE {
        true => Error::new(
            Step::Mounts,
            format!("{error}; it has more than {AT_ONCE} layers, which needs a newer kernel"),
        ),
        false => error,
    })
}

/// Mounts it in a mount namespace that has the layers. On older kernels,
/// Debian 12's among them, a mount that is in no namespace is no layer; what
/// is made there is apart from any tree all the same. A process of its own
/// goes there, and ends, so that this one stays where it is.
fn elsewhere(root: &OverlayRoot, lowers: &[OwnedFd], own: bool) -> Result<OwnedFd, Error> {
    let what = || format!("the layers of {}", root.upper.display());
    let (ours, theirs) = channel::pair().at(Step::Mounts, what)?;
    let Some((pid, _)) = sys::clone3(0, None).at(Step::Mounts, what)? else {
        drop(ours);
        let made = || -> Result<(), Errno> {
            sys::unshare(MOUNT)?;
            let place = old_root()?;
            propagate(&place, libc::MS_PRIVATE, true)?;
            for layer in lowers {
                attach(layer, &place)?;
            }
            // In this namespace, as the others.
            let (upper, work) = (directory(&root.upper)?, directory(&root.work)?);
            let tree = mount(lowers, &upper, &work, own)?;
            send(&theirs, &Message::Go, &[tree.as_fd()])
        };
        match made().at(Step::Mounts, what) {
            Ok(()) => sys::leave(0),
            Err(error) => refuse(&theirs, error),
        }
    };
    drop(theirs);
    let answer = receive(&ours);
    // It ends whatever it said.
    let _ = waitpid(Some(pid), WaitOptions::empty());
    match answer.at(Step::Mounts, what)? {
        Some((Message::Go, mut handles)) => handles
            .pop()
            .ok_or_else(|| Error::new(Step::Mounts, "the root's maker is confused")),
        Some((Message::Failed(error), _)) => Err(error),
        _ => Err(Error::new(Step::Mounts, "the root's maker ended")),
    }
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
        if list.len() <= AT_ONCE {
            fsconfig_set_string(&context, c"lowerdir", list.join(":").as_str())?;
        } else {
            for one in &list {
                fsconfig_set_string(&context, c"lowerdir+", one.as_str())?;
            }
        }
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
