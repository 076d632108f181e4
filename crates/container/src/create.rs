//! Making a container.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::Pid;

use crate::channel::Message;
use crate::error::At;
use crate::hooks::State;
use crate::init::program::not_become;
use crate::init::{Init, settings};
use crate::launch::{Child, Launch};
use crate::namespaces::{CGROUP, PID, TIME, USER};
use crate::plan::Plan;
use crate::root::{Trees, hold};
use crate::{Error, Groups, Step, hooks, ids, springboard, sys};

/// What whoever starts a container that waits says to it, and what it says
/// first.
pub(crate) const BEGUN: u8 = b'G';
/// Longest complaint of a container that was started by another process.
const COMPLAINT: usize = 4096;

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
    /// The same, which may come while the container is still being made, so
    /// that neither waits for the other: whatever is wrong then is told by
    /// [`Created::start`]. With a terminal, whose other end is there when all
    /// is made, it is as [`Gate::Caller`].
    Early,
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
    child: Child,
    process: Process,
    /// It has said that it is.
    is_made: bool,
    console: Option<OwnedFd>,
    namespaces: Option<Entries>,
    root: Option<OwnedFd>,
}

/// The way into namespaces of a container.
#[derive(Debug)]
pub struct Entries {
    /// Its network.
    pub network: OwnedFd,
    /// Its users.
    pub user: OwnedFd,
}

impl Created {
    /// Its init, as the host sees it. The caller's child: it is to be waited
    /// for.
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// The same, safe from ids that are used again.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// The terminal's other end, if it has one. While nobody in the container
    /// has the terminal open, reading is the error `EIO`: for an init, which
    /// opens its console when it has something to say, that is no end, and
    /// whoever lets go of this end then hangs the terminal up.
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// The way into its namespaces, which its maker alone has: once it has
    /// other ids, a user cannot look them up before its program runs. They are
    /// there with [`Gate::Caller`], if this process may have them.
    pub fn take_namespaces(&mut self) -> Option<Entries> {
        self.namespaces.take()
    }

    /// Its root of layers, for as long as this is kept: without, the container's
    /// end waits until all that it has written is on the disk. Nothing if it
    /// has made its root itself.
    pub fn take_root(&mut self) -> Option<OwnedFd> {
        self.root.take()
    }

    /// Lets it run its program, and returns when that is there. On an error
    /// it has ended, and is reaped, here or when this is dropped.
    ///
    /// Hooks of `poststart` are the caller's to run ([`hooks::run`]).
    pub fn start(&mut self) -> Result<(), Error> {
        self.child.go(&[])?;
        self.await_made()?;
        self.child.await_program(&self.process)
    }

    fn await_made(&mut self) -> Result<(), Error> {
        if !self.is_made {
            let (Message::Created, mut handles) = self.child.next()? else {
                return Err(confused());
            };
            self.is_made = true;
            self.console = handles.pop();
        }
        Ok(())
    }
}

/// A mount in no tree yet, and what it covers in the container once all else
/// is mounted. What the container has not is not covered.
#[derive(Clone, Copy, Debug)]
pub struct Cover<'a> {
    /// The mount, detached.
    pub mount: BorrowedFd<'a>,
    /// Where it belongs, seen from inside.
    pub destination: &'a Path,
}

/// Makes a container. The calling process must have a single thread.
pub fn create(create: Create<'_>) -> Result<Created, Error> {
    create_with(create, &[])
}

