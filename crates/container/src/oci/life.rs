//! From `create` to `delete`.

use std::path::Path;
use std::slice;
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use rustix::process::Pid;

use croft_isolate::cgroups::Group;

use super::Context;
use super::args::{Create, Delete, Kill, Name, Run};
use super::bundle::Bundle;
use super::capabilities;
use super::error::Error;
use super::files;
use super::foreground::Foreground;
use super::groups;
use super::log::Log;
use super::process::Process;
use super::status::{self, Status};
use super::store::{Entry, Record};
use crate::{Created, Gate, Groups, Root, Stdio, hooks, start_through};

/// How many may ask for `start`, or for the state, at the same time.
const BACKLOG: i32 = 16;
/// How long `delete` waits for a program that may be about to end: whoever saw
/// its last output, or sent it a signal, comes this early.
const ENDING: Duration = Duration::from_secs(2);

/// Who has a container when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    /// Nobody: it waits for a `start` by another process.
    Nobody,
    /// This process, until its program runs.
    Start,
    /// This process, to its end.
    End,
}

/// A container that this process has made.
struct Made {
    entry: Entry,
    record: Record,
    spec: Spec,
    group: Group,
    created: Created,
}

/// `create`.
pub fn create(context: &Context, options: &Create) -> Result<u8, Error> {
    let made = make(context, options, Keeper::Nobody)?;
    if let Some(path) = &options.pid_file
        && let Err(error) = files::write_pid(path, made.created.pid())
    {
        return Err(made.undo(&context.log, error));
    }
    Ok(0)
}

/// `start`.
pub fn start(context: &Context, options: &Name) -> Result<u8, Error> {
    let entry = context.store.open(&options.id)?;
    entry.lock()?;
    let record = entry.record()?;
    let status = status::of(&entry, record.as_ref())?;
    let (Some(record), Status::Created) = (record, status) else {
        return Err(status.refuse(&options.id, "only a created container can be started"));
    };
    let connection = files::connect_to(&entry.socket())
        .map_err(|error| Error::file("connect to", entry.path().join("start"), error))?;
    start_through(connection)?;
    entry.drop_socket();
    let spec = entry.spec()?;
    // A hook may ask for anything.
    entry.unlock();
    poststart(&context.log, &record, &spec);
    Ok(0)
}

/// `run`.
pub fn run(context: &Context, options: &Run) -> Result<u8, Error> {
    let keeper = if options.detach {
        Keeper::Start
    } else {
        Keeper::End
    };
    let mut made = make(context, &options.create, keeper)?;
    let foreground = match made.begin(context, options) {
        Ok(foreground) => foreground,
        Err(error) => return Err(made.undo(&context.log, error)),
    };
    made.entry.unlock();
    poststart(&context.log, &made.record, &made.spec);
    let Some(foreground) = foreground else {
        return Ok(0);
    };
    let code = foreground.wait(made.created.pid(), made.created.pidfd())?;
    if !options.keep {
        made.entry.lock()?;
        made.remove(&context.log)?;
    }
    Ok(code)
}

/// `kill`.
pub fn kill(context: &Context, options: &Kill) -> Result<u8, Error> {
    let entry = context.store.open(&options.id)?;
    let record = entry.record()?;
    let status = status::of(&entry, record.as_ref())?;
    let number = options.signal.0;
    let group = match &record {
        Some(record) => groups::open(record)?,
        None => None,
    };
    if options.all
        && let Some(group) = &group
    {
        if !status.is_alive() && group.processes()?.is_empty() {
            return Err(not_running(status, &options.id));
        }
        return signal_all(group, number);
    }
    let init = record.as_ref().and_then(|record| record.init);
    let (true, Some(init)) = (status.is_alive(), init) else {
        return Err(not_running(status, &options.id));
    };
    match init.signal(number) {
        Ok(true) => {}
        Ok(false) => return Err(not_running(Status::Stopped, &options.id)),
        Err(error) => return Err(Error::system("send the signal", error)),
    }
    // A stopped process of version 1 does not even die.
    if number == libc::SIGKILL
        && status == Status::Paused
        && let Some(group) = &group
    {
        group.thaw()?;
    }
    Ok(0)
}

fn not_running(status: Status, id: &str) -> Error {
    status.refuse(
        id,
        "container not running, there is nothing to send a signal to",
    )
}

fn signal_all(group: &Group, number: i32) -> Result<u8, Error> {
    if number == libc::SIGKILL {
        group.kill()?;
        return Ok(0);
    }
    for process in group.processes()? {
        // It may have ended meanwhile.
        if let Some(process) = Process::of(process) {
            process
                .signal(number)
                .map_err(|error| Error::system("send the signal", error))?;
        }
    }
    Ok(0)
}

