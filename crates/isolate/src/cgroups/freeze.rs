//! Stopping a group, and going on.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::dir::Dir;
use super::{Controllers, Error, Group, Version};

/// How long a group may take to stop: a process in the kernel stops on its way
/// out of it.
const FREEZE: Duration = Duration::from_secs(30);
/// Between two looks at a freezer of version 1, which tells nobody.
const LOOK: Duration = Duration::from_millis(1);

impl Group {
    /// Stops all its processes, and returns when they have stopped.
    ///
    /// # Errors
    /// [`Error::NoFreezer`]; a timeout after half a minute, with the group
    /// running again.
    pub fn freeze(&self) -> Result<(), Error> {
        let (dir, version) = self.freezer()?;
        let result = match version {
            Version::Two => dir.write("cgroup.freeze", "1").and_then(|()| wait(dir)),
            Version::One => freeze_old(dir),
        };
        if result.is_err() {
            self.thaw()?;
        }
        result
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<(), Error> {
        let (dir, version) = self.freezer()?;
        match version {
            Version::Two => dir.write("cgroup.freeze", "0"),
            Version::One => dir.write("freezer.state", "THAWED"),
        }
    }

    /// Whether it is stopped.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        let (dir, version) = self.freezer()?;
        match version {
            Version::Two => Ok(dir.read("cgroup.freeze")?.trim() == "1"),
            Version::One => Ok(dir.read("freezer.state")?.trim() != "THAWED"),
        }
    }

    /// Version 2 has no freezer in its root and before Linux 5.2.
    fn freezer(&self) -> Result<(&Dir, Version), Error> {
        let unified = self
            .unified()
            .filter(|place| place.dir.has("cgroup.freeze"));
        let old = || {
            self.place(Controllers::FREEZER)
                .filter(|place| place.version == Version::One)
        };
        let place = unified.or_else(old).ok_or(Error::NoFreezer)?;
        Ok((&place.dir, place.version))
    }
}

fn timeout(dir: &Dir) -> Error {
    Error::Write {
        path: dir.path().to_owned(),
        value: "freeze".to_owned(),
        source: std::io::Error::from(std::io::ErrorKind::TimedOut),
    }
}

/// Waits until `cgroup.events` says that all have stopped.
fn wait(dir: &Dir) -> Result<(), Error> {
    let failed = |source| Error::Read {
        path: dir.path().join("cgroup.events"),
        source,
    };
    let deadline = Instant::now() + FREEZE;
    let events = dir.file("cgroup.events", OFlags::RDONLY).map_err(failed)?;
    loop {
        // A change after this reading wakes the poll.
        let text = dir.read("cgroup.events")?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(timeout(dir));
        }
        let mut polled = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
        let step = Timespec::try_from(left.min(Duration::from_millis(100))).ok();
        match poll(&mut polled, step.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Writing the state again makes the kernel look again
/// (`cgroup-v1/freezer-subsystem.rst`).
fn freeze_old(dir: &Dir) -> Result<(), Error> {
    let deadline = Instant::now() + FREEZE;
    loop {
        dir.write("freezer.state", "FROZEN")?;
        if dir.read("freezer.state")?.trim() == "FROZEN" {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(timeout(dir));
        }
        thread::sleep(LOOK);
    }
}
