//! Making a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::process::Pid;

use crate::{Error, Groups, Step};

/// What a container is made from.
#[derive(Debug)]
pub struct Create<'a> {
    /// Its name: hooks are told, and it is in messages.
    pub id: &'a str,
    /// What it is.
    pub spec: &'a Spec,
    /// Where relative paths of the spec begin; hooks are told.
    pub bundle: &'a Path,
    /// Its root file system.
    pub root: Root<'a>,
    /// Its control groups.
    pub groups: Groups,
    /// Its standard streams, unless `process.terminal` is set.
    pub stdio: Stdio,
    /// What it waits for before its program runs.
    pub gate: Gate,
    /// Descriptors 3 and up that the program keeps, at their numbers.
    pub preserve_fds: u32,
    /// Its root becomes so by `pivot_root`; without, by moving it over the old
    /// one, as an initramfs needs.
    pub pivot: bool,
    /// It gets a session keyring of its own.
    pub keyring: bool,
    /// It is killed when its maker ends.
    pub die_with_parent: bool,
}

/// Where the root file system comes from.
#[derive(Clone, Copy, Debug)]
pub enum Root<'a> {
    /// `root.path` of the spec.
    Spec,
    /// Layers, with what is written in a directory of its own.
    Overlay(&'a OverlayRoot),
}

/// A root of layers. Its mounts are the container's alone: nothing of it is
/// ever in the host's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayRoot {
    /// Directories that are never written to, the lowest first. Owned by the
    /// host's ids 0 and up; a container with ids of its own sees them as its.
    pub lowers: Vec<PathBuf>,
    /// What is written, owned by the container's ids.
    pub upper: PathBuf,
    /// Empty, on the same file system as `upper`.
    pub work: PathBuf,
}

/// The standard streams of a program without a terminal.
#[derive(Debug)]
pub enum Stdio {
    /// The caller's.
    Inherit,
    /// These.
    Given([OwnedFd; 3]),
}

/// What a container that is made waits for.
#[derive(Debug)]
pub enum Gate {
    /// [`Created::start`].
    Caller,
    /// A byte on a connection to this listening stream socket, by
    /// [`start_through`]: of another process, at any later time. A connection
    /// that ends without a byte asks whether it waits, and changes nothing: the
    /// OCI runtime tells `created` from `running` by that, so init goes on to
    /// accept.
    Socket(OwnedFd),
}

/// A container that is made and waits at its gate. Dropped, it stays there if
/// its gate is a socket, else it ends.
#[derive(Debug)]
pub struct Created {
    pid: Pid,
    pidfd: OwnedFd,
    console: Option<OwnedFd>,
    channel: OwnedFd,
}

impl Created {
    /// Its init, as the host sees it. The caller's child: it is to be waited
    /// for.
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

    /// Lets it run its program, and returns when that is there.
    pub fn start(&mut self) -> Result<(), Error> {
        let _ = &self.channel;
        Err(Error::new(Step::Init, "this build cannot start containers"))
    }
}

/// Makes a container.
pub fn create(create: Create<'_>) -> Result<Created, Error> {
    let message = format!("{}: this build cannot make containers", create.id);
    Err(Error::new(Step::Spec, message))
}

/// Starts the container that waits behind this connection
/// ([`Gate::Socket`]), and returns when its program is there.
pub fn start_through(connection: OwnedFd) -> Result<(), Error> {
    drop(connection);
    Err(Error::new(Step::Init, "this build cannot start containers"))
}