/// `delete`.
pub fn delete(context: &Context, options: &Delete) -> Result<u8, Error> {
    let entry = match context.store.open(&options.id) {
        Err(Error::Missing(_)) if options.force => return Ok(0),
        opened => opened?,
    };
    if options.force {
        // Before the lock: whoever has it may wait for what is to end.
        end(&entry)?;
    }
    match entry.lock() {
        Err(Error::Missing(_)) if options.force => return Ok(0),
        locked => locked?,
    }
    let record = match entry.record() {
        // Whatever it says, it is to go.
        Err(Error::Content { .. }) if options.force => None,
        record => record?,
    };
    let mut status = status::of(&entry, record.as_ref())?;
    if status == Status::Running && !options.force {
        let init = record.as_ref().and_then(|record| record.init);
        if init.is_some_and(|init| init.ends_within(ENDING)) {
            status = Status::Stopped;
        }
    }
    if status.is_alive() {
        if !options.force {
            return Err(status.refuse(&options.id, "stop it first, or delete it with --force"));
        }
        end(&entry)?;
    }
    remove(&context.log, &entry, record.as_ref())?;
    Ok(0)
}

/// Ends all processes of a container, and waits for it.
fn end(entry: &Entry) -> Result<(), Error> {
    let Ok(Some(record)) = entry.record() else {
        return Ok(());
    };
    // Its maker would go on.
    if let Some(maker) = record.creator.filter(|_| record.init.is_none())
        && Process::own() != Some(maker)
    {
        let _ = maker.signal(libc::SIGKILL);
    }
    end_init(record.init)?;
    if let Some(group) = groups::open(&record)? {
        group.kill()?;
    }
    Ok(())
}

fn end_init(init: Option<Process>) -> Result<(), Error> {
    let Some(init) = init else { return Ok(()) };
    let failed = |error: Errno| Error::system("end the container's init", error);
    let Some(descriptor) = init.open().map_err(failed)? else {
        return Ok(());
    };
    match super::process::send(&descriptor, libc::SIGKILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes all that is left of a container without processes, and says so to
/// its hooks.
pub fn remove(log: &Log, entry: &Entry, record: Option<&Record>) -> Result<(), Error> {
    let spec = entry.spec();
    if let Some(record) = record
        && let Some(group) = groups::open(record)?
    {
        remove_group(&group)?;
    }
    entry.remove()?;
    if let (Some(record), Ok(spec)) = (record, spec) {
        poststop(log, record, &spec);
    }
    Ok(())
}

fn remove_group(group: &Group) -> Result<(), Error> {
    // Without a pid namespace its children outlive init.
    group.kill()?;
    Ok(group.delete()?)
}

fn poststop(log: &Log, record: &Record, spec: &Spec) {
    if let Some(all) = spec.hooks()
        && let Some(hooks) = all.poststop()
    {
        run_all(log, hooks, &state(record, spec, Status::Stopped, None));
    }
}

fn poststart(log: &Log, record: &Record, spec: &Spec) {
    if let Some(all) = spec.hooks()
        && let Some(hooks) = all.poststart()
    {
        let pid = record.init.and_then(|init| Pid::from_raw(init.pid));
        run_all(log, hooks, &state(record, spec, Status::Running, pid));
    }
}

/// Hooks whose failure changes nothing any more.
fn run_all(log: &Log, hooks: &[Hook], state: &hooks::State<'_>) {
    for hook in hooks {
        if let Err(error) = hooks::run(slice::from_ref(hook), *state) {
            log.warn(&error.to_string());
        }
    }
}

fn state<'a>(
    record: &'a Record,
    spec: &'a Spec,
    status: Status,
    pid: Option<Pid>,
) -> hooks::State<'a> {
    hooks::State {
        version: spec.version(),
        id: &record.id,
        status: status.word(),
        pid,
        bundle: &record.bundle,
        annotations: record.annotations.as_ref(),
    }
}

impl Made {
    /// Lets the program go, with a caller that waits for it unless it is to be
    /// on its own.
    fn begin(&mut self, context: &Context, options: &Run) -> Result<Option<Foreground>, Error> {
        if let Some(path) = &options.create.pid_file {
            files::write_pid(path, self.created.pid())?;
        }
        let foreground = if options.detach {
            None
        } else {
            Some(Foreground::begin(self.created.take_console())?)
        };
        self.created.start()?;
        context.log.debug(|| format!("{} runs", self.record.id));
        Ok(foreground)
    }

    /// Removes all that is left of it: see [`remove`].
    fn remove(&self, log: &Log) -> Result<(), Error> {
        remove_group(&self.group)?;
        self.entry.remove()?;
        poststop(log, &self.record, &self.spec);
        Ok(())
    }

    /// Takes back what was made; the error that made it necessary.
    fn undo(self, log: &Log, error: Error) -> Error {
        let _ = end_init(self.record.init);
        let pid = self.created.pid();
        // A child of ours: it would stay as one that nobody has waited for.
        drop(self.created);
        let _ = super::foreground::reap(pid);
        if let Err(other) = remove(log, &self.entry, Some(&self.record)) {
            log.warn(&other.to_string());
        }
        error
    }
}

