//! Looking into layers that lie over each other, as overlayfs will show them,
//! without mounting anything.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::{self, Errno};

use super::attributes::Attributes;

/// What says that a directory hides those below it: overlayfs' own attribute
/// for root, and for others.
pub const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// Its value.
pub const YES: &[u8] = b"y";
/// Longest list of names of extended attributes, and longest value of one, in
/// bytes (xattr(7)).
const LIST: usize = 64 << 10;
const VALUE: usize = 64 << 10;
/// Most symbolic links on the way to a file (path_resolution(7)).
const LINKS: usize = 40;
/// Most names in one directory that are listed.
const NAMES: usize = 1 << 20;

/// Trees over each other.
#[derive(Debug, Default)]
pub struct Stack {
    /// Their roots, the highest first.
    roots: Vec<OwnedFd>,
}

/// What is at a path.
#[derive(Debug)]
pub struct Found {
    /// The directories that it is in, the highest first; more than one only if
    /// it is a directory of which others are below.
    places: Vec<OwnedFd>,
    /// Its name there; `.` if it is the root.
    name: OsString,
    /// What it is.
    pub about: Stat,
}

impl Found {
    /// Its kind.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.about.st_mode)
    }

    /// Opens it for reading; it is a regular file or a directory.
    pub fn open(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let place = self.places.first().ok_or(Errno::NOENT)?;
        openat(place, &self.name, flags, Mode::empty()).map(File::from)
    }

    /// Its attributes; `file` is it, open.
    pub(crate) fn attributes(&self, file: &File) -> io::Result<Attributes> {
        let mut extended = BTreeMap::new();
        let mut names = vec![0u8; LIST];
        let length = match rustix::fs::flistxattr(file, names.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => 0,
            Err(error) => return Err(error),
        };
        let names = names.get(..length).unwrap_or_default();
        for name in names.split(|byte| *byte == 0) {
            let Ok(name) = str::from_utf8(name) else {
                continue;
            };
            let kept = name == "security.capability"
                || (name.starts_with("user.") && !name.starts_with("user.overlay."));
            if !kept {
                continue;
            }
            let mut value = vec![0u8; VALUE];
            let length = rustix::fs::fgetxattr(file, name, value.as_mut_slice())?;
            value.truncate(length);
            extended.insert(name.to_owned(), value);
        }
        Ok(Attributes {
            extended,
            ..self.plain_attributes()
        })
    }

    /// Its attributes but for the extended ones.
    pub(crate) fn plain_attributes(&self) -> Attributes {
        let about = &self.about;
        Attributes {
            mode: about.st_mode & 0o7777,
            uid: about.st_uid,
            gid: about.st_gid,
            mtime: (
                about.st_mtime,
                u32::try_from(about.st_mtime_nsec).unwrap_or(0),
            ),
            extended: BTreeMap::new(),
        }
    }

    /// Where it links to, if it is a symbolic link.
    pub fn target(&self) -> io::Result<PathBuf> {
        let place = self.places.first().ok_or(Errno::NOENT)?;
        let target = readlinkat(place, &self.name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// It and, of a directory, those that are merged with it: the highest
    /// first.
    fn directories(&self) -> io::Result<Vec<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let places = self.places.iter();
        places
            .map(|place| openat(place, &self.name, flags, Mode::empty()))
            .collect()
    }

    /// The names in a directory.
    pub fn names(&self) -> io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        let mut hidden = BTreeSet::new();
        for directory in self.directories()? {
            let mut here = BTreeSet::new();
            for entry in Dir::read_from(&directory)? {
                let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
                if name != "." && name != ".." && !hidden.contains(&name) {
                    here.insert(name);
                }
            }
            for name in here {
                if !names.contains(&name) && is_whiteout(directory.as_fd(), &name)? {
                    hidden.insert(name);
                } else {
                    names.insert(name);
                }
            }
            if names.len() > NAMES {
                return Err(Errno::TOOBIG);
            }
        }
        Ok(names)
    }

    /// What has a name in a directory.
    pub fn child(&self, name: &OsStr) -> io::Result<Option<Found>> {
        look(&self.directories()?, name)
    }
}

