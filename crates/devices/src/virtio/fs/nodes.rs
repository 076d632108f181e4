//! What the guest knows: files by number, with how often they were looked up.
//!
//! ```text
//!            look up                look up: count + 1
//! (unknown) ─────────► known ◄──────────────────────────┐
//!     ▲                  │  └──────────────────────────┘
//!     └── forget: 0 ◄────┘ forget: count − n
//! ```
//!
//! A directory is held open; another file is found again by directory and
//! name, under which the guest saw it last. A file that has no name any more
//! is found as long as the guest has it open.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustix::fs::{FileType, OFlags, Statx};
use rustix::io::Errno;

use super::handles::OpenFile;
use super::host::{self, Key, Name, Result};
use crate::lock;

/// The root's number (FUSE_ROOT_ID).
pub const ROOT: u64 = 1;
/// Most nodes; each is some 300 bytes.
const NODES_MAX: usize = 512 << 10;

/// Where a file that is no directory was last seen.
struct Seen {
    directory: Arc<Node>,
    name: CString,
    /// By which it was opened.
    open: Vec<Weak<OpenFile>>,
}

enum Place {
    Directory {
        descriptor: OwnedFd,
        /// Counts itself.
        _one: Counted,
    },
    Other(Mutex<Seen>),
}

/// One of a number of directories that are held open.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file that the guest knows.
pub struct Node {
    id: u64,
    key: Key,
    place: Place,
}

/// A descriptor of a node's file, `O_PATH` or not.
pub enum Pinned<'a> {
    /// A directory's.
    Directory(BorrowedFd<'a>),
    /// Found just now.
    Found(OwnedFd),
    /// The guest has it open.
    Open(Arc<OpenFile>),
}

impl AsFd for Pinned<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Pinned::Directory(directory) => *directory,
            Pinned::Found(file) => file.as_fd(),
            Pinned::Open(open) => open.as_fd(),
        }
    }
}

impl Node {
    /// Which file it is.
    pub fn key(&self) -> Key {
        self.key
    }

    /// What kind of file.
    pub fn kind(&self) -> FileType {
        self.key.kind()
    }

    /// Its descriptor, if it is a directory.
    pub fn directory(&self) -> Result<BorrowedFd<'_>> {
        match &self.place {
            Place::Directory { descriptor, .. } => Ok(descriptor.as_fd()),
            Place::Other(_) => Err(Errno::NOTDIR),
        }
    }

    /// Where it was last seen, if it is no directory.
    fn seen<T>(&self, at: impl FnOnce(BorrowedFd<'_>, Name<'_>) -> Result<T>) -> Result<T> {
        let Place::Other(seen) = &self.place else {
            return Err(Errno::ISDIR);
        };
        let (directory, name) = {
            let seen = lock(seen);
            (seen.directory.clone(), seen.name.clone())
        };
        at(directory.directory()?, Name::new(&name)?)
    }

    /// Its file.
    pub fn pin(&self) -> Result<Pinned<'_>> {
        if let Place::Directory { descriptor, .. } = &self.place {
            return Ok(Pinned::Directory(descriptor.as_fd()));
        }
        let found = self.seen(|directory, name| {
            let (file, about) = host::find(directory, name)?;
            (Key::of(&about) == self.key)
                .then_some(file)
                .ok_or(Errno::STALE)
        });
        match found {
            Ok(file) => Ok(Pinned::Found(file)),
            Err(error) => self.all_open().pop().map(Pinned::Open).ok_or(match error {
                Errno::NOENT => Errno::STALE,
                other => other,
            }),
        }
    }

    /// Opens it: a regular file. One without a name can be opened like
    /// somebody in the guest has it open.
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        match self.seen(|directory, name| host::open(directory, name, self.key, flags)) {
            Err(Errno::NOENT | Errno::STALE) => {
                let mut open = self.all_open().into_iter();
                open.find_map(|open| open.again(flags)).ok_or(Errno::STALE)
            }
            result => result,
        }
    }

    /// Makes another name for it.
    pub fn link(&self, directory: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        self.seen(|old, old_name| {
            let flags = rustix::fs::AtFlags::empty();
            let names = (old_name.as_c_str(), name.as_c_str());
            rustix::fs::linkat(old, names.0, directory, names.1, flags)
        })
    }

    /// The guest has opened it.
    pub fn remember_open(&self, file: &Arc<OpenFile>) {
        if let Place::Other(seen) = &self.place {
            let mut seen = lock(seen);
            seen.open.retain(|open| open.strong_count() > 0);
            seen.open.push(Arc::downgrade(file));
        }
    }

    fn all_open(&self) -> Vec<Arc<OpenFile>> {
        match &self.place {
            Place::Directory { .. } => Vec::new(),
            Place::Other(seen) => lock(seen).open.iter().filter_map(Weak::upgrade).collect(),
        }
    }

    fn see(&self, directory: &Arc<Node>, name: Name<'_>) {
        if let Place::Other(seen) = &self.place {
            let mut seen = lock(seen);
            seen.directory = directory.clone();
            seen.name = name.as_c_str().to_owned();
        }
    }
}