/// Makes a container that waits.
fn make(context: &Context, options: &Create, keeper: Keeper) -> Result<Made, Error> {
    let sockets = files::listening();
    let preserve_fds = files::preserved(options.preserve_fds, sockets)?;
    let mut bundle = Bundle::read(options.bundle.as_deref())?;
    if crate::needs_seal(&bundle.spec) {
        crate::seal(super::NAME)?;
    }
    check_console(&bundle.spec, options, keeper)?;
    pass_sockets(&mut bundle.spec, sockets);
    capabilities::warn_unknown(&context.log, &bundle.unknown);
    capabilities::warn_missing(&context.log, &bundle.spec);
    if let Some(what) = bundle.not_mounted() {
        context.log.warn(&format!(
            "without a mount namespace of its own the container has no {what}"
        ));
    }
    let rootfs = bundle.rootfs();
    let entry = context.store.create(&options.id)?;
    let mut record = Record::new(&options.id, bundle.path.clone(), rootfs, &bundle.spec);
    match make_in(
        context,
        options,
        keeper,
        preserve_fds,
        &bundle,
        &entry,
        &mut record,
    ) {
        Ok((created, group)) => Ok(Made {
            entry,
            record,
            spec: bundle.spec,
            group,
            created,
        }),
        Err(error) => {
            if let Err(other) = clear(&entry, &record) {
                context.log.warn(&other.to_string());
            }
            Err(error)
        }
    }
}

/// After a failure, before there was a container: no hooks are told.
pub fn clear(entry: &Entry, record: &Record) -> Result<(), Error> {
    if let Some(group) = groups::open(record)? {
        group.kill()?;
        group.delete()?;
    }
    entry.remove()
}

fn make_in(
    context: &Context,
    options: &Create,
    keeper: Keeper,
    preserve_fds: u32,
    bundle: &Bundle,
    entry: &Entry,
    record: &mut Record,
) -> Result<(Created, Group), Error> {
    entry.keep_config(&bundle.text)?;
    let path = groups::path(&options.id, &bundle.spec);
    record.groups = Some(path.clone());
    // Known before it is there: a killed maker leaves nothing unknown.
    entry.write(record)?;
    let (hierarchies, group) = groups::create(&path, &context.log)?;
    groups::limit(&group, &bundle.spec, &context.log)?;
    let gate = match keeper {
        Keeper::Nobody => Gate::Socket(listen_at(&entry.socket())?),
        // Hooks are told apart by whether there was a container.
        _ if bundle.spec.hooks().is_some() => Gate::Caller,
        Keeper::Start | Keeper::End => Gate::Early,
    };
    let mut created = crate::create(crate::Create {
        id: &options.id,
        spec: &bundle.spec,
        bundle: &bundle.path,
        root: Root::Spec,
        groups: Groups::of(&hierarchies, &group)?,
        stdio: Stdio::Inherit,
        gate,
        preserve_fds,
        pivot: !options.no_pivot,
        keyring: !options.no_new_keyring,
        die_with_parent: keeper == Keeper::End,
    })?;
    record.creator = None;
    record.init = Process::of(created.pid());
    let kept = entry
        .write(record)
        .and_then(|()| match &options.console_socket {
            Some(socket) => match created.take_console() {
                Some(console) => files::send_console(socket, std::os::fd::AsFd::as_fd(&console)),
                None => Ok(()),
            },
            None => Ok(()),
        });
    match kept {
        Ok(()) => Ok((created, group)),
        Err(error) => {
            let _ = end_init(record.init);
            let pid = created.pid();
            drop(created);
            let _ = super::foreground::reap(pid);
            Err(error)
        }
    }
}

/// A terminal needs somebody who takes its other end, and the other way round.
fn check_console(spec: &Spec, options: &Create, keeper: Keeper) -> Result<(), Error> {
    let process = spec.process().as_ref();
    let terminal = process
        .and_then(|process| process.terminal())
        .unwrap_or(false);
    match (terminal, &options.console_socket) {
        (true, None) if keeper != Keeper::End => Err(Error::Usage(
            "the container has a terminal: name who gets it with --console-socket, or set process.terminal to false"
                .to_owned(),
        )),
        (false, Some(_)) => Err(Error::Usage(
            "--console-socket is for a container with a terminal; process.terminal is not set".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// The program is told of sockets that a service manager passed, as it would
/// be without a container (sd_listen_fds(3)); it is the first in there.
fn pass_sockets(spec: &mut Spec, sockets: u32) {
    if sockets == 0 {
        return;
    }
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.push(format!("LISTEN_FDS={sockets}"));
        env.push("LISTEN_PID=1".to_owned());
        process.set_env(Some(env));
    }
}

fn listen_at(path: &Path) -> Result<std::os::fd::OwnedFd, Error> {
    let failed = |error: Errno| Error::file("listen at", path, error);
    let own = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    bind(&own, &address).map_err(failed)?;
    listen(&own, BACKLOG).map_err(failed)?;
    Ok(own)
}
