//! Ids of a user namespace.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};

use oci_spec::runtime::LinuxIdMapping;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Gid, Pid, Signal, Uid, WaitOptions, pidfd_send_signal, waitpid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::channel::{self, Message, receive, send};
use crate::error::At;
use crate::launch::refuse;
use crate::{Error, Step, sys};

/// Most lines of a map (user_namespaces(7)).
const LINES: usize = 340;

/// The maps of a namespace: lines of first inside, first outside, how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    pub users: Vec<LinuxIdMapping>,
    pub groups: Vec<LinuxIdMapping>,
}

impl Maps {
    /// Checks them: overlaps and what is empty are refused by the kernel, with
    /// less to say about it.
    pub fn new(users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> Result<Self, Error> {
        for (what, map) in [("uidMappings", users), ("gidMappings", groups)] {
            let end = |first: u32, size: u32| first.checked_add(size).is_none();
            let wrong = |line: &LinuxIdMapping| {
                line.size() == 0
                    || end(line.container_id(), line.size())
                    || end(line.host_id(), line.size())
            };
            if map.is_empty() || map.len() > LINES || map.iter().any(wrong) {
                let text = format!("{what} has no line, too many, or one that is no range of ids");
                return Err(Error::new(Step::Spec, text));
            }
        }
        Ok(Maps {
            users: users.to_vec(),
            groups: groups.to_vec(),
        })
    }

    /// Gives them to a process that is in a new namespace.
    ///
    /// Whoever may not do so (user_namespaces(7)) has them given by
    /// `newuidmap` and `newgidmap`, as `/etc/subuid` and `/etc/subgid` allow,
    /// or has but the own id.
    pub fn give(&self, pid: Pid) -> Result<(), Error> {
        let id = pid.as_raw_nonzero();
        let own = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let is_root = own.0 == 0;
        let only = |map: &[LinuxIdMapping], own: u32| matches!(map, [line] if line.size() == 1 && line.host_id() == own);
        if is_root || only(&self.users, own.0) {
            let path = format!("/proc/{id}/uid_map");
            fs::write(&path, lines(&self.users)).at(Step::Ids, || &path)?;
        } else {
            helper("newuidmap", pid, &self.users)?;
        }
        if is_root {
            let path = format!("/proc/{id}/gid_map");
            return fs::write(&path, lines(&self.groups)).at(Step::Ids, || &path);
        }
        if only(&self.groups, own.1) {
            let path = format!("/proc/{id}/setgroups");
            fs::write(&path, "deny").at(Step::Ids, || &path)?;
            let path = format!("/proc/{id}/gid_map");
            return fs::write(&path, lines(&self.groups)).at(Step::Ids, || &path);
        }
        helper("newgidmap", pid, &self.groups)
    }

    /// A user namespace that has them and nobody in it, to map the ids of
    /// mounts by.
    pub fn namespace(&self) -> Result<OwnedFd, Error> {
        let what = || "a user namespace for a mount";
        let (ours, theirs) = channel::pair().at(Step::Ids, what)?;
        let made = sys::clone3(libc::CLONE_NEWUSER as u64, None);
        let Some((pid, pidfd)) = made.at(Step::Ids, what)? else {
            drop(ours);
            // It is killed; nobody says anything, but its maker may end.
            let _ = channel::receive(&theirs);
            sys::leave(0);
        };
        drop(theirs);
        let namespace = self.give(pid).and_then(|()| of_process(pid));
        // It cannot be gone: only we reap it.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
        drop(ours);
        namespace
    }
}

/// Does something as the root of these ids, in a process of its own: in files
/// that belong to them, for a user who is not root. `act` has the memory of this
/// process, which must have one thread, and nothing of what it changes stays.
pub fn as_root_of(
    maps: (&[LinuxIdMapping], &[LinuxIdMapping]),
    act: impl FnOnce() -> Result<(), String>,
) -> Result<(), Error> {
    let maps = Maps::new(maps.0, maps.1)?;
    let what = || "a process with the container's ids";
    let (ours, theirs) = channel::pair().at(Step::Ids, what)?;
    let made = sys::clone3(libc::CLONE_NEWUSER as u64, None).at(Step::Ids, what)?;
    let Some((pid, _)) = made else {
        drop(ours);
        let done = || -> Result<(), Error> {
            // Without it there are no ids.
            let go = receive(&theirs).at(Step::Ids, what)?;
            go.ok_or_else(|| Error::new(Step::Ids, "its maker has ended"))?;
            // Forbidden where there is one group alone (user_namespaces(7)).
            let _ = set_thread_groups(&[]);
            set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).at(Step::Ids, what)?;
            set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).at(Step::Ids, what)?;
            act().map_err(|error| Error::new(Step::Ids, error))
        };
        // A panic must not run what is the maker's.
        let result = catch_unwind(AssertUnwindSafe(done));
        let panicked = |_| Err(Error::new(Step::Ids, "a fault of Croft's own"));
        match result.unwrap_or_else(panicked) {
            Ok(()) => {
                // Its maker may be gone.
                let _ = send(&theirs, &Message::Go, &[]);
                sys::leave(0)
            }
            Err(error) => refuse(&theirs, error),
        }
    };
    drop(theirs);
    let answer = maps.give(pid).and_then(|()| {
        send(&ours, &Message::Go, &[]).at(Step::Ids, what)?;
        receive(&ours).at(Step::Ids, what)
    });
    // It waits no longer, whatever it has done.
    drop(ours);
    let _ = waitpid(Some(pid), WaitOptions::empty());
    match answer? {
        Some((Message::Go, _)) => Ok(()),
        Some((Message::Failed(error), _)) => Err(error),
        _ => Err(Error::new(Step::Ids, format!("{} ended", what()))),
    }
}

