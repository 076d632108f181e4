//! Devices and links in `/dev` (runtime-spec, `config-linux.md`, Default
//! Devices, Default Filesystems; `runtime-linux.md`, Dev symbolic links).

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, major, makedev, minor,
    mknodat, openat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::mounts::{attach, clone_tree};
use super::resolve::{InRoot, Kind};
use crate::error::At;
use crate::{Error, Step};

/// Every container has these, all of the major number 1 but the terminal.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Devices that no container is refused: those that every container has, its
/// terminals, and the making of nodes, which gives no right to the device. To
/// be put behind the rules of a description, which often begin by denying all.
pub fn allowed() -> Vec<LinuxDeviceCgroup> {
    let rule = |kind, major: Option<u32>, minor: Option<u32>, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_typ(Some(kind));
        rule.set_major(major.map(i64::from));
        rule.set_minor(minor.map(i64::from));
        rule.set_access(Some(access.to_owned()));
        rule
    };
    let mut rules = vec![
        rule(LinuxDeviceType::C, None, None, "m"),
        rule(LinuxDeviceType::B, None, None, "m"),
    ];
    for (_, major, minor) in DEFAULT {
        rules.push(rule(LinuxDeviceType::C, Some(major), Some(minor), "rwm"));
    }
    // Terminals and their maker (Linux `admin-guide/devices.txt`).
    rules.push(rule(LinuxDeviceType::C, Some(136), None, "rwm"));
    rules.push(rule(LinuxDeviceType::C, Some(5), Some(2), "rwm"));
    rules
}

/// A device, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub path: PathBuf,
    kind: FileType,
    mode: u32,
    number: u64,
    owner: (u32, u32),
}

/// Those that every container has.
pub fn defaults() -> impl Iterator<Item = Node> {
    DEFAULT.iter().map(|(path, major, minor)| Node {
        path: path.into(),
        kind: FileType::CharacterDevice,
        mode: 0o666,
        number: makedev(*major, *minor),
        owner: (0, 0),
    })
}

impl Node {
    /// Of a description.
    pub fn new(device: &LinuxDevice) -> Result<Self, Error> {
        let wrong = |text: &str| {
            let place = device.path().display();
            Error::new(Step::Spec, format!("the device {place}: {text}"))
        };
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => return Err(wrong("its type is none of b, c, u and p")),
        };
        if !device.path().is_absolute() {
            return Err(wrong("its path does not begin with a slash"));
        }
        let part = |number: i64| u32::try_from(number).map_err(|_| wrong("its number is none"));
        let number = match kind {
            FileType::Fifo => 0,
            _ => makedev(part(device.major())?, part(device.minor())?),
        };
        Ok(Node {
            path: device.path().clone(),
            kind,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            number,
            owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
        })
    }

    /// The host's device of the same path, or else of the same number, to be
    /// bound where devices cannot be made: in a user namespace.
    pub fn open_host(&self) -> Result<OwnedFd, Error> {
        let paths = [Some(self.path.clone()), self.host_path()];
        for path in paths.into_iter().flatten() {
            if let Ok(tree) = clone_tree(&path, false)
                && self.is(&tree) == Ok(true)
            {
                return Ok(tree);
            }
        }
        let (place, number) = (self.path.display(), self.number);
        let number = format!("{}:{}", major(number), minor(number));
        let text = format!("the device {place}: the host has no {number} of its kind in /dev");
        Err(Error::new(Step::Devices, text))
    }

    /// Where the host has the device of this number (sysfs(5), `/sys/dev`).
    fn host_path(&self) -> Option<PathBuf> {
        let kind = match self.kind {
            FileType::BlockDevice => "block",
            FileType::CharacterDevice => "char",
            _ => return None,
        };
        let (major, minor) = (major(self.number), minor(self.number));
        let about = format!("/sys/dev/{kind}/{major}:{minor}/uevent");
        let text = std::fs::read_to_string(about).ok()?;
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("DEVNAME="))?;
        Some(Path::new("/dev").join(name))
    }

    /// Binds it.
    pub fn bind(&self, root: InRoot<'_>, device: &OwnedFd) -> Result<(), Error> {
        let what = || format!("the device {}", self.path.display());
        let place = root
            .ensure(&self.path, Kind::File)
            .at(Step::Devices, what)?;
        attach(device, place).at(Step::Devices, what)
    }

    /// Makes it. One of the same kind and number may be there.
    pub fn make(&self, root: InRoot<'_>) -> Result<(), Error> {
        let made = root
            .parent(&self.path)
            .and_then(|(parent, name)| self.make_in(&parent, name));
        made.at(Step::Devices, || {
            format!("the device {}", self.path.display())
        })
    }

    /// The same, in its directory.
    fn make_in(&self, parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        // Whoever makes containers has no mask.
        let mode = Mode::from_raw_mode(self.mode);
        match mknodat(parent, name, self.kind, mode, self.number) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let node = self.open(parent, name)?;
                // By a handle: who else has this directory may put a link in
                // its place meanwhile.
                chmod(node, mode)?;
            }
            Err(error) => return Err(error),
        }
        if self.owner == (0, 0) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.owner.0), Gid::from_raw(self.owner.1));
        let node = self.open(parent, name)?;
        chownat(node, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
    }

    /// A handle of the node in a directory, which must be this.
    fn open(&self, parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = openat(parent, name, flags, Mode::empty())?;
        match self.is(&node)? {
            true => Ok(node),
            false => Err(Errno::EXIST),
        }
    }

    /// Whether what a handle is of is this device.
    fn is(&self, node: &OwnedFd) -> Result<bool, Errno> {
        let there = fstat(node)?;
        Ok(FileType::from_raw_mode(there.st_mode) == self.kind
            && (self.kind == FileType::Fifo || there.st_rdev == self.number))
    }
}

