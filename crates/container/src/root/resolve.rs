//! Paths in a container's root, which its image and volumes fill with
//! whatever they like: every one is resolved by the kernel with the root as
//! its root, and never through a link of procfs. What is opened stays what it
//! is, whoever renames what meanwhile.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, mknodat, openat, readlinkat};
use rustix::io::Errno;

use crate::sys::open_in;

/// Most symbolic links that lead to nothing on the way to a path that is made.
const LINKS: usize = 40;

/// What is to be at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
}

/// A root, as an open directory.
#[derive(Clone, Copy, Debug)]
pub struct InRoot<'a>(pub BorrowedFd<'a>);

impl InRoot<'_> {
    /// What is at a path: a handle, with no right to its contents.
    pub fn find(self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::PATH)
    }

    /// Opens what is at a path.
    pub fn open(self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        open_in(self.0, path, flags)
    }

    /// What is at a path, made if it is not there, with all directories above
    /// it.
    pub fn ensure(self, path: &Path, kind: Kind) -> Result<OwnedFd, Errno> {
        match self.find(path) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let mut path = normal(path);
        for _ in 0..LINKS {
            match self.make(&path, kind)? {
                Made::There(found) => return Ok(found),
                Made::Link(instead) => path = normal(&instead),
            }
        }
        Err(Errno::LOOP)
    }

    /// The directory that a path's last name is in, made if need be, and the
    /// name.
    pub fn parent(self, path: &Path) -> Result<(OwnedFd, &OsStr), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        Ok((self.ensure(parent, Kind::Directory)?, name))
    }

    fn make(self, path: &Path, kind: Kind) -> Result<Made, Errno> {
        let mut above = self.find(Path::new("/"))?;
        let mut so_far = PathBuf::from("/");
        let mut names = path.components().peekable();
        while let Some(name) = names.next() {
            let Component::Normal(name) = name else {
                continue;
            };
            let parent = so_far.clone();
            so_far.push(name);
            let last = names.peek().is_none();
            above = match self.find(&so_far) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    let file = last && kind == Kind::File;
                    let made = if file {
                        let mode = Mode::from_raw_mode(0o644);
                        mknodat(&above, name, FileType::RegularFile, mode, 0)
                    } else {
                        mkdirat(&above, name, Mode::from_raw_mode(0o755))
                    };
                    match made {
                        Ok(()) => {
                            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                            openat(&above, name, flags, Mode::empty())?
                        }
                        // A link to what is not there.
                        Err(Errno::EXIST) => {
                            let target = readlinkat(&above, name, Vec::new())?;
                            let mut instead = parent.join(OsStr::from_bytes(target.to_bytes()));
                            instead.extend(names);
                            return Ok(Made::Link(instead));
                        }
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            };
        }
        Ok(Made::There(above))
    }
}

enum Made {
    There(OwnedFd),
    Link(PathBuf),
}

/// Without `..`, as far as names tell: only for paths that do not exist yet.
fn normal(path: &Path) -> PathBuf {
    let mut whole = PathBuf::from("/");
    for name in path.components() {
        match name {
            Component::ParentDir => {
                whole.pop();
            }
            Component::Normal(name) => whole.push(name),
            _ => {}
        }
    }
    whole
}

/// Whether it is a directory.
pub fn is_directory(file: impl AsFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory)
}

/// A directory of the host's, as a handle.
pub fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("root")).unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let root = directory(&outside.path().join("root")).unwrap();
        (outside, root)
    }

    #[test]
    fn links_stay_inside() {
        let (outside, root) = root();
        let inside = outside.path().join("root");
        symlink("../../../secret", inside.join("up")).unwrap();
        symlink(outside.path().join("secret"), inside.join("absolute")).unwrap();
        let root = InRoot(root.as_fd());
        for name in ["up", "absolute", "../secret"] {
            assert_eq!(
                root.find(Path::new(name)).unwrap_err(),
                Errno::NOENT,
                "{name}"
            );
        }
        symlink("/proc/self/root", inside.join("magic")).unwrap();
        assert!(root.find(Path::new("magic")).is_err());
    }

    #[test]
    fn what_is_missing_is_made_inside() {
        let (outside, root) = root();
        let inside = outside.path().join("root");
        symlink("/var/run", inside.join("run")).unwrap();
        symlink(outside.path(), inside.join("out")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        let root = InRoot(root.as_fd());
        root.ensure(Path::new("/run/lock/x"), Kind::Directory)
            .unwrap();
        assert!(inside.join("var/run/lock/x").is_dir());
        root.ensure(Path::new("/out/new"), Kind::File).unwrap();
        assert!(!outside.path().join("new").exists());
        root.ensure(Path::new("../../a/../b/file"), Kind::File)
            .unwrap();
        assert!(inside.join("b/file").is_file() && !inside.join("a").exists());
        assert_eq!(
            root.ensure(Path::new("loop/x"), Kind::File).unwrap_err(),
            Errno::LOOP
        );
    }
}
