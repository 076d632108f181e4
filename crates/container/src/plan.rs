//! A description, checked and understood before anything is made.

use std::path::{Path, PathBuf};

use croft_isolate::seccomp::{self, Program};
use oci_spec::runtime::{Hooks, Process, Spec};

use crate::error::At;
use crate::exec::reaches_maker;
use crate::ids::Maps;
use crate::init::settings::check_limits;
use crate::namespaces::{IPC, MOUNT, NETWORK, Namespaces, TIME, USER, UTS};
use crate::root::devices::Node;
use crate::root::mounts::Planned;
use crate::root::options::propagation;
use crate::{Cover, Create, Error, Groups, Root, Step};

/// Most mounts and devices of the host's in one container: each is a
/// descriptor while it is made, and handed over in one message.
const HANDLES: usize = 240;

/// Settings that belong to the ipc namespace (ipc_namespaces(7)).
const IPC_SETTINGS: [&str; 9] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "fs/mqueue",
];

/// What is going to be made.
#[derive(Debug)]
pub struct Plan<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    pub spec: &'a Spec,
    pub process: Option<&'a Process>,
    pub hooks: Option<&'a Hooks>,
    pub namespaces: Namespaces,
    /// Ids of a user namespace that is new.
    pub maps: Option<Maps>,
    pub groups: &'a Groups,
    pub root: Root<'a>,
    pub root_path: PathBuf,
    pub root_read_only: bool,
    pub propagation: Option<&'a str>,
    pub mounts: Vec<Planned>,
    pub devices: Vec<Node>,
    pub masked: &'a [String],
    pub read_only: &'a [String],
    /// Files beneath `/proc/sys`, and what to write to them.
    pub settings: Vec<(String, &'a str)>,
    /// Clocks, and how far they are ahead.
    pub offsets: Vec<(&'static str, i64, u32)>,
    pub filter: Option<Program>,
    /// What covers files of the container.
    pub covers: &'a [Cover<'a>],
    pub pivot: bool,
    pub keyring: bool,
    pub die_with_parent: bool,
    pub preserve_fds: u32,
    /// Whether what is of the host is opened by the maker: the container's ids
    /// may not reach it, or are needed to map those of a mount. A user who is
    /// not root may no more than the container.
    pub opens_outside: bool,
    /// Whether the program must not begin from the maker's.
    pub springboard: bool,
}

impl<'a> Plan<'a> {
    /// Checks a description and opens what is to be joined.
    pub fn new(create: &'a Create<'a>) -> Result<Self, Error> {
        let spec = create.spec;
        let linux = spec.linux().as_ref();
        let list = linux.and_then(|linux| linux.namespaces().as_deref());
        let namespaces = Namespaces::open(list.unwrap_or_default())?;
        let root = spec.root().as_ref();
        let root_path = match (root, create.root) {
            (Some(root), _) => create.bundle.join(root.path()),
            (None, Root::Overlay(_)) => PathBuf::new(),
            (None, Root::Spec) => {
                return Err(Error::new(Step::Spec, "the description has no root"));
            }
        };
        let mounts = spec.mounts().iter().flatten();
        let devices = linux.and_then(|linux| linux.devices().as_deref());
        let filter = linux.and_then(|linux| linux.seccomp().as_ref());
        let filter = filter.map(seccomp::compile).transpose();
        let maps = Self::maps(spec, &namespaces)?;
        let mounts = mounts
            .map(|mount| Planned::new(mount, create.bundle))
            .collect::<Result<Vec<_>, _>>()?;
        let mapped = |one: &Planned| one.options.id_map.is_some();
        let plan = Plan {
            springboard: reaches_maker(spec),
            opens_outside: rustix::process::geteuid().is_root()
                && namespaces.new & MOUNT != 0
                && (maps.is_some() || mounts.iter().any(mapped)),
            id: create.id,
            bundle: create.bundle,
            spec,
            process: spec.process().as_ref(),
            hooks: spec.hooks().as_ref(),
            maps,
            namespaces,
            groups: &create.groups,
            root: create.root,
            root_path,
            root_read_only: root.and_then(|root| root.readonly()).unwrap_or(false),
            propagation: linux.and_then(|linux| linux.rootfs_propagation().as_deref()),
            mounts,
            devices: devices
                .unwrap_or_default()
                .iter()
                .map(Node::new)
                .collect::<Result<_, _>>()?,
            masked: linux
                .and_then(|linux| linux.masked_paths().as_deref())
                .unwrap_or_default(),
            read_only: linux
                .and_then(|linux| linux.readonly_paths().as_deref())
                .unwrap_or_default(),
            settings: settings(spec)?,
            offsets: offsets(spec)?,
            filter: filter.at(Step::Filter, || "the filter of system calls")?,
            covers: &[],
            pivot: create.pivot,
            keyring: create.keyring,
            die_with_parent: create.die_with_parent,
            preserve_fds: create.preserve_fds,
        };
        plan.check()?;
        Ok(plan)
    }

