//! A container's init, before it is the container's program.
//!
//! ```text
//! groups ─ namespaces ─ ids ─ (maker: hooks) ─ settings ─ root ─ terminal ─►
//!                                              created, waits at its gate
//! ─► label ─ limits ─ capabilities ─ filter ─ hooks ─ exec
//! ```
//!
//! It has the maker's memory and descriptors, and as many rights as it was
//! made with, until it becomes the program: what the container's files say is
//! looked at, never believed.

pub mod program;
pub mod rights;
pub mod settings;
pub mod terminal;

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use croft_isolate::seccomp;
use oci_spec::runtime::{Hook, Process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::channel::{Message, receive, send};
use crate::create::BEGUN;
use crate::error::At;
use crate::hooks::State;
use crate::namespaces::{CGROUP, MOUNT, USER};
use crate::plan::Plan;
use crate::root::resolve::{InRoot, Kind};
use crate::root::{self, Trees};
use crate::{Error, Gate, Stdio, Step, hooks, springboard, sys};

use program::Program;
use settings::Proc;
use terminal::Terminal;

/// Mask of a program whose description has none (umask(2)).
const UMASK: u32 = 0o022;

/// What init is made from.
#[derive(Debug)]
pub struct Init<'a> {
    pub plan: &'a Plan<'a>,
    pub stdio: &'a Stdio,
    pub gate: &'a Gate,
}

impl Init<'_> {
    /// Becomes the container's program; what is returned is why not.
    pub fn run(self, channel: &OwnedFd) -> Error {
        match self.steps(channel) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn steps(self, channel: &OwnedFd) -> Result<Infallible, Error> {
        let plan = self.plan;
        begin(plan.die_with_parent)?;
        let proc = Proc::open()?;
        plan.groups
            .enter()
            .at(Step::Groups, || "entering the control groups")?;
        let listener = plan.filter.as_ref().and_then(seccomp::Program::listener);
        let listener = listener.map(connect).transpose()?;
        plan.namespaces.join()?;
        let trees = self.wait_for_maker(channel)?;
        let keep_groups = plan.namespaces.has(USER) && own_ids()?;
        if plan.namespaces.new & CGROUP != 0 {
            sys::unshare(CGROUP).at(Step::Namespaces, || "a cgroup namespace")?;
        }
        settings::time(plan, &proc)?;
        if plan.prepares() {
            tell(channel, &Message::Prepared, None)?;
            go_on(channel)?;
        }
        settings::namespaces(plan, &proc)?;
        let state = State {
            version: plan.spec.version(),
            id: plan.id,
            status: "creating",
            pid: self.needs_id().then(|| proc.own_id()).flatten(),
            bundle: plan.bundle,
            annotations: plan.spec.annotations().as_ref(),
        };
        let (root, terminal) = self.make_root(trees, state)?;
        let root = InRoot(root.as_fd());
        let program = match plan.process {
            Some(process) => {
                let program = Program::new(process, root)?;
                program.go()?;
                program.find()?;
                Some(program)
            }
            None => None,
        };
        let (master, peer) =
            terminal.map_or((None, None), |both| (Some(both.master), Some(both.peer)));
        tell(channel, &Message::Created, master.as_ref())?;
        drop(master);
        let starter = self.wait_at_gate(channel)?;
        let run = || -> Result<Infallible, Error> {
            let state = State {
                status: "created",
                ..state
            };
            let (Some(process), Some(program)) = (plan.process, &program) else {
                return Err(Error::new(Step::Spec, "the description has no process"));
            };
            streams(peer.as_ref(), self.stdio)?;
            let linux = plan.spec.linux().as_ref();
            if let Some(given) = linux.and_then(|linux| linux.memory_policy().as_ref()) {
                settings::memory_policy(given)?;
            }
            if let Some(given) = linux.and_then(|linux| linux.personality().as_ref()) {
                settings::personality(given)?;
            }
            if plan.keyring {
                new_keyring()?;
            }
            rights::label(process, &proc)?;
            // It leads out of the container, and a program's path may name it.
            drop(proc);
            let hooks = plan.hooks.and_then(|all| all.start_container().as_deref());
            let last = Last {
                process,
                program,
                hooks: &with_environment(hooks.unwrap_or_default(), process),
                filter: plan.filter.as_ref(),
                listener: listener.as_ref(),
                state,
                keep_groups,
                preserve_fds: plan.preserve_fds,
                die_with_parent: plan.die_with_parent,
                maker: channel,
                springboard: plan
                    .springboard
                    .then_some(starter.as_ref().unwrap_or(channel)),
            };
            last.go()
        };
        let result = run();
        if let (Err(error), Some(starter)) = (&result, &starter) {
            complain(starter, error);
            sys::leave(1);
        }
        result
    }

    /// Whether anybody is told the number of this process.
    fn needs_id(&self) -> bool {
        let asks = self
            .plan
            .filter
            .as_ref()
            .and_then(seccomp::Program::listener);
        self.plan.hooks.is_some() || asks.is_some()
    }

    /// While the maker maps ids, and opens what the container may not.
    fn wait_for_maker(&self, channel: &OwnedFd) -> Result<Option<Trees>, Error> {
        let outside = self.plan.opens_outside;
        if !outside && self.plan.maps.is_none() {
            return Ok(None);
        }
        let handles = go_on(channel)?;
        if !outside {
            return Ok(None);
        }
        let trees = Trees::take(self.plan, handles);
        let trees = trees.ok_or_else(|| Error::new(Step::Init, "the maker gave no root"))?;
        Ok(Some(trees))
    }

    /// Makes the container's root this process's, and a terminal if it has
    /// one.
    fn make_root(
        &self,
        trees: Option<Trees>,
        state: State<'_>,
    ) -> Result<(OwnedFd, Option<Terminal>), Error> {
        let plan = self.plan;
        let hooks = plan.hooks.and_then(|all| all.create_container().as_ref());
        let hooks = hooks.map(Vec::as_slice).unwrap_or_default();
        let process = plan.process.filter(|one| one.terminal() == Some(true));
        let terminal = |root: &OwnedFd, console| {
            let open = |process| Terminal::open(InRoot(root.as_fd()), process, console);
            process.map(open).transpose()
        };
        if plan.namespaces.new & MOUNT == 0 {
            hooks::run(hooks, state)?;
            let root = root::change_only(plan)?;
            let terminal = terminal(&root, false)?;
            return Ok((root, terminal));
        }
        root::isolate(plan)?;
        let trees = match trees {
            Some(trees) => trees,
            None => Trees::open(plan, None, false)?,
        };
        root::enter(plan, &trees.root)?;
        let root = root::fill(plan, trees)?;
        let terminal = terminal(&root, true)?;
        if let Some(process) = plan.process {
            make_directory(InRoot(root.as_fd()), process)?;
        }
        hooks::run(hooks, state)?;
        root::switch(plan, &root)?;
        Ok((root, terminal))
    }

    /// Until the container is started. Who is told from now on is returned, if
    /// that is not the maker.
    fn wait_at_gate(&self, channel: &OwnedFd) -> Result<Option<OwnedFd>, Error> {
        let Gate::Socket(listener) = self.gate else {
            go_on(channel)?;
            return Ok(None);
        };
        loop {
            let connection = match accept_with(listener, SocketFlags::CLOEXEC) {
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                result => result.at(Step::Init, || "waiting to be started")?,
            };
            // Who says nothing only asks whether it waits, and who is gone by
            // now has not started it.
            let mut byte = [0; 1];
            if !matches!(rustix::io::read(&connection, &mut byte), Ok(1)) {
                continue;
            }
            if rustix::net::send(&connection, &[BEGUN], SendFlags::NOSIGNAL).is_ok() {
                return Ok(Some(connection));
            }
        }
    }
}

