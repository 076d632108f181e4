//! A program in a container that runs.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use croft_isolate::seccomp;
use oci_spec::runtime::{Process, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use crate::channel::{Message, send};
use crate::create::raise;
use crate::error::At;
use crate::hooks::State;
use crate::init::program::{Program, own_root};
use crate::init::rights;
use crate::init::settings::{self, Proc};
use crate::init::terminal::Terminal;
use crate::init::{Last, begin, connect, go_on, own_ids, streams};
use crate::launch::{Child, Launch};
use crate::namespaces::{MOUNT, Namespaces, PID, USER};
use crate::root::change_to;
use crate::root::resolve::InRoot;
use crate::{Error, Groups, Stdio, Step, springboard, sys};

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
    /// The groups that it is put into.
    pub groups: Groups,
    /// Its standard streams, unless `process.terminal` is set.
    pub stdio: Stdio,
    /// Descriptors 3 and up that the program keeps, at their numbers.
    pub preserve_fds: u32,
    /// It is killed when its maker ends.
    pub die_with_parent: bool,
    /// How long the program may take to begin, for who must not be held up:
    /// whatever is in the container can stop it on its way there. Without, it
    /// is waited for.
    pub patience: Option<Duration>,
}

/// A program that runs in a container.
#[derive(Debug)]
pub struct Joined {
    child: Child,
    console: Option<OwnedFd>,
}

impl Joined {
    /// It, as the host sees it. The caller's child: it is to be waited for.
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// The same, safe from ids that are used again.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// The terminal's other end, if it has one.
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }
}

/// Runs a program in a container, and returns when it is there. The calling
/// process must have a single thread.
pub fn exec(exec: Exec<'_>) -> Result<Joined, Error> {
    let linux = exec.spec.linux().as_ref();
    let list = linux.and_then(|linux| linux.namespaces().as_deref());
    let kinds = Namespaces::kinds(list.unwrap_or_default());
    let filter = linux.and_then(|linux| linux.seccomp().as_ref());
    let filter = filter.map(seccomp::compile).transpose();
    settings::check_limits(Some(exec.process))?;
    let user = kinds & USER != 0;
    // Root has rights in all namespaces of others, and needs no go-between.
    let between = user && !rustix::process::geteuid().is_root();
    let joining = Joining {
        exec: &exec,
        kinds: if between {
            kinds & !(USER | PID)
        } else {
            kinds & !PID
        },
        user,
        own_mounts: Namespaces::makes(list.unwrap_or_default(), MOUNT),
        springboard: reaches_maker(exec.spec),
        filter: filter.at(Step::Filter, || "the filter of system calls")?,
    };
    let launch = Launch {
        new: 0,
        user: between.then_some(exec.target),
        pid: (kinds & PID != 0).then_some(exec.target),
        groups: &exec.groups,
    };
    if let Some(list) = exec.process.exec_cpu_affinity().as_ref()
        && let Some(first) = list.initial()
    {
        settings::affinity(first)?;
    }
    let mut child = launch.start(|channel| joining.run(channel))?;
    child.deadline = exec
        .patience
        .and_then(|most| Instant::now().checked_add(most));
    raise(exec.process, child.pid, user)?;
    child.go(&[])?;
    let mut console = None;
    if exec.process.terminal() == Some(true) {
        match child.next()? {
            (Message::Created, mut handles) => console = handles.pop(),
            _ => return Err(Error::new(Step::Init, "the program is confused")),
        }
    }
    child.await_program(exec.process)?;
    Ok(Joined { child, console })
}

/// Whether a container's ids may be those of the maker's file.
pub(crate) fn reaches_maker(spec: &Spec) -> bool {
    if springboard::is_safe() {
        return false;
    }
    let linux = spec.linux().as_ref();
    let maps = linux.and_then(|linux| linux.uid_mappings().as_deref());
    match maps {
        Some(maps) if !maps.is_empty() => {
            springboard::is_mapped(maps.iter().map(|line| (line.host_id(), line.size())))
        }
        _ => true,
    }
}

/// The clone's part.
struct Joining<'a> {
    exec: &'a Exec<'a>,
    /// Namespaces that it joins itself.
    kinds: u64,
    /// The container has a user namespace.
    user: bool,
    /// It has a mount namespace of its own, whose root is its root.
    own_mounts: bool,
    springboard: bool,
    filter: Option<seccomp::Program>,
}

impl Joining<'_> {
    /// Where the mount namespace is not the container's own its root is
    /// somebody else's, and init alone is in the container's.
    fn enter_root(&self, proc: &Proc) -> Result<(), Error> {
        let what = || "the root of the container's init: does it still run?";
        let root = proc.root_of(self.exec.target_pid).at(Step::Init, what)?;
        // It was this process, and not another of its number.
        let mut ended = [PollFd::from_borrowed_fd(self.exec.target, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut ended, Some(&now)).at(Step::Init, what)? > 0 {
            return Err(Error::new(
                Step::Init,
                "the container's init has just ended",
            ));
        }
        change_to(&root).at(Step::Init, what)
    }

    fn run(self, channel: &OwnedFd) -> Error {
        match self.steps(channel) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn steps(self, channel: &OwnedFd) -> Result<Infallible, Error> {
        let exec = self.exec;
        begin(exec.die_with_parent)?;
        let proc = Proc::open()?;
        exec.groups.enter().at(
            Step::Groups,
            || "entering the control groups: does the container still run?",
        )?;
        let listener = self.filter.as_ref().and_then(seccomp::Program::listener);
        let state = State {
            version: exec.spec.version(),
            id: "",
            status: "running",
            pid: listener.and_then(|_| proc.own_id()),
            bundle: Path::new(""),
            annotations: exec.spec.annotations().as_ref(),
        };
        let listener = listener.map(connect).transpose()?;
        go_on(channel)?;
        if self.kinds != 0 {
            sys::setns(exec.target, self.kinds).at(
                Step::Namespaces,
                || "joining the container's namespaces: does it still run?",
            )?;
        }
        if !self.own_mounts {
            self.enter_root(&proc)?;
        }
        let keep_groups = self.user && own_ids()?;
        let root = own_root().at(Step::Init, || "the container's root")?;
        let root = InRoot(root.as_fd());
        let process = exec.process;
        let program = Program::new(process, root)?;
        let mut peer = None;
        if process.terminal() == Some(true) {
            let terminal = Terminal::open(root, process, false)?;
            let master = [terminal.master.as_fd()];
            send(channel, &Message::Created, &master).at(Step::Init, || "the program's maker")?;
            peer = Some(terminal.peer);
        }
        streams(peer.as_ref(), &exec.stdio)?;
        let linux = exec.spec.linux().as_ref();
        if let Some(given) = linux.and_then(|linux| linux.personality().as_ref()) {
            settings::personality(given)?;
        }
        if let Some(list) = process.exec_cpu_affinity().as_ref()
            && let Some(last) = list.cpu_affinity_final()
        {
            settings::affinity(last)?;
        }
        program.go()?;
        rights::label(process, &proc)?;
        drop(proc);
        let last = Last {
            process,
            program: &program,
            hooks: &[],
            filter: self.filter.as_ref(),
            listener: listener.as_ref(),
            state,
            keep_groups,
            preserve_fds: exec.preserve_fds,
            die_with_parent: exec.die_with_parent,
            maker: channel,
            springboard: self.springboard.then_some(channel),
        };
        last.go()
    }
}