    fn maps(spec: &Spec, namespaces: &Namespaces) -> Result<Option<Maps>, Error> {
        let linux = spec.linux().as_ref();
        let users = linux.and_then(|linux| linux.uid_mappings().as_deref());
        let groups = linux.and_then(|linux| linux.gid_mappings().as_deref());
        let (users, groups) = (users.unwrap_or_default(), groups.unwrap_or_default());
        if namespaces.new & USER != 0 {
            return Maps::new(users, groups).map(Some);
        }
        if users.is_empty() && groups.is_empty() || namespaces.joins(USER).is_some() {
            return Ok(None);
        }
        let text = "uidMappings and gidMappings need a user namespace";
        Err(Error::new(Step::Spec, text))
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::new(Step::Spec, text));
        if self.namespaces.new & MOUNT == 0 {
            // Mounts of the description would be the host's: there are none then.
            let changes = self.root_read_only || matches!(self.root, Root::Overlay(_));
            if changes && self.namespaces.joins(MOUNT).is_none() {
                return wrong(
                    "a root of layers, or a read-only one, needs a mount namespace of the container's own"
                        .into(),
                );
            }
        }
        if let Some(name) = self.propagation
            && propagation(name).is_none()
        {
            return wrong(format!("rootfsPropagation {name:?} is no kind of it"));
        }
        for (given, what) in [
            (self.spec.hostname(), "hostname"),
            (self.spec.domainname(), "domainname"),
        ] {
            let given = given.as_deref().unwrap_or_default();
            if !given.is_empty() && !self.namespaces.has(UTS) {
                return wrong(format!("{what} needs a uts namespace"));
            }
        }
        if !self.offsets.is_empty() && self.namespaces.new & TIME == 0 {
            return wrong("timeOffsets need a new time namespace".into());
        }
        for (file, _) in &self.settings {
            self.check_setting(file)?;
        }
        check_limits(self.process)?;
        if self.handles() > HANDLES {
            return wrong(format!("more than {HANDLES} binds and devices"));
        }
        let linux = self.spec.linux().as_ref();
        let devices = linux.and_then(|linux| linux.net_devices().as_ref());
        if devices.is_some_and(|devices| !devices.is_empty()) {
            return wrong("netDevices is not supported".into());
        }
        if linux.is_some_and(|linux| linux.intel_rdt().is_some()) {
            return wrong("intelRdt is not supported".into());
        }
        Ok(())
    }

    /// A setting must be of a namespace that the container has, or it would be
    /// the host's.
    fn check_setting(&self, file: &str) -> Result<(), Error> {
        let beneath = |above: &str| {
            let rest = file.strip_prefix(above);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let fine = if IPC_SETTINGS.iter().any(|one| beneath(one)) {
            self.namespaces.has(IPC)
        } else if beneath("net") {
            self.namespaces.has(NETWORK)
        } else if beneath("kernel/domainname") {
            self.namespaces.has(UTS)
        } else if beneath("user") {
            self.namespaces.has(USER)
        } else {
            false
        };
        let clean = file.split('/').all(|name| !matches!(name, "" | "." | ".."));
        if fine && clean {
            return Ok(());
        }
        let text = format!("the setting {file} is the host's, not of a namespace of the container");
        Err(Error::new(Step::Spec, text))
    }

    fn handles(&self) -> usize {
        let binds = |one: &&Planned| one.options.bind.is_some();
        self.mounts.iter().filter(binds).count() + self.devices.len()
    }

    /// The kind of propagation that was asked for.
    pub fn asked_propagation(&self) -> Option<u64> {
        self.propagation.and_then(propagation).map(|(kind, _)| kind)
    }

    /// What a bind has unless it says otherwise.
    pub fn propagation_of_binds(&self) -> u64 {
        match self.asked_propagation() {
            Some(libc::MS_SHARED) => libc::MS_SHARED,
            None | Some(libc::MS_SLAVE) => libc::MS_SLAVE,
            Some(_) => libc::MS_PRIVATE,
        }
    }

    /// Whether devices are the host's, as none can be made.
    pub fn binds_devices(&self) -> bool {
        self.namespaces.has(USER)
    }

    /// Whether `/dev` is the container's own.
    pub fn fills_dev(&self) -> bool {
        let taken = |one: &Planned| {
            one.options.bind.is_some() && one.destination.as_path() == Path::new("/dev")
        };
        !self.mounts.iter().any(taken)
    }

    /// Whether the maker has something to do while init waits.
    pub fn prepares(&self) -> bool {
        self.hooks.is_some_and(|hooks| {
            let some = |list: Option<&Vec<_>>| list.is_some_and(|list| !list.is_empty());
            #[allow(deprecated)]
            let first = some(hooks.prestart().as_ref());
            first || some(hooks.create_runtime().as_ref())
        })
    }
}

