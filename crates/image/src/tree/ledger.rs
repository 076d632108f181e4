//! What the files of a tree are in the image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, or one more name of one.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
}

/// A file's attributes in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: Kind,
    /// Permissions with the set-id and sticky bits: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents, in seconds since 1970.
    pub mtime: u64,
    /// Extended attributes by name.
    pub extended: BTreeMap<String, Vec<u8>>,
}

impl Attributes {
    /// Of a file that belongs to root and is as old as Unix.
    pub fn new(kind: Kind, mode: u32) -> Attributes {
        Attributes {
            kind,
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            mtime: 0,
            extended: BTreeMap::new(),
        }
    }
}

/// Attributes by path. Paths are relative to the root, which is the empty one,
/// and have only plain parts.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<PathBuf, Attributes>,
}

impl Ledger {
    /// Enters a file, or what it is now.
    pub fn set(&mut self, path: PathBuf, attributes: Attributes) {
        self.entries.insert(path, attributes);
    }

    /// A file's attributes.
    pub fn get(&self, path: &Path) -> Option<&Attributes> {
        self.entries.get(path)
    }

    /// A file's attributes, to change.
    pub fn get_mut(&mut self, path: &Path) -> Option<&mut Attributes> {
        self.entries.get_mut(path)
    }

    /// Strikes out a file.
    pub fn remove(&mut self, path: &Path) -> Option<Attributes> {
        self.entries.remove(path)
    }

    /// Strikes out a directory with all in it.
    pub fn remove_tree(&mut self, path: &Path) {
        self.entries.retain(|entry, _| !entry.starts_with(path));
    }

    /// All files, each directory before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Attributes)> {
        self.entries
            .iter()
            .map(|(path, attributes)| (path.as_path(), attributes))
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