/// What every process of a container begins with.
pub fn begin(die_with_parent: bool) -> Result<(), Error> {
    // Modes are what is said.
    rustix::process::umask(Mode::empty());
    // It fails for whoever leads a session already.
    let _ = rustix::process::setsid();
    if die_with_parent {
        die_with_maker()?;
    }
    Ok(())
}

/// Whether the other end of a channel is gone.
fn has_ended(channel: &OwnedFd) -> bool {
    let mut wanted = [PollFd::new(channel, PollFlags::empty())];
    let now = Timespec::default();
    let gone = poll(&mut wanted, Some(&now)).is_ok_and(|count| count > 0);
    gone && wanted[0].revents().contains(PollFlags::HUP)
}

fn die_with_maker() -> Result<(), Error> {
    set_parent_process_death_signal(Some(Signal::KILL)).at(Step::Init, || "its end with its maker")
}

/// Becomes root of the user namespace. Returns whether groups are as they
/// were, and stay so (user_namespaces(7), setgroups).
pub fn own_ids() -> Result<bool, Error> {
    let what = || "id 0 of the user namespace, which must be mapped";
    match sys::set_ids(0, 0, Some(&[])) {
        Err(Errno::PERM) => {
            sys::set_ids(0, 0, None).at(Step::Ids, what)?;
            Ok(true)
        }
        result => {
            result.at(Step::Ids, what)?;
            Ok(false)
        }
    }
}

/// The program's standard streams.
pub fn streams(peer: Option<&OwnedFd>, stdio: &Stdio) -> Result<(), Error> {
    match (peer, stdio) {
        (Some(peer), _) => Terminal::take(peer),
        (None, Stdio::Given(given)) => terminal::streams(given.each_ref()),
        (None, Stdio::Inherit) => {
            terminal::own_null();
            Ok(())
        }
    }
}

/// A keyring of its own; a kernel without keyrings has nothing to hide.
fn new_keyring() -> Result<(), Error> {
    match sys::new_session_keyring() {
        Err(Errno::NOSYS) => Ok(()),
        result => result.at(Step::Settings, || "a session keyring"),
    }
}