fn settings(spec: &Spec) -> Result<Vec<(String, &str)>, Error> {
    let linux = spec.linux().as_ref();
    let given = linux.and_then(|linux| linux.sysctl().as_ref());
    let mut settings: Vec<_> = given
        .into_iter()
        .flatten()
        .map(|(name, value)| (file_of(name), value.as_str()))
        .collect();
    settings.sort();
    Ok(settings)
}

/// The file of a setting: dots part names, and slashes are dots of names, or
/// the other way round (sysctl(8)).
fn file_of(name: &str) -> String {
    let first = name.find(['.', '/']).and_then(|at| name.as_bytes().get(at));
    if first == Some(&b'/') {
        return name.to_owned();
    }
    let other = |letter| match letter {
        '.' => '/',
        '/' => '.',
        letter => letter,
    };
    name.chars().map(other).collect()
}

fn offsets(spec: &Spec) -> Result<Vec<(&'static str, i64, u32)>, Error> {
    let linux = spec.linux().as_ref();
    let given = linux.and_then(|linux| linux.time_offsets().as_ref());
    let mut offsets = Vec::new();
    for (clock, offset) in given.into_iter().flatten() {
        let clock = match clock.as_str() {
            "monotonic" => "monotonic",
            "boottime" => "boottime",
            _ => {
                let text = format!("timeOffsets: there is no clock {clock:?}");
                return Err(Error::new(Step::Spec, text));
            }
        };
        let (seconds, rest) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        offsets.push((clock, seconds, rest));
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_files() {
        for (name, file) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            (
                "net/ipv4/conf/eth0.1/rp_filter",
                "net/ipv4/conf/eth0.1/rp_filter",
            ),
            (
                "net.ipv4.conf.eth0/1.rp_filter",
                "net/ipv4/conf/eth0.1/rp_filter",
            ),
        ] {
            assert_eq!(file_of(name), file);
        }
    }
}
