//! Namespaces of a container: new ones, and ones that are joined.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, stat};

use crate::error::At;
use crate::{Error, Step, sys};

pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
pub const USER: u64 = libc::CLONE_NEWUSER as u64;
pub const PID: u64 = libc::CLONE_NEWPID as u64;
pub const NETWORK: u64 = libc::CLONE_NEWNET as u64;
/// `CLONE_NEWTIME`.
pub const TIME: u64 = 0x80;

/// By flags of clone(2).
#[derive(Debug, Default)]
pub struct Namespaces {
    /// New ones.
    pub new: u64,
    /// Open ones of others.
    pub joined: Vec<(u64, OwnedFd)>,
}

fn flag(kind: LinuxNamespaceType) -> u64 {
    match kind {
        LinuxNamespaceType::Mount => MOUNT,
        LinuxNamespaceType::Cgroup => CGROUP,
        LinuxNamespaceType::Uts => UTS,
        LinuxNamespaceType::Ipc => IPC,
        LinuxNamespaceType::User => USER,
        LinuxNamespaceType::Pid => PID,
        LinuxNamespaceType::Network => NETWORK,
        LinuxNamespaceType::Time => TIME,
    }
}

impl Namespaces {
    /// Reads the list of a description and opens what is to be joined.
    pub fn open(list: &[LinuxNamespace]) -> Result<Self, Error> {
        let mut namespaces = Namespaces::default();
        for one in list {
            let flag = flag(one.typ());
            if namespaces.has(flag) {
                let text = format!("there are two {} namespaces", one.typ());
                return Err(Error::new(Step::Spec, text));
            }
            match one.path() {
                None => namespaces.new |= flag,
                Some(path) => {
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                    let file = openat(CWD, path, flags, Mode::empty())
                        .at(Step::Namespaces, || {
                            format!("the {} namespace {}", one.typ(), path.display())
                        })?;
                    // Who is in it already joins nothing: it is the host's.
                    if !is_own(&file, flag) {
                        namespaces.joined.push((flag, file));
                    }
                }
            }
        }
        Ok(namespaces)
    }

    /// Flags of a list, whether new or joined.
    pub fn kinds(list: &[LinuxNamespace]) -> u64 {
        list.iter().fold(0, |kinds, one| kinds | flag(one.typ()))
    }

    /// Whether a list has a new one of this kind.
    pub fn makes(list: &[LinuxNamespace], kind: u64) -> bool {
        let new = |one: &LinuxNamespace| one.path().is_none() && flag(one.typ()) == kind;
        list.iter().any(new)
    }

    /// Whether it has one that its maker is not in, presumably.
    pub fn has(&self, flag: u64) -> bool {
        self.new & flag != 0 || self.joins(flag).is_some()
    }

    /// The one of a kind that is joined.
    pub fn joins(&self, flag: u64) -> Option<&OwnedFd> {
        let found = self.joined.iter().find(|(one, _)| *one == flag);
        found.map(|(_, file)| file)
    }

    /// Joins those that a process can join by itself, the user namespace's
    /// rights being there already.
    pub fn join(&self) -> Result<(), Error> {
        for (flag, file) in &self.joined {
            if *flag != USER && *flag != PID {
                sys::setns(file.as_fd(), *flag)
                    .at(Step::Namespaces, || format!("joining {}", name(*flag)))?;
            }
        }
        Ok(())
    }
}

/// Whether it is the one that this process is in.
fn is_own(file: &OwnedFd, flag: u64) -> bool {
    let word = match flag {
        MOUNT => "mnt",
        CGROUP => "cgroup",
        UTS => "uts",
        IPC => "ipc",
        USER => "user",
        PID => "pid",
        NETWORK => "net",
        _ => "time",
    };
    let (given, own) = (fstat(file), stat(format!("/proc/self/ns/{word}")));
    matches!((given, own), (Ok(given), Ok(own)) if (given.st_dev, given.st_ino) == (own.st_dev, own.st_ino))
}

/// What a namespace is called.
pub fn name(flag: u64) -> &'static str {
    match flag {
        MOUNT => "a mount namespace",
        CGROUP => "a cgroup namespace",
        UTS => "a uts namespace",
        IPC => "an ipc namespace",
        USER => "a user namespace",
        PID => "a pid namespace",
        NETWORK => "a network namespace",
        _ => "a time namespace",
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxNamespaceBuilder;

    use super::*;

    #[test]
    fn lists_are_read() {
        let one = |kind| LinuxNamespaceBuilder::default().typ(kind).build().unwrap();
        let list = [one(LinuxNamespaceType::Pid), one(LinuxNamespaceType::Time)];
        let namespaces = Namespaces::open(&list).unwrap();
        assert_eq!(namespaces.new, PID | TIME);
        assert!(namespaces.has(PID) && !namespaces.has(USER));
        assert!(Namespaces::open(&[list[0].clone(), list[0].clone()]).is_err());
    }

    #[test]
    fn ones_own_is_not_joined() {
        let one = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::Network)
            .path("/proc/self/ns/net")
            .build()
            .unwrap();
        let namespaces = Namespaces::open(&[one]).unwrap();
        assert!(!namespaces.has(NETWORK));
    }

    #[test]
    fn a_missing_one_is_named() {
        let one = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::Network)
            .path("/nowhere/net")
            .build()
            .unwrap();
        let error = Namespaces::open(&[one]).unwrap_err();
        assert!(error.message.contains("/nowhere/net"), "{error}");
    }
}
