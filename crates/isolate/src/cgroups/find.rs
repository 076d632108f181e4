//! Which hierarchies there are, and where this process is in them.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Controllers, Error};

/// What is read at a time of a file of procfs, in bytes.
const STEP: usize = 8 << 10;

/// Of which kind a hierarchy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One or several controllers of their own.
    One,
    /// The unified one.
    Two,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its kind.
    pub version: Version,
    /// Controllers it has; for version 2 those of the mount's root, without
    /// what every group of version 2 has.
    pub controllers: Controllers,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The group of this process, beneath the mount, with a `/` in front.
    pub own: String,
    /// The group that is the mount's root.
    root: String,
}

/// All that is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// In the order of their mounting; at most one of version 2.
    all: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Looks at this host.
    pub fn find() -> Result<Self, Error> {
        let failed = |path: &str, source| Error::Read {
            path: path.into(),
            source,
        };
        let path = "/proc/self/cgroup";
        let groups = match read(path) {
            // A kernel without control groups.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            result => result.map_err(|source| failed(path, source))?,
        };
        let path = "/proc/self/mountinfo";
        let mounts = read(path).map_err(|source| failed(path, source))?;
        Ok(Self::parse(&mounts, &groups, |root| {
            fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        }))
    }

    /// From `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and
    /// `/proc/self/cgroup` (cgroups(7)). What version 2 has is in neither:
    /// `listed` says what `cgroup.controllers` of its root has.
    pub fn parse(mounts: &str, groups: &str, listed: impl Fn(&Path) -> String) -> Self {
        let mut found = Hierarchies::default();
        for line in mounts.lines() {
            if let Some(mut hierarchy) = Self::parse_mount(line, groups) {
                let known = |one: &Hierarchy| match hierarchy.version {
                    Version::Two => one.version == Version::Two,
                    Version::One => one.controllers.intersects(hierarchy.controllers),
                };
                if !found.all.iter().any(known) {
                    if hierarchy.version == Version::Two {
                        let listed = listed(&hierarchy.mount);
                        hierarchy.controllers = Controllers::of_list(listed.trim_end(), ' ');
                    }
                    found.all.push(hierarchy);
                }
            }
        }
        found
    }

    fn parse_mount(line: &str, groups: &str) -> Option<Hierarchy> {
        let (front, back) = line.split_once(" - ")?;
        let mut back = back.split(' ');
        let version = match back.next()? {
            "cgroup" => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        let controllers = match version {
            Version::One => Controllers::of_list(back.nth(1)?, ','),
            Version::Two => Controllers::empty(),
        };
        if version == Version::One && controllers.is_empty() {
            return None;
        }
        let mut front = front.split(' ').skip(3);
        let (root, mount) = (unescape(front.next()?), unescape(front.next()?));
        let mut hierarchy = Hierarchy {
            version,
            controllers,
            mount: mount.into(),
            own: String::new(),
            root,
        };
        hierarchy.own = hierarchy.group_of(groups);
        Some(hierarchy)
    }

    /// The same hierarchies, as a process sees them that has this
    /// `/proc/PID/cgroup`.
    pub(super) fn moved(&self, groups: &str) -> Self {
        let moved = |one: &Hierarchy| Hierarchy {
            own: one.group_of(groups),
            ..one.clone()
        };
        Hierarchies {
            all: self.all.iter().map(moved).collect(),
        }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Hierarchy> {
        self.all.iter()
    }

    /// The unified one.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.all.iter().find(|one| one.version == Version::Two)
    }

    /// The one that has a controller.
    pub fn with(&self, controller: Controllers) -> Option<&Hierarchy> {
        let old = |one: &&Hierarchy| one.controllers.contains(controller);
        let always = Controllers::ALWAYS_IN_2.contains(controller);
        let unified = || self.unified().filter(|_| always);
        self.all.iter().find(old).or_else(unified)
    }

    /// Whether version 2 has all there is.
    pub fn is_pure(&self) -> bool {
        !self.all.is_empty() && self.all.iter().all(|one| one.version == Version::Two)
    }
}

/// A file of procfs, which has no size: in few steps, since the kernel writes
/// what is asked for at each.
fn read(path: &str) -> io::Result<String> {
    let mut text = String::with_capacity(STEP);
    fs::File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

impl Hierarchy {
    /// Where a process is in it that has this `/proc/PID/cgroup`.
    fn group_of(&self, groups: &str) -> String {
        let group = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (list, path) = rest.split_once(':')?;
            let same = match self.version {
                Version::Two => list.is_empty(),
                Version::One => Controllers::of_list(list, ',') == self.controllers,
            };
            same.then_some(path)
        });
        beneath(group.unwrap_or("/"), &self.root)
    }
}

/// Where a group is in a mount whose root is the group `root`: `/` where it
/// is not beneath that.
fn beneath(group: &str, root: &str) -> String {
    let inside = match root {
        "/" => Some(group),
        _ => group
            .strip_prefix(root)
            .filter(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    match inside {
        Some(path) if path.starts_with('/') && !path.split('/').any(|part| part == "..") => {
            path.to_owned()
        }
        _ => "/".to_owned(),
    }
}

/// Takes the octal escapes out of a field (proc_pid_mountinfo(5)).
fn unescape(field: &str) -> String {
    if !field.contains('\\') {
        return field.to_owned();
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/me\\040m rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /elsewhere rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 /outer /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
bad line
42 - cgroup
";

    #[test]
    fn mixtures_are_told_apart() {
        let groups = "5:memory:/x\n4:cpu,cpuacct:/a\n1:name=systemd:/s\n0::/outer/user\n";
        let found = Hierarchies::parse(MIXED, groups, |_| "io hugetlb\n".to_owned());
        let shape: Vec<_> = found
            .iter()
            .map(|one| (one.mount.to_str().unwrap(), one.own.as_str()))
            .collect();
        assert_eq!(
            shape,
            [
                ("/sys/fs/cgroup/cpu", "/a"),
                ("/sys/fs/cgroup/me m", "/x"),
                ("/sys/fs/cgroup/systemd", "/s"),
                ("/sys/fs/cgroup/unified", "/user"),
            ]
        );
        assert!(!found.is_pure());
        let cpu = found.with(Controllers::CPUACCT).unwrap();
        assert_eq!(cpu.version, Version::One);
        let devices = found.with(Controllers::DEVICES).unwrap();
        assert_eq!(devices.version, Version::Two);
        let io = found.with(Controllers::IO).unwrap();
        assert_eq!(io.mount.to_str(), Some("/sys/fs/cgroup/unified"));
        assert!(found.with(Controllers::PIDS).is_none());
    }

    #[test]
    fn groups_outside_of_the_mount_are_its_root() {
        assert_eq!(beneath("/a/b", "/a"), "/b");
        assert_eq!(beneath("/ab", "/a"), "/");
        assert_eq!(beneath("/a", "/a"), "/");
        assert_eq!(beneath("/../x", "/"), "/");
        assert_eq!(unescape("a\\040b\\"), "a b\\");
    }
}