struct Known {
    node: Arc<Node>,
    lookups: u64,
}

/// All nodes.
pub struct Nodes {
    root: Arc<Node>,
    known: HashMap<u64, Known>,
    by_key: HashMap<Key, u64>,
    next: u64,
    directories: Arc<AtomicUsize>,
    directories_max: usize,
}

impl Nodes {
    /// Only the root, and room for as many open directories.
    pub fn new(root: OwnedFd, directories_max: usize) -> Result<Self> {
        let about = host::about(&root)?;
        let key = Key::of(&about);
        if key.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let directories = Arc::new(AtomicUsize::new(1));
        let root = Arc::new(Node {
            id: ROOT,
            key,
            place: Place::Directory {
                descriptor: root,
                _one: Counted(directories.clone()),
            },
        });
        Ok(Nodes {
            root,
            known: HashMap::new(),
            by_key: HashMap::new(),
            next: ROOT + 1,
            directories,
            directories_max,
        })
    }

    /// The node of this number.
    pub fn get(&self, id: u64) -> Result<Arc<Node>> {
        if id == ROOT {
            return Ok(self.root.clone());
        }
        let known = self.known.get(&id);
        known.map(|known| known.node.clone()).ok_or(Errno::STALE)
    }

    /// Counts a lookup of `name`, which is `file`.
    pub fn look_up(
        &mut self,
        directory: &Arc<Node>,
        name: Name<'_>,
        file: OwnedFd,
        about: &Statx,
    ) -> Result<u64> {
        let key = Key::of(about);
        if key == self.root.key {
            // The shared directory below itself: a bind mount.
            return Err(Errno::LOOP);
        }
        let found = self.by_key.get(&key).copied();
        if let Some(known) = found.and_then(|id| self.known.get_mut(&id)) {
            known.lookups = known.lookups.saturating_add(1);
            known.node.see(directory, name);
            return Ok(known.node.id);
        }
        if self.known.len() >= NODES_MAX {
            return Err(Errno::NFILE);
        }
        let place = if key.kind() == FileType::Directory {
            let before = self.directories.fetch_add(1, Ordering::Relaxed);
            let one = Counted(self.directories.clone());
            if before >= self.directories_max {
                return Err(Errno::NFILE);
            }
            Place::Directory {
                descriptor: file,
                _one: one,
            }
        } else {
            Place::Other(Mutex::new(Seen {
                directory: directory.clone(),
                name: name.as_c_str().to_owned(),
                open: Vec::new(),
            }))
        };
        let id = self.next;
        self.next += 1;
        let node = Arc::new(Node { id, key, place });
        self.known.insert(id, Known { node, lookups: 1 });
        self.by_key.insert(key, id);
        Ok(id)
    }

    /// Takes `count` lookups back.
    pub fn forget(&mut self, id: u64, count: u64) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 {
            let key = known.node.key;
            self.known.remove(&id);
            if self.by_key.get(&key) == Some(&id) {
                self.by_key.remove(&key);
            }
        }
    }

    /// A file has another name now.
    pub fn moved(&self, key: Key, directory: &Arc<Node>, name: Name<'_>) {
        let known = self.by_key.get(&key).and_then(|id| self.known.get(id));
        if let Some(known) = known {
            known.node.see(directory, name);
        }
    }

    /// A file is gone: what gets its inode number next is another one.
    pub fn gone(&mut self, key: Key) {
        self.by_key.remove(&key);
    }

    /// Only the root is known again.
    pub fn forget_all(&mut self) {
        self.known.clear();
        self.by_key.clear();
    }

    /// Whether only the root is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}
