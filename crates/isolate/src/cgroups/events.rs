//! What happens to a group: one descriptor to wait on.
//!
//! | event | version 2 | version 1 |
//! |---|---|---|
//! | a process was ended for want of memory | `memory.events` changes | eventfd on `memory.oom_control` |
//! | processes wait for memory | a trigger on `memory.pressure` | eventfd on `memory.pressure_level` |
//! | no process is left | `cgroup.events` changes | nothing tells |

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{OFlags, inotify};
use rustix::io::{Errno, read};

use super::dir::{Dir, write_whole};
use super::stats::{field, pressure, text};
use super::{Controllers, Error, Group, Version};

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

/// Some process waited for so long within [`WINDOW`]: a sixth of a second of
/// two is felt. The window is the shortest that needs no privilege (Linux
/// `accounting/psi.rst`).
const STALL: Duration = Duration::from_millis(150);
const WINDOW: Duration = Duration::from_secs(2);

/// A group's events. The descriptor is readable when there is something to
/// [`take`](Events::take).
#[derive(Debug)]
pub struct Events {
    wait: OwnedFd,
    changes: Option<OwnedFd>,
    /// Memory's directory, and how many processes were ended until now.
    memory: Option<(Dir, Version, u64)>,
    /// Version 2: its directory, and whether it has had processes.
    unified: Option<(Dir, bool)>,
    /// The trigger on `memory.pressure`, and its total at a time: a poll of
    /// the descriptor that this one is in takes the event away.
    stall: Option<(OwnedFd, u64, Instant)>,
    /// Version 1 tells by these.
    oom: Option<OwnedFd>,
    level: Option<OwnedFd>,
}

impl Group {
    /// Watches the group. An event that the host cannot tell of never comes.
    pub fn events(&self) -> Result<Events, Error> {
        let mut events = Events::new(self).map_err(|source| Error::Read {
            path: self
                .leader()
                .map(|one| one.dir.path().into())
                .unwrap_or_default(),
            source,
        })?;
        // What was there before is no event.
        events.take().map_err(|source| Error::Read {
            path: "events".into(),
            source,
        })?;
        Ok(events)
    }
}

impl Events {
    fn new(group: &Group) -> io::Result<Self> {
        let wait = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut events = Events {
            wait,
            changes: None,
            memory: None,
            unified: None,
            stall: None,
            oom: None,
            level: None,
        };
        let again = |dir: &Dir| Dir::open(dir.path().to_owned());
        if let Some(place) = group.unified() {
            events.watch(&place.dir, "cgroup.events")?;
            events.unified = Some((again(&place.dir)?, false));
            // Not every kernel counts pressure, nor lets everybody ask.
            let trigger = trigger(&place.dir);
            events.stall = trigger.ok().map(|file| (file, u64::MAX, Instant::now()));
        }
        if let Some(place) = group.place(Controllers::MEMORY) {
            match place.version {
                Version::Two => events.watch(&place.dir, "memory.events")?,
                Version::One => {
                    events.oom = tell(&place.dir, "memory.oom_control", "").ok();
                    events.level = tell(&place.dir, "memory.pressure_level", " medium").ok();
                }
            }
            events.memory = Some((again(&place.dir)?, place.version, u64::MAX));
        }
        let stall = events
            .stall
            .iter()
            .map(|(file, ..)| (file, epoll::EventFlags::PRI));
        let others = [&events.changes, &events.oom, &events.level];
        let others = others.into_iter().flatten();
        let others = others.map(|file| (file, epoll::EventFlags::IN));
        for (file, flags) in stall.chain(others) {
            epoll::add(&events.wait, file, epoll::EventData::new_u64(0), flags)?;
        }
        Ok(events)
    }

    fn watch(&mut self, dir: &Dir, file: &str) -> io::Result<()> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let changes = match self.changes.take() {
            Some(changes) => changes,
            None => inotify::init(flags)?,
        };
        match inotify::add_watch(&changes, dir.path().join(file), inotify::WatchFlags::MODIFY) {
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        self.changes = Some(changes);
        Ok(())
    }

    /// What has happened since the last call; does not wait.
    pub fn take(&mut self) -> io::Result<Vec<Event>> {
        let mut all = Vec::new();
        let mut pressed = self.stalled();
        drain(self.changes.as_ref())?;
        drain(self.oom.as_ref())?;
        pressed |= drain(self.level.as_ref())?;
        // Of a group that is gone, nothing can be read.
        if let Some((dir, version, before)) = &mut self.memory {
            let file = match version {
                Version::One => "memory.oom_control",
                Version::Two => "memory.events",
            };
            if let Ok(text) = text(dir, file) {
                let now = field(&text, "oom_kill");
                if now > *before {
                    all.push(Event::OomKill(now - *before));
                }
                *before = now;
            }
        }
        if pressed {
            all.push(Event::MemoryPressure);
        }
        if let Some((dir, populated)) = &mut self.unified {
            let text = text(dir, "cgroup.events");
            let now = text.is_ok_and(|text| field(&text, "populated") == 1);
            if *populated && !now {
                all.push(Event::Empty);
            }
            *populated = now;
        }
        Ok(all)
    }

    /// Whether the group's processes have waited as the trigger says.
    fn stalled(&mut self) -> bool {
        let Some((_, before, since)) = &mut self.stall else {
            return false;
        };
        let text = match &self.unified {
            Some((dir, _)) => text(dir, "memory.pressure").unwrap_or_default(),
            None => return false,
        };
        let total = pressure(&text).unwrap_or_default().some_total;
        let stall = Duration::from_micros(total.saturating_sub(*before));
        let windows = since.elapsed().as_secs_f64() / WINDOW.as_secs_f64();
        *before = total;
        *since = Instant::now();
        stall >= STALL && stall.as_secs_f64() >= windows * STALL.as_secs_f64()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wait.as_fd()
    }
}

/// Asks to be woken when the group's processes wait for memory.
fn trigger(dir: &Dir) -> io::Result<OwnedFd> {
    let file = dir.file("memory.pressure", OFlags::RDWR | OFlags::NONBLOCK)?;
    let line = format!("some {} {}\0", STALL.as_micros(), WINDOW.as_micros());
    write_whole(file.as_fd(), line.as_bytes())?;
    Ok(file)
}

/// An event object that version 1 writes to
/// (`cgroup-v1/memory.rst`, "OOM Control", "Memory Pressure").
fn tell(dir: &Dir, file: &str, more: &str) -> io::Result<OwnedFd> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let file = dir.file(file, OFlags::RDONLY)?;
    let line = format!("{} {}{more}", event.as_raw_fd(), file.as_raw_fd());
    dir.put("cgroup.event_control", line.as_bytes())?;
    Ok(event)
}

/// Reads all there is, and says whether there was something.
fn drain(file: Option<&OwnedFd>) -> io::Result<bool> {
    let Some(file) = file else {
        return Ok(false);
    };
    let mut any = false;
    let mut buffer = [0_u8; 4096];
    loop {
        match read(file, &mut buffer) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(any),
            Ok(_) => any = true,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
