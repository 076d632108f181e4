//! A group: a directory in each hierarchy.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::create::{self, Base, Existing};
use super::dir::Dir;
use super::{Controllers, Error, Hierarchies, LeftOut, Version, tree};

/// How long the processes of a group may take to end.
const END: Duration = Duration::from_secs(60);
/// How long a group without processes may be held by one that has ended.
const LEFT: Duration = Duration::from_secs(10);
/// How many processes are held open at once while they are ended.
const AT_ONCE: usize = 256;

/// A group's directory in one hierarchy.
#[derive(Debug)]
pub(super) struct Place {
    pub version: Version,
    /// What can be limited here.
    pub controllers: Controllers,
    pub dir: Dir,
}

/// A control group. It stays when this is dropped: [`Group::delete`] ends it.
#[derive(Debug)]
pub struct Group {
    pub(super) places: Vec<Place>,
    pub(super) left_out: Vec<LeftOut>,
}

impl Group {
    /// Makes a group, with a directory in every hierarchy that has one of the
    /// controllers `wanted`. Version 2 has some without a controller: groups
    /// that want one of those are in it even where version 1 has it too, for
    /// its way to end all processes.
    ///
    /// `path` is beneath the hierarchy's root for root, beneath the highest
    /// group that was delegated for others, with or without a `/` in front.
    /// An empty group of that path that is there already is replaced.
    ///
    /// # Errors
    /// [`Error::Path`] for a path that leads out of the hierarchy,
    /// [`Error::InUse`] if processes are in the group, others as the host
    /// gives them. A hierarchy in which this process may do nothing is none:
    /// see [`Group::left_out`].
    pub fn create(
        hierarchies: &Hierarchies,
        path: &Path,
        wanted: Controllers,
    ) -> Result<Self, Error> {
        Self::make(hierarchies, path, wanted, Existing::Replaced)
    }

    /// The same, but an empty group of that path that is there already is
    /// taken as it is: whoever has made it may have set limits.
    ///
    /// # Errors
    /// As [`Group::create`].
    pub fn take(
        hierarchies: &Hierarchies,
        path: &Path,
        wanted: Controllers,
    ) -> Result<Self, Error> {
        Self::make(hierarchies, path, wanted, Existing::Taken)
    }

    fn make(
        hierarchies: &Hierarchies,
        path: &Path,
        wanted: Controllers,
        existing: Existing,
    ) -> Result<Self, Error> {
        let parts = create::parts(path)?;
        let mut group = Group {
            places: Vec::with_capacity(hierarchies.iter().count()),
            left_out: Vec::new(),
        };
        let mut found = Controllers::empty();
        for hierarchy in hierarchies.iter() {
            let all = match hierarchy.version {
                Version::One => hierarchy.controllers,
                Version::Two => hierarchy.controllers | Controllers::ALWAYS_IN_2,
            };
            if !all.intersects(wanted) {
                continue;
            }
            found |= all;
            let Some(base) = Base::find(hierarchy) else {
                let lost = all.intersection(wanted);
                let left_out = LeftOut::controllers(lost, "not delegated");
                group.left_out.push(left_out);
                continue;
            };
            let left_out = &mut group.left_out;
            match create::create(hierarchy, &base, &parts, wanted, existing, left_out) {
                Ok(place) => group.places.push(place),
                Err(error) => {
                    // What is there already is empty and ours.
                    let _ = group.delete();
                    return Err(error);
                }
            }
        }
        // No limit is set in it: nobody misses it.
        let missing = wanted.difference(found | Controllers::SYSTEMD);
        if !missing.is_empty() {
            let left_out = LeftOut::controllers(missing, "this host has no such controller");
            group.left_out.push(left_out);
        }
        Ok(group)
    }

    /// A group that is there already. One that is not has no places.
    pub fn open(hierarchies: &Hierarchies, path: &Path) -> Result<Self, Error> {
        let parts = create::parts(path)?;
        let mut group = Group {
            places: Vec::new(),
            left_out: Vec::new(),
        };
        for hierarchy in hierarchies.iter() {
            let base = Base::find(hierarchy).unwrap_or_else(|| Base::root(hierarchy));
            if let Some(place) = create::open(hierarchy, &base, &parts)? {
                group.places.push(place);
            }
        }
        Ok(group)
    }

    /// The group for another program in a running container. It is this one,
    /// but in version 2 for an init that has made groups of its own with
    /// limits: then one beneath it, which is made if need be and goes with
    /// this one.
    pub fn for_program(&self) -> Result<Self, Error> {
        let places = self.places.iter().map(create::with_room);
        Ok(Group {
            places: places.collect::<Result<_, _>>()?,
            left_out: Vec::new(),
        })
    }

    /// The group that a process is in, `/proc/PID/cgroup` says where.
    pub fn of_process(hierarchies: &Hierarchies, process: Pid) -> Result<Self, Error> {
        create::of_process(hierarchies, process)
    }

    /// Whether it is in no hierarchy at all.
    pub fn is_nowhere(&self) -> bool {
        self.places.is_empty()
    }

    /// Controllers that it could not have, and why.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Controllers that it has.
    pub fn controllers(&self) -> Controllers {
        let has = |place: &Place| match place.version {
            Version::One => place.controllers,
            Version::Two => place.controllers | Controllers::ALWAYS_IN_2,
        };
        self.places.iter().map(has).collect()
    }

    /// Where a controller's files are, for tools that want a path.
    pub fn path_of(&self, controller: Controllers) -> Option<&Path> {
        self.place(controller).map(|place| place.dir.path())
    }

