//! Making a group's directories: which of them, where, and with which
//! controllers.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::process::Pid;

use super::dir::Dir;
use super::group::{Group, Place, remove};
use super::{Controllers, Error, Hierarchies, Hierarchy, LeftOut, Version};

/// Longest name of a group.
const NAME_MAX: usize = 255;
/// Deepest path of a group: the kernel bounds it too (`cgroup.max.depth`),
/// but not by default.
const DEEPEST: usize = 64;
/// Beneath a container's group: programs that were put into it from outside.
const PROGRAMS: &str = "croft.exec";

/// Names of a path, from the top.
pub fn parts(path: &Path) -> Result<Vec<&str>, Error> {
    let wrong = |why| Error::Path {
        path: path.to_owned(),
        why,
    };
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => match name.to_str() {
                Some(name) if name.len() <= NAME_MAX && !name.contains(['\n', '\0']) => {
                    parts.push(name);
                }
                _ => return Err(wrong("a name is too long or has odd characters")),
            },
            Component::ParentDir | Component::Prefix(_) => {
                return Err(wrong("it must not go upwards"));
            }
        }
    }
    match parts.len() {
        0 => Err(wrong("it is empty")),
        1..=DEEPEST => Ok(parts),
        _ => Err(wrong("it is too deep")),
    }
}

/// What becomes of an empty group that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It goes, with all that was set.
    Replaced,
    /// It stays as it is.
    Taken,
}

/// The group that this process may make groups in.
#[derive(Debug)]
pub struct Base {
    mount: PathBuf,
    /// Beneath the mount; `/` or without one at the end.
    group: String,
}

impl Base {
    /// The highest group on the way from the root to our own that may be
    /// written: the root itself for root, what was delegated to a user.
    pub fn find(hierarchy: &Hierarchy) -> Option<Self> {
        if writable(&hierarchy.mount) {
            return Some(Self::root(hierarchy));
        }
        let ends = hierarchy.own.match_indices('/').map(|(at, _)| at).skip(1);
        let ends = ends.chain([hierarchy.own.len()]);
        for end in ends {
            let group = hierarchy.own.get(..end).unwrap_or_default();
            let path = hierarchy.mount.join(group.trim_start_matches('/'));
            // Who moves a process needs this file of the group above both.
            if group != "/" && writable(&path) && writable(&path.join("cgroup.procs")) {
                return Some(Base {
                    mount: hierarchy.mount.clone(),
                    group: group.to_owned(),
                });
            }
        }
        None
    }

    /// The root of a hierarchy.
    pub fn root(hierarchy: &Hierarchy) -> Self {
        Base {
            mount: hierarchy.mount.clone(),
            group: "/".to_owned(),
        }
    }

    /// Where it is.
    fn path(&self) -> PathBuf {
        self.mount.join(self.group.trim_start_matches('/'))
    }

    /// What of a path is beneath it: one that names the base itself is not
    /// put beneath it a second time.
    fn inside<'a, 'b>(&self, parts: &'a [&'b str]) -> &'a [&'b str] {
        let own = self.group.split('/').filter(|part| !part.is_empty());
        let own: Vec<&str> = own.collect();
        match parts.get(own.len()..) {
            Some(rest) if !rest.is_empty() && parts.starts_with(&own) => rest,
            _ => parts,
        }
    }
}