impl Stack {
    /// Of these trees, the lowest first.
    pub fn open<P: AsRef<Path>>(lowers: &[P]) -> std::io::Result<Stack> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let roots = lowers
            .iter()
            .rev()
            .map(|root| rustix::fs::open(root.as_ref(), flags, Mode::empty()))
            .collect::<io::Result<_>>()?;
        Ok(Stack { roots })
    }

    /// Whether there is no tree.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// What is at a path below the root, no symbolic link followed: of the way
    /// neither. `None` if there is nothing.
    pub fn find(&self, path: &Path) -> io::Result<Option<Found>> {
        let mut found = self.root()?;
        for part in path.components() {
            let Component::Normal(name) = part else {
                return Err(Errno::INVAL);
            };
            let Some(above) = found else { return Ok(None) };
            if above.kind() != FileType::Directory {
                return Ok(None);
            }
            found = look(&above.directories()?, name)?;
        }
        Ok(found)
    }

    /// What is at a path as a process in the container would reach it: links
    /// are followed, and none leads out of the root.
    pub fn resolve(&self, path: &Path) -> io::Result<Option<Found>> {
        let mut rest: Vec<OsString> = parts(path);
        let mut place = PathBuf::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                place.pop();
                continue;
            }
            let next = place.join(&part);
            let Some(found) = self.find(&next)? else {
                return Ok(None);
            };
            if found.kind() != FileType::Symlink {
                place = next;
                continue;
            }
            links += 1;
            if links > LINKS {
                return Err(Errno::LOOP);
            }
            let target = found.target()?;
            if target.is_absolute() {
                place = PathBuf::new();
            }
            rest.extend(parts(&target));
        }
        self.find(&place)
    }

    fn root(&self) -> io::Result<Option<Found>> {
        let Some(first) = self.roots.first() else {
            return Ok(None);
        };
        let about = statat(first, ".", AtFlags::empty())?;
        let mut places = Vec::new();
        for root in &self.roots {
            places.push(copy(root.as_fd())?);
        }
        Ok(Some(Found {
            places,
            name: ".".into(),
            about,
        }))
    }
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut parts: Vec<OsString> = parts.collect();
    parts.reverse();
    parts
}

/// What has a name in merged directories, the highest first.
fn look(directories: &[OwnedFd], name: &OsStr) -> io::Result<Option<Found>> {
    let mut found: Option<Found> = None;
    for directory in directories {
        let about = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => about,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        };
        let kind = FileType::from_raw_mode(about.st_mode);
        if hides(&about) {
            break;
        }
        let is_directory = kind == FileType::Directory;
        match &mut found {
            Some(_) if !is_directory => break,
            Some(found) => found.places.push(copy(directory.as_fd())?),
            None => {
                found = Some(Found {
                    places: vec![copy(directory.as_fd())?],
                    name: name.to_owned(),
                    about,
                });
            }
        }
        if !is_directory || is_opaque(directory.as_fd(), name)? {
            break;
        }
    }
    Ok(found)
}

/// Whether it is a whiteout: a device with the number 0:0 (overlayfs.rst).
fn hides(about: &Stat) -> bool {
    FileType::from_raw_mode(about.st_mode) == FileType::CharacterDevice && about.st_rdev == 0
}

fn is_whiteout(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|about| hides(&about))
}

fn is_opaque(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(directory, name, flags, Mode::empty())?;
    for attribute in OPAQUE {
        let mut value = [0u8; 2];
        match rustix::fs::fgetxattr(&directory, attribute, &mut value) {
            Ok(1) if value.starts_with(YES) => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn copy(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, 0)
}
