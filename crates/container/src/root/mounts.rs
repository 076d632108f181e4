//! Mounts of a description. Each is made apart from the tree, with all its
//! attributes, and put in place when it is complete: nobody ever sees it half
//! done, and nothing of it stays when its maker is killed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::options::Options;
use super::resolve::{InRoot, Kind, is_directory};
use crate::error::At;
use crate::ids::Maps;
use crate::sys::{ATTR_IDMAP, ATTR_RDONLY, MountAttr, mount_setattr};
use crate::{Error, Step};

/// A mount, understood.
#[derive(Debug)]
pub struct Planned {
    /// Where, in the root.
    pub destination: PathBuf,
    /// Type of its file system; not of a bind.
    pub kind: String,
    /// What is bound, or the name of what is mounted.
    pub source: PathBuf,
    pub options: Options,
    /// Ids of its own; without, an id-mapped mount has the container's.
    pub maps: Option<Maps>,
}

impl Planned {
    /// Of a description. Sources that are relative begin at the bundle.
    pub fn new(mount: &Mount, bundle: &Path) -> Result<Self, Error> {
        let given = mount.options().iter().flatten().map(String::as_str);
        let mut options = Options::parse(given);
        let kind = mount.typ().clone().unwrap_or_default();
        if kind == "bind" && options.bind.is_none() {
            options.bind = Some(false);
        }
        let mut source = mount.source().clone().unwrap_or_default();
        if options.bind.is_some() {
            source = bundle.join(source);
        }
        let maps = match (mount.uid_mappings(), mount.gid_mappings()) {
            (Some(users), Some(groups)) if !users.is_empty() => Some(Maps::new(users, groups)?),
            _ => None,
        };
        if maps.is_some() && options.id_map.is_none() {
            options.id_map = Some(false);
        }
        let planned = Planned {
            destination: mount.destination().clone(),
            kind,
            source,
            options,
            maps,
        };
        planned.check()?;
        Ok(planned)
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |text: &str| {
            let place = self.destination.display();
            Err(Error::new(Step::Spec, format!("the mount {place}: {text}")))
        };
        if self.destination.as_os_str().is_empty() {
            return wrong("it has no destination");
        }
        let bind = self.options.bind.is_some();
        if bind && self.source.as_os_str().is_empty() {
            return wrong("a bind needs a source");
        }
        if !bind && !self.options.remount && self.kind.is_empty() {
            return wrong("it has no type");
        }
        if self.options.id_map.is_some() && !bind {
            return wrong("only binds can have their ids mapped");
        }
        Ok(())
    }

    fn what(&self) -> String {
        let place = self.destination.display();
        match self.options.bind {
            Some(_) => format!("mounting {} at {place}", self.source.display()),
            None => format!("mounting {} at {place}", self.kind),
        }
    }

    /// What is bound, apart from any tree, with its attributes.
    ///
    /// `ids` is the user namespace that ids are mapped by; `propagation` what
    /// it has unless its options say otherwise.
    pub fn open_bind(
        &self,
        ids: Option<BorrowedFd<'_>>,
        propagation: Option<u64>,
    ) -> Result<OwnedFd, Error> {
        let what = || self.what();
        let tree = clone_tree(&self.source, self.options.bind == Some(true));
        let tree = tree.at(Step::Mounts, what)?;
        if let Some(propagation) = propagation {
            let attr = MountAttr {
                propagation,
                ..MountAttr::default()
            };
            mount_setattr(&tree, true, &attr).at(Step::Mounts, what)?;
        }
        if let Some(all) = self.options.id_map {
            let own = self.maps.as_ref().map(Maps::namespace).transpose()?;
            let Some(userns) = own.as_ref().map(AsFd::as_fd).or(ids) else {
                let text = format!("{}: there are no ids to map by", what());
                return Err(Error::new(Step::Mounts, text));
            };
            map_ids(&tree, userns, all).at(Step::Mounts, what)?;
        }
        self.set_attributes(&tree).at(Step::Mounts, what)?;
        Ok(tree)
    }

