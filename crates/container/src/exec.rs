//! A program in a container that runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{Process, Spec};
use rustix::process::Pid;

use crate::{Error, Groups, Stdio, Step};

/// What a program in a container is made from.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The container's init.
    pub target: BorrowedFd<'a>,
    /// The same, as the host numbers it.
    pub target_pid: Pid,
    /// What the container is: namespaces, filters.
    pub spec: &'a Spec,
    /// The program.
    pub process: &'a Process,
    /// The container's control groups.
    pub groups: Groups,
    /// Its standard streams, unless `process.terminal` is set.
    pub stdio: Stdio,
    /// Descriptors 3 and up that the program keeps, at their numbers.
    pub preserve_fds: u32,
    /// It is killed when its maker ends.
    pub die_with_parent: bool,
}

/// A program that runs in a container.
#[derive(Debug)]
pub struct Joined {
    pid: Pid,
    pidfd: OwnedFd,
    console: Option<OwnedFd>,
}

impl Joined {
    /// It, as the host sees it. The caller's child: it is to be waited for.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The same, safe from ids that are used again.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The terminal's other end, if it has one.
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }
}

/// Runs a program in a container, and returns when it is there.
pub fn exec(exec: Exec<'_>) -> Result<Joined, Error> {
    let message = format!("{:?}: this build cannot run programs", exec.target_pid);
    Err(Error::new(Step::Init, message))
}