/// Changes the mode of what a handle is of, which needs a path: the handle's.
fn chmod(node: OwnedFd, mode: Mode) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    chmodat(CWD, path, mode, AtFlags::empty())
}

/// Makes the devices and links that every container has in its `/dev`.
/// `bound` are the host's devices where none can be made.
pub fn fill(root: InRoot<'_>, bound: Option<&[OwnedFd]>) -> Result<(), Error> {
    let what = || "the container's /dev";
    let dev = root.ensure(Path::new("/dev"), Kind::Directory);
    let dev = dev.at(Step::Devices, what)?;
    match bound {
        Some(bound) => {
            for (index, node) in defaults().enumerate() {
                match bound.get(index) {
                    Some(device) => node.bind(root, device)?,
                    // Nobody has opened it for us.
                    None => node.bind(root, &node.open_host()?)?,
                }
            }
        }
        None => {
            for node in defaults() {
                let name = node.path.file_name().unwrap_or_default();
                node.make_in(&dev, name).at(Step::Devices, || {
                    format!("the device {}", node.path.display())
                })?;
            }
        }
    }
    for (path, target) in LINKS {
        link(&dev, path, target).at(Step::Devices, || format!("the link {path}"))?;
    }
    if Path::new("/proc/kcore").exists() {
        link(&dev, "/dev/core", "/proc/kcore").at(Step::Devices, || "the link /dev/core")?;
    }
    Ok(())
}

/// Makes a link in `/dev`; a directory or other file that is there stays, but
/// not in the place of the terminals' maker.
fn link(dev: &OwnedFd, path: &str, target: &str) -> Result<(), Errno> {
    let name = path.trim_start_matches("/dev/");
    match symlinkat(target, dev, name) {
        Err(Errno::EXIST) if name == "ptmx" => {
            match unlinkat(dev, name, AtFlags::empty()) {
                // Something is mounted there, on purpose.
                Err(Errno::BUSY) => return Ok(()),
                result => result?,
            }
            symlinkat(target, dev, name)
        }
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// The host's null device, to cover files with. It is checked to be that.
pub fn null() -> Result<OwnedFd, Error> {
    let what = || "the host's /dev/null";
    let tree = clone_tree(Path::new("/dev/null"), false).at(Step::Mounts, what)?;
    let is_null = defaults()
        .next()
        .is_some_and(|null| null.is(&tree) == Ok(true));
    if is_null {
        return Ok(tree);
    }
    let text = format!("{} is no null device", what());
    Err(Error::new(Step::Mounts, text))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceBuilder;

    use super::*;

    fn device(kind: LinuxDeviceType, path: &str, minor: i64) -> LinuxDevice {
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(kind)
            .major(10)
            .minor(minor)
            .file_mode(0o100640_u32)
            .uid(3_u32)
            .build()
            .unwrap()
    }

    #[test]
    fn descriptions_are_understood() {
        let node = Node::new(&device(LinuxDeviceType::U, "/dev/fuse", 229)).unwrap();
        assert_eq!(node.kind, FileType::CharacterDevice);
        assert_eq!((node.mode, node.owner), (0o640, (3, 0)));
        assert_eq!(node.number, makedev(10, 229));
    }

    #[test]
    fn a_link_in_the_place_of_a_device_is_not_followed() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: devices are made by root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let handle = super::super::resolve::directory(directory.path()).unwrap();
        let mut node = Node::new(&device(LinuxDeviceType::C, "/x", 229)).unwrap();
        if node.make_in(&handle, OsStr::new("x")).is_err() {
            eprintln!("skipped: no device can be made here");
            return;
        }
        // Once more, with another mode.
        node.mode = 0o600;
        node.make_in(&handle, OsStr::new("x")).unwrap();
        let found = std::fs::metadata(directory.path().join("x")).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((found.mode() & 0o7777, found.uid()), (0o600, 3));
        std::os::unix::fs::symlink("x", directory.path().join("link")).unwrap();
        assert_eq!(node.make_in(&handle, OsStr::new("link")), Err(Errno::EXIST));
    }

    #[test]
    fn nonsense_is_refused() {
        for (kind, path, minor) in [
            (LinuxDeviceType::A, "/dev/x", 1),
            (LinuxDeviceType::C, "dev/x", 1),
            (LinuxDeviceType::C, "/dev/x", -1),
        ] {
            assert!(Node::new(&device(kind, path, minor)).is_err());
        }
    }
}