/// Makes a container some of whose files are covered by others, such as those
/// of `/proc` that show its own limits.
pub fn create_with(create: Create<'_>, covers: &[Cover<'_>]) -> Result<Created, Error> {
    let mut plan = Plan::new(&create)?;
    plan.covers = covers;
    let init = Init {
        plan: &plan,
        stdio: &create.stdio,
        gate: &create.gate,
    };
    let launch = Launch {
        new: plan.namespaces.new & !(CGROUP | TIME),
        user: plan.namespaces.joins(USER).map(AsFd::as_fd),
        pid: plan.namespaces.joins(PID).map(AsFd::as_fd),
        groups: plan.groups,
    };
    let mut child = launch.start(|channel| init.run(channel))?;
    // As long as it has the ids of its maker. Not all makers want them.
    let entries = || {
        Some(Entries {
            network: ids::namespace(child.pid, "net").ok()?,
            user: ids::namespace(child.pid, "user").ok()?,
        })
    };
    let namespaces = match create.gate {
        Gate::Caller => entries(),
        Gate::Early | Gate::Socket(_) => None,
    };
    if let Some(maps) = &plan.maps {
        maps.give(child.pid)?;
    }
    if let Some(process) = plan.process {
        raise(process, child.pid, plan.maps.is_some())?;
    }
    let mut root = None;
    if plan.opens_outside {
        let ids = match &plan.maps {
            Some(_) => Some(ids::of_process(child.pid)?),
            None => None,
        };
        let trees = Trees::open(&plan, ids.as_ref().map(AsFd::as_fd), true)?;
        if matches!(plan.root, Root::Overlay(_)) {
            root = hold(&trees.root);
        }
        child.go(&trees.handles())?;
    } else if plan.maps.is_some() {
        child.go(&[])?;
    }
    let mut created = Created {
        child,
        process: plan.process.cloned().unwrap_or_default(),
        is_made: false,
        console: None,
        namespaces,
        root,
    };
    if plan.prepares() {
        let (Message::Prepared, _) = created.child.next()? else {
            return Err(confused());
        };
        run_runtime_hooks(&plan, created.child.pid)?;
        created.child.go(&[])?;
    }
    if !matches!(create.gate, Gate::Early) || created.process.terminal() == Some(true) {
        created.await_made()?;
    }
    if matches!(create.gate, Gate::Socket(_)) {
        created.child.release();
    }
    Ok(created)
}

fn confused() -> Error {
    Error::new(Step::Init, "the container's init is confused")
}

/// What only its maker may do to it: to be killed later than others when
/// memory is short, limits above those of its maker.
pub(crate) fn raise(process: &Process, pid: Pid, mapped: bool) -> Result<(), Error> {
    // It has its maker's, and without rights its file may be root's.
    let has = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    if let Some(adjustment) = process.oom_score_adj()
        && has.trim().parse() != Ok(adjustment)
    {
        let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
        fs::write(&path, adjustment.to_string()).at(Step::Settings, || {
            format!("the oom_score_adj {adjustment}: {path}")
        })?;
    }
    if !mapped {
        return Ok(());
    }
    for limit in process.rlimits().iter().flatten() {
        let (_, resource) = settings::resource(limit);
        let what = || format!("the limit {}", limit.typ());
        let (soft, hard) = sys::limit(resource).at(Step::Settings, what)?;
        if limit.hard() > hard {
            sys::set_limit(Some(pid), resource, soft, limit.hard()).at(Step::Settings, what)?;
        }
    }
    Ok(())
}

fn run_runtime_hooks(plan: &Plan<'_>, pid: Pid) -> Result<(), Error> {
    let Some(all) = plan.hooks else {
        return Ok(());
    };
    let state = State {
        version: plan.spec.version(),
        id: plan.id,
        status: "creating",
        pid: Some(pid),
        bundle: plan.bundle,
        annotations: plan.spec.annotations().as_ref(),
    };
    // Old descriptions have them still.
    #[allow(deprecated)]
    let first = all.prestart();
    if let Some(list) = first {
        // To these, which were there before the others, it is made.
        let status = "created";
        hooks::run(list, State { status, ..state })?;
    }
    if let Some(list) = all.create_runtime() {
        hooks::run(list, state)?;
    }
    Ok(())
}

/// Starts the container that waits behind this connection
/// ([`Gate::Socket`]), and returns when its program is there.
///
/// Hooks of `poststart` are the caller's to run ([`hooks::run`]).
pub fn start_through(connection: OwnedFd) -> Result<(), Error> {
    let what = || "the container that waits";
    rustix::net::send(&connection, &[BEGUN], SendFlags::NOSIGNAL).at(Step::Init, what)?;
    let mut bytes = vec![0; COMPLAINT];
    let mut length = 0;
    while let Some(space) = bytes.get_mut(length..).filter(|space| !space.is_empty()) {
        match rustix::io::read(&connection, space) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).at(Step::Init, what),
        }
    }
    let said = bytes.get(..length).unwrap_or_default();
    match said.split_first() {
        // First that it has begun; then only what is wrong, if anything.
        Some((&BEGUN, [])) => Ok(()),
        Some((&BEGUN, [springboard::FAILED, error @ ..])) => {
            let error = springboard::error(error).unwrap_or(Errno::IO);
            Err(not_become("the container's program", error))
        }
        Some((&BEGUN, [step, text @ ..])) => {
            let text = String::from_utf8_lossy(text);
            Err(Error::new(Step::from_byte(*step), text))
        }
        _ => Err(Error::new(
            Step::Init,
            "the container ended before it started",
        )),
    }
}
