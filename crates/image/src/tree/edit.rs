//! Changes to a tree before it becomes an image. Paths are [`clean`] ones of
//! Croft's own making, or are made clean.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, readlinkat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::walk::{Walker, clean};
use super::{Attributes, Kind, Tree};
use crate::Error;

/// Most symbolic links that a path may go through.
const LINKS: usize = 32;
/// Longest file that is read whole.
const LONGEST: u64 = 16 << 20;

impl Tree {
    fn walker(&self) -> Result<Walker, Error> {
        Walker::new(&self.root).map_err(Error::io("open directory", &self.root))
    }

    fn enter(&mut self, place: PathBuf, kind: Kind, mode: u32) {
        let mut attributes = Attributes::new(kind, mode);
        attributes.mtime = self.newest;
        self.ledger.set(place, attributes);
    }

    /// Where a path leads in the tree, links on the way followed as the image
    /// would; the last part is not followed. `None` if it leads nowhere.
    fn place(&self, path: &Path) -> Option<PathBuf> {
        let mut rest: Vec<PathBuf> = clean(path)
            .ok()?
            .components()
            .rev()
            .map(|part| PathBuf::from(part.as_os_str()))
            .collect();
        let mut place = PathBuf::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            let next = place.join(&part);
            let is_link = self
                .ledger
                .get(&next)
                .is_some_and(|about| about.kind == Kind::Symlink);
            if rest.is_empty() || !is_link {
                place = next;
                continue;
            }
            links += 1;
            if links > LINKS {
                return None;
            }
            let target = self.link_target(&next)?;
            if target.is_absolute() {
                place = PathBuf::new();
            }
            for part in target.components().rev() {
                use std::path::Component;
                match part {
                    Component::Normal(part) => rest.push(part.into()),
                    // `..` of the way so far, in a tree of plain directories.
                    Component::ParentDir => return None,
                    _ => {}
                }
            }
        }
        Some(place)
    }

    fn link_target(&self, path: &Path) -> Option<PathBuf> {
        let mut walker = self.walker().ok()?;
        let (parent, name) = walker.parent(path).ok()?;
        let target = readlinkat(parent, name, Vec::new()).ok()?;
        use std::os::unix::ffi::OsStringExt;
        Some(PathBuf::from(std::ffi::OsString::from_vec(
            target.into_bytes(),
        )))
    }

    /// Whether there is something at a path.
    pub fn has(&self, path: &str) -> bool {
        self.place(Path::new(path))
            .is_some_and(|place| self.ledger.get(&place).is_some())
    }

    /// The contents of a file, if there is one that is not overlong. The last
    /// part may be a link too.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let mut place = self.place(Path::new(path))?;
        for _ in 0..LINKS {
            if self.ledger.get(&place)?.kind != Kind::Symlink {
                break;
            }
            let target = self.link_target(&place)?;
            let whole = if target.is_absolute() {
                target.strip_prefix("/").ok()?.to_owned()
            } else {
                normal(&place.parent()?.join(target))?
            };
            place = self.place(&whole)?;
        }
        if self.ledger.get(&place)?.kind != Kind::File {
            return None;
        }
        let mut walker = self.walker().ok()?;
        let (parent, name) = walker.parent(&place).ok()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(parent, name, flags, Mode::empty()).ok()?);
        let mut bytes = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 <= LONGEST).then_some(bytes)
    }

    /// Writes a file of root's in place of whatever is there, with the
    /// directories above it.
    pub fn write(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<(), Error> {
        let place = self.make_place(path)?;
        self.remove_place(&place)?;
        let mut walker = self.walker()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        walker
            .parent(&place)
            .and_then(|(parent, name)| openat(parent, name, flags, Mode::from(0o600)))
            .map_err(io::Error::from)
            .and_then(|file| File::from(file).write_all(contents))
            .map_err(Error::io("write", &self.root.join(&place)))?;
        self.enter(place, Kind::File, mode);
        Ok(())
    }

    /// Makes a symbolic link in place of whatever is there.
    pub fn link(&mut self, path: &str, target: &str) -> Result<(), Error> {
        let place = self.make_place(path)?;
        self.remove_place(&place)?;
        let mut walker = self.walker()?;
        walker
            .parent(&place)
            .and_then(|(parent, name)| symlinkat(target, parent, name))
            .map_err(Error::io("make link", &self.root.join(&place)))?;
        self.enter(place, Kind::Symlink, 0o777);
        Ok(())
    }

    /// Makes a directory of root's, if it is not there.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), Error> {
        let place = self.make_place(&format!("{path}/x"))?;
        if let Some(parent) = place.parent()
            && let Some(about) = self.ledger.get_mut(parent)
        {
            about.mode = mode & 0o7777;
        }
        Ok(())
    }

    /// Removes a file, link or whole directory, if it is there.
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        match self.place(Path::new(path)) {
            Some(place) => self.remove_place(&place),
            None => Ok(()),
        }
    }

    /// Removes what is in a directory, and keeps it.
    pub fn empty(&mut self, path: &str) -> Result<(), Error> {
        for name in self.names(path) {
            self.remove(&format!("{path}/{name}"))?;
        }
        Ok(())
    }

    /// The names in a directory, those that are text.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Some(place) = self.place(Path::new(path)) else {
            return Vec::new();
        };
        self.ledger
            .iter()
            .filter(|(entry, _)| entry.parent() == Some(&place))
            .filter_map(|(entry, _)| entry.file_name()?.to_str().map(str::to_owned))
            .collect()
    }

    fn remove_place(&mut self, place: &Path) -> Result<(), Error> {
        let Some(kind) = self.ledger.get(place).map(|about| about.kind) else {
            return Ok(());
        };
        let path = self.root.join(place);
        if kind == Kind::Directory {
            // Below a directory that was made here, and links are not followed.
            std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
            self.ledger.remove_tree(place);
        } else {
            let mut walker = self.walker()?;
            walker
                .parent(place)
                .and_then(|(parent, name)| unlinkat(parent, name, AtFlags::empty()))
                .map_err(Error::io("remove", &path))?;
            self.ledger.remove(place);
        }
        Ok(())
    }

    /// Where a path leads, with the directories on the way made.
    fn make_place(&mut self, path: &str) -> Result<PathBuf, Error> {
        let wrong =
            |root: &Path| Error::io("reach", &root.join(path))(io::Error::from(Errno::LOOP));
        let place = self
            .place(Path::new(path))
            .ok_or_else(|| wrong(&self.root))?;
        let mut missing: Vec<&Path> = place
            .ancestors()
            .skip(1)
            .take_while(|parent| self.ledger.get(parent).is_none())
            .collect();
        missing.reverse();
        let missing: Vec<PathBuf> = missing.into_iter().map(Path::to_owned).collect();
        for parent in missing {
            let mut walker = self.walker()?;
            walker
                .parent(&parent)
                .and_then(|(above, name)| rustix::fs::mkdirat(above, name, Mode::from(0o700)))
                .map_err(Error::io("make directory", &self.root.join(&parent)))?;
            self.enter(parent, Kind::Directory, 0o755);
        }
        Ok(place)
    }
}

/// A relative path without `.` and `..`, if it stays below its beginning.
fn normal(path: &Path) -> Option<PathBuf> {
    use std::path::Component;
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => normal.push(part),
            Component::CurDir => {}
            Component::ParentDir => {
                if !normal.pop() {
                    return None;
                }
            }
            _ => return None,
        }
    }
    Some(normal)
}
