//! Paths of a container that show nothing, or that cannot be written to
//! (runtime-spec, `config-linux.md`, Masked Paths, Readonly Paths).
//!
//! A path is opened once, as a handle, and what is put over it is put over
//! that: who swaps it for a link in between hides something else of its own.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::mounts::{attach, clone_handle, read_only};
use super::resolve::{InRoot, is_directory};
use crate::error::At;
use crate::{Error, Step};

/// What covers files and directories.
#[derive(Debug)]
struct Cover {
    mount: OwnedFd,
    /// It is in the tree: from now on copies of it are used.
    used: bool,
}

impl Cover {
    fn put(&mut self, place: &OwnedFd) -> Result<(), Errno> {
        if self.used {
            return attach(clone_handle(&self.mount, false)?, place);
        }
        attach(&self.mount, place)?;
        self.used = true;
        Ok(())
    }
}

/// Covers paths; those that are not there need none. `null` is the host's null
/// device.
pub fn mask(root: InRoot<'_>, paths: &[String], null: OwnedFd) -> Result<(), Error> {
    let mut file = Cover {
        mount: null,
        used: false,
    };
    let mut directory = None;
    for path in paths {
        let what = || format!("masking {path}");
        let place = match root.find(Path::new(path)) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            found => found.at(Step::Mounts, what)?,
        };
        if !is_directory(&place).at(Step::Mounts, what)? {
            file.put(&place).at(Step::Mounts, what)?;
            continue;
        }
        if directory.is_none() {
            directory = Some(Cover {
                mount: empty().at(Step::Mounts, what)?,
                used: false,
            });
        }
        if let Some(directory) = &mut directory {
            directory.put(&place).at(Step::Mounts, what)?;
        }
    }
    Ok(())
}

/// A directory with nothing in it, for ever.
fn empty() -> Result<OwnedFd, Errno> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [(c"source", c"tmpfs"), (c"size", c"0"), (c"mode", c"755")] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attr = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attr)
}

/// Makes paths read-only; those that are not there need not be.
pub fn protect(root: InRoot<'_>, paths: &[String]) -> Result<(), Error> {
    for path in paths {
        let what = || format!("making {path} read-only");
        let place = match root.find(Path::new(path)) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            found => found.at(Step::Mounts, what)?,
        };
        let put = clone_handle(&place, true).and_then(|tree| {
            read_only(&tree)?;
            attach(tree, &place)
        });
        put.at(Step::Mounts, what)?;
    }
    Ok(())
}