fn writable(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// Makes a group in one hierarchy.
pub fn create(
    hierarchy: &Hierarchy,
    base: &Base,
    parts: &[&str],
    wanted: Controllers,
    existing: Existing,
    left_out: &mut Vec<LeftOut>,
) -> Result<Place, Error> {
    let failed = |path: &Path, source: io::Error| Error::Make {
        path: path.to_owned(),
        source,
    };
    let Some((name, above)) = base.inside(parts).split_last() else {
        return Err(Error::Path {
            path: PathBuf::new(),
            why: "it is empty",
        });
    };
    let mut wanted = wanted.intersection(hierarchy.controllers);
    let parent = ready_parent(hierarchy, base, above, wanted);
    let parent = match parent {
        Some(parent) => parent,
        None => {
            let path = base.path();
            let mut dir = Dir::open(path.clone()).map_err(|source| failed(&path, source))?;
            for name in above {
                let lost = prepare(hierarchy, &dir, wanted);
                wanted = without(wanted, lost, left_out);
                let path = dir.path().join(name);
                let made = dir.make(name).map_err(|source| failed(&path, source))?;
                let child = dir.child(name).map_err(|source| failed(&path, source))?;
                if made && hierarchy.controllers.contains(Controllers::CPUSET) {
                    inherit_cpuset(hierarchy, &dir, &child)?;
                }
                dir = child;
            }
            let lost = prepare(hierarchy, &dir, wanted);
            wanted = without(wanted, lost, left_out);
            dir
        }
    };
    let path = parent.path().join(name);
    let made = |result: io::Result<bool>| result.map_err(|source| failed(&path, source));
    if !made(parent.make(name))? {
        let old = parent.child(name).map_err(|source| failed(&path, source))?;
        if !old.read("cgroup.procs")?.is_empty() {
            return Err(Error::InUse(path));
        }
        if existing == Existing::Replaced {
            // One that cannot be removed, such as a user's that root has made,
            // is taken as it is.
            match remove(&old) {
                Err(Error::Remove { source, .. })
                    if Errno::from_io_error(&source) == Some(Errno::BUSY) =>
                {
                    return Err(Error::InUse(path));
                }
                _ => made(parent.make(name))?,
            };
        }
    }
    let dir = parent.child(name).map_err(|source| failed(&path, source))?;
    let place = Place {
        version: hierarchy.version,
        controllers: match hierarchy.version {
            Version::One => hierarchy.controllers,
            Version::Two => wanted,
        },
        dir,
    };
    if hierarchy.controllers.contains(Controllers::CPUSET) {
        inherit_cpuset(hierarchy, &parent, &place.dir)?;
    }
    Ok(place)
}

fn without(
    wanted: Controllers,
    lost: Result<(), (Controllers, String)>,
    left_out: &mut Vec<LeftOut>,
) -> Controllers {
    match lost {
        Ok(()) => wanted,
        Err((lost, why)) => {
            left_out.push(LeftOut::controllers(lost, why));
            wanted.difference(lost)
        }
    }
}

/// The group above, if it is there and gives its children all they want: it
/// does, but for the first time on a host.
fn ready_parent(
    hierarchy: &Hierarchy,
    base: &Base,
    above: &[&str],
    wanted: Controllers,
) -> Option<Dir> {
    let mut path = base.path();
    path.extend(above);
    let dir = Dir::open(path).ok()?;
    let ready = match hierarchy.version {
        Version::One => true,
        Version::Two if wanted.is_empty() => true,
        Version::Two => given(&dir).is_ok_and(|given| given.contains(wanted)),
    };
    ready.then_some(dir)
}

/// Controllers that a group of version 2 gives its children.
pub fn given(dir: &Dir) -> io::Result<Controllers> {
    let text = dir.text("cgroup.subtree_control")?;
    Ok(Controllers::of_list(text.trim_end(), ' '))
}

/// Lets the groups beneath one of version 2 have controllers; the error names
/// those that they cannot have.
pub fn prepare(
    hierarchy: &Hierarchy,
    dir: &Dir,
    wanted: Controllers,
) -> Result<(), (Controllers, String)> {
    if hierarchy.version == Version::One || wanted.is_empty() {
        return Ok(());
    }
    let lost = wanted.difference(given(dir).unwrap_or_default());
    if lost.is_empty() {
        return Ok(());
    }
    let line = |all: Controllers| {
        let words: Vec<String> = all.words().map(|word| format!("+{word}")).collect();
        words.join(" ")
    };
    if dir
        .put("cgroup.subtree_control", line(lost).as_bytes())
        .is_ok()
    {
        return Ok(());
    }
    // One that cannot be had must not take the others with it.
    let mut refused = Controllers::empty();
    let mut why = String::new();
    for one in lost.iter() {
        if let Err(error) = dir.put("cgroup.subtree_control", line(one).as_bytes()) {
            refused |= one;
            why = match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
                    "not delegated".to_owned()
                }
                Some(Errno::BUSY) => format!(
                    "{} has processes of its own: version 2 gives controllers to groups beneath empty ones only",
                    dir.path().display()
                ),
                _ => error.to_string(),
            };
        }
    }
    match refused.is_empty() {
        true => Ok(()),
        false => Err((refused, why)),
    }
}

