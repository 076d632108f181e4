//! Copying into a container and out of one, by its root as the host sees it.
//!
//! ```text
//! host's path ──send──► socket ──receive──► place in the container's root
//!                (thread)                    found by openat2, RESOLVE_IN_ROOT
//! ```
//!
//! Both ends are the agent's, which follow no link within the tree; the place
//! in the container is found as the container would find it, so that no link
//! of it leads out.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;

use croft_agent::AgentError;
use croft_agent::connection::halves;
use croft_agent::tree::{self, Arrival, Policy, Target};
use croft_api::container::IdRange;
use croft_api::pair;
use croft_host::{InstanceName, Instances};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

use super::container_of;
use crate::instance::Fault;

/// Name of the other end in messages, which is this process.
const PEER: &str = "croft";
/// What everything in a directory is called, and the directory itself is not.
const CONTENTS: &[u8] = b"/.";

/// Copies a file or tree of the host's into a container; everything belongs to
/// `owner` as the container counts, or else to whom it belongs here.
pub fn put(
    instances: &Instances,
    name: &InstanceName,
    from: &Path,
    to: &OsStr,
    owner: Option<(u32, u32)>,
) -> Result<(), Fault> {
    let (root, ids) = root(instances, name)?;
    let wrong = |message: String| Fault::usage(message).of(name);
    let about = from
        .metadata()
        .map_err(|error| Fault::usage(format!("'{}': {error}", from.display())))?;
    let contents = is_contents(from.as_os_str());
    let target = target(&root, to, about.is_dir(), contents).map_err(wrong)?;
    let first = ids.map_or(0, |ids| ids.first);
    let policy = Policy {
        owner: owner.map(|(uid, gid)| (first.saturating_add(uid), first.saturating_add(gid))),
        keep_owner: owner.is_none(),
        shift: first,
        mode: 0o7777,
    };
    let source = open(
        from,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| Fault::usage(format!("'{}': {error}", from.display())))?;
    let last = last_name(from);
    copy(source, &last, from, target, policy)
        .map(drop)
        .map_err(|error| of(name, &error))
}

/// Copies a file or tree of a container to the host, where it belongs to
/// whoever copies it.
pub fn get(
    instances: &Instances,
    name: &InstanceName,
    from: &OsStr,
    to: &Path,
) -> Result<Arrival, Fault> {
    let (root, _) = root(instances, name)?;
    let shown = Path::new(from);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let source = find(&root, shown, flags).map_err(|error| {
        Fault::usage(format!("'{}' in the container: {error}", shown.display())).of(name)
    })?;
    let directory = rustix::fs::fstat(&source).is_ok_and(|about| {
        rustix::fs::FileType::from_raw_mode(about.st_mode) == rustix::fs::FileType::Directory
    });
    let here = open(
        ".",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| Fault::failed(format!("the working directory: {error}")))?;
    let target = Place {
        root: &here,
        resolve: ResolveFlags::empty(),
    }
    .target(to.as_os_str(), directory, is_contents(from))
    .map_err(Fault::usage)?;
    // A container shall not make programs that run as the host's root.
    let policy = Policy {
        owner: None,
        keep_owner: false,
        shift: 0,
        mode: 0o777,
    };
    copy(source, &last_name(shown), shown, target, policy).map_err(|error| of(name, &error))
}

fn of(name: &InstanceName, error: &AgentError) -> Fault {
    Fault::failed(error.to_string()).of(name)
}