/// The user namespace of a process.
pub fn of_process(pid: Pid) -> Result<OwnedFd, Error> {
    namespace(pid, "user")
}

/// The namespace of a kind that a process is in.
pub fn namespace(pid: Pid, kind: &str) -> Result<OwnedFd, Error> {
    let path = format!("/proc/{}/ns/{kind}", pid.as_raw_nonzero());
    openat(
        CWD,
        path.as_str(),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(Step::Ids, || &path)
}

fn lines(map: &[LinuxIdMapping]) -> String {
    let mut text = String::new();
    for line in map {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{} {} {}",
            line.container_id(),
            line.host_id(),
            line.size()
        );
    }
    text
}

/// Runs one of shadow's programs.
fn helper(program: &str, pid: Pid, map: &[LinuxIdMapping]) -> Result<(), Error> {
    let output = Command::new(program)
        .arg(pid.as_raw_nonzero().to_string())
        .args(
            map.iter()
                .flat_map(|line| [line.container_id(), line.host_id(), line.size()])
                .map(|number| number.to_string()),
        )
        .stdin(Stdio::null())
        .output()
        .at(Step::Ids, || {
            format!("{program} cannot be run: install uidmap, or map a single id")
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let text = format!("{program} refuses the ids: {}", said.trim());
    Err(Error::new(Step::Ids, text))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxIdMappingBuilder;

    use super::*;

    fn line(inside: u32, outside: u32, size: u32) -> LinuxIdMapping {
        LinuxIdMappingBuilder::default()
            .container_id(inside)
            .host_id(outside)
            .size(size)
            .build()
            .unwrap()
    }

    #[test]
    fn maps_are_lines() {
        let map = [line(0, 1000, 1), line(1, 100_000, 65_535)];
        assert_eq!(lines(&map), "0 1000 1\n1 100000 65535\n");
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        let fine = [line(0, 1000, 1)];
        assert!(Maps::new(&fine, &fine).is_ok());
        for wrong in [vec![], vec![line(0, 0, 0)], vec![line(0, u32::MAX, 2)]] {
            assert!(Maps::new(&wrong, &fine).is_err());
            assert!(Maps::new(&fine, &wrong).is_err());
        }
    }
}