/// A new set of version 1 is empty, and nobody can join it then (cpuset(7)):
/// it gets what the group above it has. Version 2 takes an empty one for
/// that already.
fn inherit_cpuset(hierarchy: &Hierarchy, parent: &Dir, child: &Dir) -> Result<(), Error> {
    if hierarchy.version == Version::Two {
        return Ok(());
    }
    if child.read("cpuset.cpus")?.trim().is_empty() {
        child.write("cpuset.cpus", parent.read("cpuset.cpus")?.trim())?;
    }
    if child.read("cpuset.mems")?.trim().is_empty() {
        child.write("cpuset.mems", parent.read("cpuset.mems")?.trim())?;
        // The next beneath it come with both.
        child.write("cgroup.clone_children", "1")?;
    }
    Ok(())
}

/// Opens a group in one hierarchy, if it is there.
pub fn open(hierarchy: &Hierarchy, base: &Base, parts: &[&str]) -> Result<Option<Place>, Error> {
    let mut path = base.path();
    path.extend(base.inside(parts));
    open_at(hierarchy, path)
}

fn open_at(hierarchy: &Hierarchy, path: PathBuf) -> Result<Option<Place>, Error> {
    let dir = match Dir::open(path.clone()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|source| Error::Read { path, source })?,
    };
    let controllers = match hierarchy.version {
        Version::One => hierarchy.controllers,
        Version::Two => {
            let text = dir.text("cgroup.controllers").unwrap_or_default();
            Controllers::of_list(text.trim_end(), ' ')
        }
    };
    Ok(Some(Place {
        version: hierarchy.version,
        controllers,
        dir,
    }))
}

/// The group that takes another process: this one, or one beneath it that is
/// made for that. A group of version 2 that gives controllers to those beneath
/// it has no processes of its own (`cgroup-v2.rst`, "No Internal Process
/// Constraint").
pub fn with_room(place: &Place) -> Result<Place, Error> {
    let gives = place.version == Version::Two && given(&place.dir).is_ok_and(|all| !all.is_empty());
    let failed = |source| Error::Make {
        path: place.dir.path().join(PROGRAMS),
        source,
    };
    let dir = if gives {
        place.dir.make(PROGRAMS).map_err(failed)?;
        place.dir.child(PROGRAMS)
    } else {
        Dir::open(place.dir.path().to_owned())
    };
    Ok(Place {
        version: place.version,
        controllers: place.controllers,
        dir: dir.map_err(failed)?,
    })
}

/// The group of a process.
pub fn of_process(hierarchies: &Hierarchies, process: Pid) -> Result<Group, Error> {
    let path = PathBuf::from(format!("/proc/{}/cgroup", process.as_raw_nonzero()));
    let text = fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?;
    let mut group = Group {
        places: Vec::new(),
        left_out: Vec::new(),
    };
    for hierarchy in hierarchies.moved(&text).iter() {
        let path = hierarchy.mount.join(hierarchy.own.trim_start_matches('/'));
        group.places.extend(open_at(hierarchy, path)?);
    }
    Ok(group)
}
