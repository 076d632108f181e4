//! Files and directories that the guest has open, by number.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::host::Result;

/// An open regular file.
pub struct OpenFile {
    /// Itself.
    pub file: File,
    /// How it was opened.
    pub flags: OFlags,
}

impl OpenFile {
    /// Whether the guest may write to it.
    pub fn is_writable(&self) -> bool {
        self.flags & OFlags::RWMODE != OFlags::RDONLY
    }

    /// Whether it serves who wants to open it with `flags`.
    fn serves(&self, flags: OFlags) -> bool {
        let rest = OFlags::RWMODE.complement();
        let (mine, wanted) = (self.flags & OFlags::RWMODE, flags & OFlags::RWMODE);
        self.flags & rest == flags & rest && (mine == OFlags::RDWR || mine == wanted)
    }

    /// The same file once more, for who wants to open it with `flags`.
    pub fn again(&self, flags: OFlags) -> Option<OwnedFd> {
        let file = self.serves(flags).then(|| self.file.try_clone().ok());
        file.flatten().map(OwnedFd::from)
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

enum Handle {
    File(Arc<OpenFile>),
    /// Reading moves its position.
    Directory(Arc<Mutex<OwnedFd>>),
}

/// All of them.
pub struct Handles {
    open: HashMap<u64, Handle>,
    next: u64,
    most: usize,
}

impl Handles {
    /// Room for as many.
    pub fn new(most: usize) -> Self {
        Handles {
            open: HashMap::new(),
            next: 1,
            most,
        }
    }

    /// Whether one more has room; asked before it is opened.
    pub fn has_room(&self) -> Result<()> {
        if self.open.len() < self.most {
            Ok(())
        } else {
            Err(Errno::NFILE)
        }
    }

    /// Takes an open file.
    pub fn add_file(&mut self, file: Arc<OpenFile>) -> u64 {
        self.add(Handle::File(file))
    }

    /// Takes an open directory.
    pub fn add_directory(&mut self, directory: OwnedFd) -> u64 {
        self.add(Handle::Directory(Arc::new(Mutex::new(directory))))
    }

    fn add(&mut self, handle: Handle) -> u64 {
        let id = self.next;
        self.next += 1;
        self.open.insert(id, handle);
        id
    }

    /// The file of this number.
    pub fn file(&self, id: u64) -> Result<Arc<OpenFile>> {
        match self.open.get(&id) {
            Some(Handle::File(file)) => Ok(file.clone()),
            _ => Err(Errno::BADF),
        }
    }

    /// The directory of this number.
    pub fn directory(&self, id: u64) -> Result<Arc<Mutex<OwnedFd>>> {
        match self.open.get(&id) {
            Some(Handle::Directory(directory)) => Ok(directory.clone()),
            _ => Err(Errno::BADF),
        }
    }

    /// The guest closed it.
    pub fn close(&mut self, id: u64) {
        self.open.remove(&id);
    }

    /// The guest closed them all.
    pub fn close_all(&mut self) {
        self.open.clear();
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}