    /// Directories of all hierarchies.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.places.iter().map(|place| place.dir.path())
    }

    /// The directory that says best which processes are in the group.
    pub fn leader_path(&self) -> Option<&Path> {
        self.leader().map(|place| place.dir.path())
    }

    /// The directory in version 2.
    pub(super) fn unified(&self) -> Option<&Place> {
        self.places.iter().find(|one| one.version == Version::Two)
    }

    /// Where a controller's files are.
    pub(super) fn place(&self, controller: Controllers) -> Option<&Place> {
        let has = |one: &&Place| one.controllers.contains(controller);
        let always = Controllers::ALWAYS_IN_2.contains(controller);
        let unified = || self.unified().filter(|_| always);
        self.places.iter().find(has).or_else(unified)
    }

    /// The directory that processes are listed and ended by: what version 2
    /// has is the best for both, a freezer the next.
    pub(super) fn leader(&self) -> Option<&Place> {
        self.unified()
            .or_else(|| self.place(Controllers::FREEZER))
            .or_else(|| self.place(Controllers::PIDS))
            .or_else(|| self.places.first())
    }

    /// Moves a process into it, from outside: slow where there are many
    /// hierarchies. See [`Group::entry`].
    pub fn add(&self, process: Pid) -> Result<(), Error> {
        let id = process.as_raw_nonzero().to_string();
        self.places
            .iter()
            .try_for_each(|place| place.dir.write("cgroup.procs", &id))
    }

    /// Its processes and those of all groups beneath it.
    pub fn processes(&self) -> Result<Vec<Pid>, Error> {
        let mut all = Vec::new();
        if let Some(place) = self.leader() {
            list(&place.dir, &mut all)?;
        }
        Ok(all)
    }

    /// Ends all its processes and those of groups beneath it, and waits until
    /// there are none; their parents still have to reap them.
    ///
    /// # Errors
    /// [`Error::Undead`] after a minute.
    pub fn kill(&self) -> Result<(), Error> {
        let Some(place) = self.leader() else {
            return Ok(());
        };
        let deadline = Instant::now() + END;
        let mut pause = Duration::from_micros(200);
        let at_once = place.version == Version::Two && place.dir.put("cgroup.kill", b"1").is_ok();
        loop {
            // Stopped, none can make another while the list is gone through.
            let frozen = !at_once && self.freeze().is_ok();
            let processes = self.processes()?;
            if !at_once && !processes.is_empty() {
                self.kill_these(&processes, frozen)?;
            }
            if frozen {
                self.thaw()?;
            }
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Undead(place.dir.path().to_owned()));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Kills processes of a list. Those of a frozen group stay who they are;
    /// else a number may be somebody else's by now, and only who is still in
    /// the list when its descriptor is there is of the group.
    fn kill_these(&self, processes: &[Pid], frozen: bool) -> Result<(), Error> {
        for some in processes.chunks(AT_ONCE) {
            // One may be gone already.
            let open = |pid: &Pid| Some((*pid, pidfd_open(*pid, PidfdFlags::empty()).ok()?));
            let some: Vec<_> = some.iter().filter_map(open).collect();
            let still = match frozen {
                true => Vec::new(),
                false => self.processes()?,
            };
            for (pid, descriptor) in some {
                if frozen || still.contains(&pid) {
                    let _ = pidfd_send_signal(descriptor, Signal::KILL);
                }
            }
        }
        Ok(())
    }

    /// Removes it, with all groups beneath it. None may have processes.
    pub fn delete(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for place in &self.places {
            if let Err(error) = remove(&place.dir) {
                result = Err(error);
            }
        }
        result
    }
}

/// Collects the processes of a group and of those beneath it.
fn list(dir: &Dir, all: &mut Vec<Pid>) -> Result<(), Error> {
    let add = |dir: &Dir| {
        let text = match dir.text("cgroup.procs") {
            // A group that is gone by now has no processes, and one of threads
            // has those of the group above it.
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => String::new(),
                _ => {
                    return Err(Error::Read {
                        path: dir.path().join("cgroup.procs"),
                        source: error,
                    });
                }
            },
            Ok(text) => text,
        };
        let ids = text.lines().filter_map(|line| line.parse().ok());
        all.extend(ids.filter_map(Pid::from_raw));
        Ok(())
    };
    tree::walk(dir, add, |_, _| Ok(()))
}

/// Removes a directory and all beneath it. A process that has just ended can
/// hold it for a moment, in which the group lists none.
pub(super) fn remove(dir: &Dir) -> Result<(), Error> {
    let failed = |path: &Path, error: Errno| Error::Remove {
        path: path.to_owned(),
        source: error.into(),
    };
    let deadline = Instant::now() + LEFT;
    let mut pause = Duration::from_micros(100);
    loop {
        match rustix::fs::rmdir(dir.path()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(error) => return Err(failed(dir.path(), error)),
        }
        let mut removed = false;
        let leave = |above: &Dir, name: &str| match unlinkat(above, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                removed = true;
                Ok(())
            }
            // The one above is not empty then, and all is tried again.
            Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => Ok(()),
            Err(error) => Err(failed(&above.path().join(name), error)),
        };
        tree::walk(dir, |_| Ok(()), leave)?;
        if pause > Duration::from_millis(200) {
            let mut processes = Vec::new();
            list(dir, &mut processes)?;
            if !processes.is_empty() || Instant::now() > deadline {
                let last = rustix::fs::rmdir(dir.path());
                return last.map_err(|error| failed(dir.path(), error));
            }
            thread::sleep(pause);
            continue;
        }
        // Those beneath it were what held it, most likely.
        if !removed {
            thread::sleep(pause);
        }
        pause *= 2;
    }
}