/// Makes the working directory, if there is none: images name such ones.
fn make_directory(root: InRoot<'_>, process: &Process) -> Result<(), Error> {
    match root.find(process.cwd()) {
        Err(Errno::NOENT) => {
            let what = || format!("making the directory {}", process.cwd().display());
            let made = root.ensure(process.cwd(), Kind::Directory);
            made.map(drop).at(Step::Directory, what)
        }
        // Whatever is wrong with it is told when it is gone to.
        _ => Ok(()),
    }
}

/// Whoever is to be asked about system calls, while the host's sockets can be
/// reached.
pub fn connect(listener: &seccomp::Listener) -> Result<UnixStream, Error> {
    let what = || format!("listenerPath {}", listener.path.display());
    UnixStream::connect(&listener.path).at(Step::Filter, what)
}

fn tell(channel: &OwnedFd, message: &Message, handle: Option<&OwnedFd>) -> Result<(), Error> {
    let handles: Vec<_> = handle.iter().map(|handle| handle.as_fd()).collect();
    send(channel, message, &handles).at(Step::Init, || "the container's maker")
}

/// Waits for the maker; without one there is nothing to wait for.
pub fn go_on(channel: &OwnedFd) -> Result<Vec<OwnedFd>, Error> {
    match receive(channel).at(Step::Init, || "the container's maker")? {
        Some((Message::Go, handles)) => Ok(handles),
        _ => sys::leave(1),
    }
}

/// Hooks in the container: those without an environment have its program's.
fn with_environment(hooks: &[Hook], process: &Process) -> Vec<Hook> {
    let own = process.env().as_ref();
    let mut hooks = hooks.to_vec();
    for hook in hooks.iter_mut().filter(|hook| hook.env().is_none()) {
        hook.set_env(own.cloned());
    }
    hooks
}

fn complain(starter: &OwnedFd, error: &Error) {
    // Who reads what the container says learns it too.
    let text = format!("the container was not started: error: {error}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
    let mut bytes = vec![error.step.to_byte()];
    bytes.extend(error.message.as_bytes());
    // It may be gone.
    let _ = rustix::net::send(starter, &bytes, SendFlags::NOSIGNAL);
}

/// The last steps, of init and of a program in a container alike.
#[derive(Debug)]
pub struct Last<'a> {
    pub process: &'a Process,
    pub program: &'a Program,
    /// Those of `startContainer`, which are the container's own programs: they
    /// have what its program has, and no more.
    pub hooks: &'a [Hook],
    pub filter: Option<&'a seccomp::Program>,
    pub listener: Option<&'a UnixStream>,
    pub state: State<'a>,
    pub keep_groups: bool,
    pub preserve_fds: u32,
    pub die_with_parent: bool,
    /// The way to whom it ends with.
    pub maker: &'a OwnedFd,
    /// Who is told if the program does not come to be, where it must not begin
    /// from the maker's.
    pub springboard: Option<&'a OwnedFd>,
}

impl Last<'_> {
    /// Becomes the program, in its working directory.
    pub fn go(&self) -> Result<Infallible, Error> {
        let process = self.process;
        if let Some(given) = process.scheduler() {
            settings::scheduler(given)?;
        }
        if let Some(given) = process.io_priority() {
            settings::io_priority(given)?;
        }
        let umask = process.user().umask().unwrap_or(UMASK);
        rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
        let no_new = process.no_new_privileges() == Some(true);
        // Before the filter: old ones do not know the call.
        let first = self.preserve_fds.saturating_add(3);
        sys::close_on_exec_from(first).at(Step::Init, || "closing descriptors")?;
        let what = || "leaving the maker's program";
        let springboard = self.springboard.map(springboard::make).transpose();
        let springboard = springboard.at(Step::Init, what)?;
        // From here on nothing is opened or written: they may forbid it.
        settings::limits(process.rlimits().as_deref().unwrap_or_default())?;
        // Without the promise only who has rights may have a filter put on.
        if !no_new {
            self.put_filter_on()?;
        }
        rights::take(process, self.keep_groups)?;
        if self.die_with_parent {
            // Changing ids has taken it away.
            die_with_maker()?;
            // It may have ended before. A filter may not let us look.
            if (no_new || self.filter.is_none()) && has_ended(self.maker) {
                sys::leave(1);
            }
        }
        if no_new {
            let promise = sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0);
            promise.at(Step::Rights, || "no new privileges")?;
        }
        let path = self.program.find()?;
        sys::reset_signals();
        if no_new {
            self.put_filter_on()?;
        }
        hooks::run(self.hooks, self.state)?;
        // Not before: a hook must not have it.
        if let Some(channel) = self.springboard {
            springboard::keep(channel).at(Step::Init, what)?;
        }
        Err(self.program.become_it(&path, springboard.as_ref()))
    }

    fn put_filter_on(&self) -> Result<(), Error> {
        match self.filter {
            Some(filter) => rights::filter(filter, self.listener, &self.state),
            None => Ok(()),
        }
    }
}