    fn set_attributes(&self, tree: &OwnedFd) -> Result<(), Errno> {
        for (attr, recursive) in [
            (self.options.attr_all(), true),
            (self.options.attr(), false),
        ] {
            if attr.is_nothing() {
                continue;
            }
            match mount_setattr(tree, recursive, &attr) {
                // What is locked stays as it is (mount_namespaces(7)); to have
                // more rights than the host gives is not refused, only not
                // given.
                Err(Errno::PERM) if attr.clear != 0 => {
                    let less = MountAttr { clear: 0, ..attr };
                    if !less.is_nothing() {
                        mount_setattr(tree, recursive, &less)?;
                    }
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// A file system of its own, apart from any tree. A tmpfs can be written
    /// to for now, as others may be mounted in it.
    pub fn open_new(&self) -> Result<OwnedFd, Error> {
        let what = || self.what();
        let context = fsopen(self.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC);
        let context = context.at(Step::Mounts, what)?;
        let made = || -> Result<OwnedFd, Errno> {
            if !self.source.as_os_str().is_empty() {
                fsconfig_set_string(&context, c"source", self.source.as_path())?;
            }
            for (key, value) in &self.options.data {
                match value {
                    Some(value) => {
                        fsconfig_set_string(&context, key.as_str(), value.as_str())?;
                    }
                    None => fsconfig_set_flag(&context, key.as_str())?,
                }
            }
            fsconfig_create(&context)?;
            let mut set = self.options.set | self.options.set_all;
            if self.is_late() {
                set &= !ATTR_RDONLY;
            }
            let attr = MountAttrFlags::from_bits_retain(set as _);
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attr)
        };
        match made() {
            Ok(mount) => Ok(mount),
            Err(error) => {
                let said = complaint(&context);
                Err(Error::new(
                    Step::Mounts,
                    format!("{}: {error}{said}", what()),
                ))
            }
        }
    }

    /// Whether it becomes read-only only when everything is mounted.
    pub fn is_late(&self) -> bool {
        let read_only = (self.options.set | self.options.set_all) & ATTR_RDONLY != 0;
        read_only && self.options.bind.is_none() && self.kind == "tmpfs"
    }

    /// Where it goes.
    pub fn place(&self, root: InRoot<'_>, tree: &OwnedFd) -> Result<OwnedFd, Error> {
        let what = || self.what();
        let directory = is_directory(tree).at(Step::Mounts, what)?;
        // procfs and sysfs are what programs trust to be that: a link in their
        // place could lead them, and us, elsewhere.
        if matches!(self.kind.as_str(), "proc" | "sysfs") {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let mode = rustix::fs::Mode::empty();
            match openat2(root.0, &self.destination, flags, mode, resolve) {
                Err(Errno::LOOP) => {
                    let text = format!(
                        "{}: {} must be mounted on ordinary directory, and there is a symbolic link",
                        what(),
                        self.kind
                    );
                    return Err(Error::new(Step::Mounts, text));
                }
                Err(Errno::NOENT) => {}
                found => return found.at(Step::Mounts, what),
            }
        }
        let kind = if directory {
            Kind::Directory
        } else {
            Kind::File
        };
        root.ensure(&self.destination, kind).at(Step::Mounts, what)
    }

    /// Puts it in place.
    pub fn attach(&self, tree: &OwnedFd, place: &OwnedFd) -> Result<(), Error> {
        let what = || self.what();
        attach(tree, place).at(Step::Mounts, what)?;
        for (propagation, recursive) in &self.options.propagation {
            let attr = MountAttr {
                propagation: *propagation,
                ..MountAttr::default()
            };
            mount_setattr(tree, *recursive, &attr).at(Step::Mounts, what)?;
        }
        Ok(())
    }

    /// Changes what is mounted at its destination.
    pub fn remount(&self, root: InRoot<'_>) -> Result<(), Error> {
        let what = || format!("changing the mount {}", self.destination.display());
        let mount = root.find(&self.destination).at(Step::Mounts, what)?;
        self.set_attributes(&mount).at(Step::Mounts, what)
    }
}

/// What the file system had to say of its failure: its last words.
fn complaint(context: &OwnedFd) -> String {
    let mut bytes = [0_u8; 512];
    match rustix::io::read(context, &mut bytes) {
        Ok(length) => {
            let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
            let text = text.trim();
            // A level and a space come first (fsopen(2)).
            format!(" ({})", text.get(2..).unwrap_or(text))
        }
        Err(_) => String::new(),
    }
}

/// A copy of what is mounted at a path, apart from any tree.
pub fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
}

/// The same, of what a handle is of.
pub fn clone_handle(handle: impl AsFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(handle.as_fd(), c"", flags)
}

/// Puts a mount at what a handle is of.
pub fn attach(tree: impl AsFd, place: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree.as_fd(), c"", place.as_fd(), c"", flags)
}

/// Maps the ids of a mount that is in no tree yet, as a user namespace does.
pub fn map_ids(tree: impl AsFd, userns: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let attr = MountAttr {
        set: ATTR_IDMAP,
        userns: userns.as_raw_fd() as u64,
        ..MountAttr::default()
    };
    mount_setattr(tree, recursive, &attr)
}

/// Makes a mount read-only.
pub fn read_only(mount: impl AsFd) -> Result<(), Errno> {
    let attr = MountAttr {
        set: ATTR_RDONLY,
        ..MountAttr::default()
    };
    mount_setattr(mount, false, &attr)
}

/// Sets the propagation of a mount.
pub fn propagate(mount: impl AsFd, kind: u64, recursive: bool) -> Result<(), Errno> {
    let attr = MountAttr {
        propagation: kind,
        ..MountAttr::default()
    };
    mount_setattr(mount, recursive, &attr)
}