/// From one to the other, through a socket, by a thread of its own.
fn copy(
    source: OwnedFd,
    name: &OsStr,
    shown: &Path,
    target: Target,
    policy: Policy,
) -> Result<Arrival, AgentError> {
    let failed = |source| AgentError::Io { peer: PEER, source };
    let (near, far) = pair().map_err(failed)?;
    let (mut sender, _own) = halves(near, PEER)?;
    let (_other, mut receiver) = halves(far, PEER)?;
    let (name, shown) = (name.to_owned(), shown.to_owned());
    let sending = thread::Builder::new()
        .name("send".to_owned())
        .spawn(move || {
            let sent = tree::send_open(&mut sender, source, &name, &shown);
            // The end of what is read.
            drop((sender, _own));
            sent
        })
        .map_err(failed)?;
    let received = tree::receive_into(&mut receiver, target, policy);
    drop((receiver, _other));
    let sent = sending
        .join()
        .unwrap_or_else(|_| Err(failed(std::io::Error::other("a thread has failed"))));
    match (received, sent) {
        // What the source says is told to the target too.
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        (Ok(arrival), Ok(())) => Ok(arrival),
    }
}

/// A container's root, and the ids that are its own.
fn root(instances: &Instances, name: &InstanceName) -> Result<(OwnedFd, Option<IdRange>), Fault> {
    let config = instances.config(name)?;
    let ids = container_of(&config, name)?.ids;
    let status = instances.status(name)?;
    let Some(payload) = status.payload.filter(|_| status.phase.has_payload()) else {
        return Err(Fault::failed(format!(
            "it is {}; 'croft start {name}' starts it",
            status.phase
        ))
        .of(name));
    };
    let path = format!("/proc/{}/root", payload.pid);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(&path, flags, Mode::empty());
    let root = root.map_err(|error| Fault::failed(format!("its root: {error}")).of(name))?;
    // The same process as before: else its number may be another's by now.
    if croft_host::process::identify(payload.pid) != Some(payload) {
        return Err(Fault::failed("it has just ended").of(name));
    }
    Ok((root, ids))
}

fn is_contents(path: &OsStr) -> bool {
    let bytes = path.as_bytes();
    bytes == b"." || bytes.ends_with(CONTENTS)
}

fn last_name(path: &Path) -> OsString {
    path.file_name()
        .map_or_else(|| OsString::from("root"), OsStr::to_owned)
}

fn find(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, Mode::empty(), resolve)
}

fn target(root: &OwnedFd, to: &OsStr, directory: bool, contents: bool) -> Result<Target, String> {
    let place = Place {
        root,
        resolve: ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    };
    place.target(to, directory, contents)
}

/// Where something is copied to: beneath a root, or from here.
struct Place<'a> {
    root: &'a OwnedFd,
    resolve: ResolveFlags,
}

impl Place<'_> {
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if self.resolve.is_empty() {
            return rustix::fs::openat(CWD, path, flags, Mode::empty());
        }
        openat2(self.root, path, flags, Mode::empty(), self.resolve)
    }

    /// As docker's `cp` has it: into a directory that is there, under the name
    /// that it has; else under the new name, whose directory must be there.
    /// What ends in `/` is a directory, and `/.` behind the source means what is
    /// in it.
    fn target(&self, to: &OsStr, directory: bool, contents: bool) -> Result<Target, String> {
        let path = Path::new(to);
        let shown = path.to_owned();
        match self.open(path) {
            Ok(there) => {
                return Ok(Target {
                    directory: there,
                    name: None,
                    contents,
                    shown,
                });
            }
            Err(Errno::NOTDIR) if directory => {
                return Err(format!(
                    "'{}' is a file, and a directory cannot take its place",
                    shown.display()
                ));
            }
            Err(Errno::NOTDIR | Errno::NOENT) => {}
            Err(error) => return Err(format!("'{}': {error}", shown.display())),
        }
        if to.as_bytes().ends_with(b"/") && !directory {
            return Err(format!(
                "'{}' is no directory that is there",
                shown.display()
            ));
        }
        let name = path
            .file_name()
            .ok_or_else(|| format!("'{}' is no place for a file", shown.display()))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ if self.resolve.is_empty() => Path::new("."),
            _ => Path::new("/"),
        };
        let there = self.open(parent);
        let there = there.map_err(|error| format!("'{}': {error}", parent.display()))?;
        Ok(Target {
            directory: there,
            name: Some(name.to_owned()),
            contents: false,
            shown: PathBuf::from(parent),
        })
    }
}
