//! A container that runs: from its making to its init's end.
//!
//! ```text
//! parts ─► group, limits ─► create ─► NICs, names ─► start ─► running
//!   │           │              │           │           │         │ init ends
//!   └───────────┴──── what is wrong: all of it is undone ┘       ▼
//!                                                        reap, group deleted
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use croft_api::Outcome;
use croft_api::container::{ContainerLimits, ContainerRole, ContainerSpec, ContainerStats, PIDS};
use croft_api::monitor::RunContainer;
use croft_api::net::NicSpec;
use croft_container::{Cover, Create, Created, Gate, Groups, Root, Stdio};
use croft_host::store;
use croft_isolate::cgroups::{Controllers, Event, Events, Group, Hierarchies};
use croft_network::Names;
use croft_procview::View;
use oci_spec::runtime::Spec;
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Signal, Uid, WaitId, WaitIdOptions, waitid};

use super::parts::{self, Parts};
use super::spec::{self, Given};
use super::streams::Streams;
use super::users::{User, Users};
use super::watches;
use crate::nics::container::Nics;

/// The exit status of a program that was not started, of docker's.
const NOT_STARTED: u8 = 125;
/// Where what serves all containers of the host has its socket.
const RUNTIME: &str = "/run/croft";
/// SIGHUP and SIGINT (signal(7)).
const HANG_UP: u8 = 1;
const INTERRUPT: u8 = 2;
/// Why a user has no systems.
const NOT_DELEGATED: &str = "the init of a whole system divides a control group of its own, and \
                             none that this user may divide is around this command: put \
                             'systemd-run --user --scope -p Delegate=yes' in front of it, or run \
                             it as root; 'croft doctor' tells more";
/// Why a container cannot be held that is in no group.
const NOT_HELD: &str = "it has no control group to be held by: put 'systemd-run --user --scope -p \
                        Delegate=yes' in front of the command that starts it, or run it as root";
/// What ends a process at once.
const KILL: i32 = Signal::KILL.as_raw();

/// See the [module](self).
#[derive(Debug)]
pub struct Running {
    init: Created,
    /// Its streams, until they are heard to their end.
    pub streams: Streams,
    group: Group,
    hierarchies: Hierarchies,
    events: Option<Events>,
    /// How its init ended.
    pub outcome: Option<Outcome>,
    /// Its NICs. They go before the group, and after the init.
    pub nics: Nics,
}

/// What is left of a container that has ended.
#[derive(Debug)]
pub struct Remains {
    group: Group,
    rest: Rest,
}

/// What takes the kernel its time to drop: watches end when all processors have
/// seen that, and a root of layers when all that was written is on the disk.
#[derive(Debug)]
pub struct Rest {
    _events: Option<Events>,
    _root: Option<OwnedFd>,
}

impl Running {
    /// Makes and starts a container; `say` hears what the operator should know.
    pub fn spawn(
        run: &RunContainer,
        directory: &Path,
        say: &mut dyn FnMut(String),
    ) -> Result<Self, Outcome> {
        let invalid = |message: String| Outcome::Invalid { message };
        let container = &run.container;
        let parts = Parts::find(container, directory).map_err(invalid)?;
        if container.role == ContainerRole::System {
            watches::lack().into_iter().for_each(&mut *say);
        }
        let hierarchies = Hierarchies::find().map_err(|error| failed(error.to_string()))?;
        let path = store::control_group(directory).map_err(|error| failed(error.to_string()))?;
        let group = make_group(&path, &hierarchies)?;
        let made = Self::make(run, directory, &parts, &hierarchies, &group, say);
        match made {
            Ok((init, streams, nics)) => {
                let events = group.events().ok();
                Ok(Running {
                    init,
                    streams,
                    group,
                    hierarchies,
                    events,
                    outcome: None,
                    nics,
                })
            }
            Err(outcome) => {
                if let Err(error) = remove_group(&group) {
                    say(format!("its control group: {error}"));
                }
                Err(outcome)
            }
        }
    }

    fn make(
        run: &RunContainer,
        directory: &Path,
        parts: &Parts,
        hierarchies: &Hierarchies,
        group: &Group,
        say: &mut dyn FnMut(String),
    ) -> Result<(Created, Streams, Nics), Outcome> {
        let invalid = |message: String| Outcome::Invalid { message };
        let container = &run.container;
        let unified = is_unified(hierarchies);
        let users = Users::of_layers(layers(parts));
        let user = users.find(&container.user);
        let user = user.and_then(|user| user.among(container.ids));
        let user = user.map_err(invalid)?;
        let spec = describe(run, directory, parts, &user, unified).map_err(invalid)?;
        limit(container, group, &spec, say)?;
        if let (ContainerRole::System, Some(ids)) = (container.role, container.ids) {
            // Its init makes groups of its own beneath it.
            if parts::maker().is_some() {
                if group.is_nowhere() {
                    return Err(invalid(NOT_DELEGATED.to_owned()));
                }
                // They are the user's, who is in the container too, and so its
                // root's.
            } else {
                let owner = (Uid::from_raw(ids.first), Gid::from_raw(ids.first));
                let delegated = group.delegate(owner.0, owner.1);
                delegated.map_err(|error| failed(error.to_string()))?;
            }
        }
        let (streams, stdio) = if container.tty {
            (Streams::default(), Stdio::Inherit)
        } else {
            let made = Streams::pipes(container.stdin);
            let (streams, theirs) = made.map_err(|error| failed(error.to_string()))?;
            (streams, Stdio::Given(theirs))
        };
        let groups = Groups::of(hierarchies, group).map_err(|error| refused(&error))?;
        let create = Create {
            id: &container.name,
            spec: &spec,
            bundle: directory,
            root: Root::Overlay(&parts.root),
            groups,
            stdio,
            gate: Gate::Caller,
            preserve_fds: 0,
            pivot: true,
            keyring: true,
            die_with_parent: true,
        };
        let views = views(container, say);
        let covers: Vec<Cover<'_>> = views
            .iter()
            .map(|view| Cover {
                mount: view.mount.as_fd(),
                destination: Path::new(view.destination),
            })
            .collect();
        let created = croft_container::create_with(create, &covers);
        let mut init = created.map_err(|error| refused(&error))?;
        let started = Self::start(run, parts, &mut init, streams);
        if started.is_err() {
            // It waits at its gate, or has ended there.
            let _ = croft_container::signal(init.pidfd(), KILL);
            let _ = reap(init.pidfd());
        }
        started.map(|(streams, nics)| (init, streams, nics))
    }

    fn start(
        run: &RunContainer,
        parts: &Parts,
        init: &mut Created,
        streams: Streams,
    ) -> Result<(Streams, Nics), Outcome> {
        let streams = match init.take_console() {
            Some(end) => Streams::terminal(end).map_err(|error| failed(error.to_string()))?,
            None => streams,
        };
        let namespaces = init.take_namespaces();
        let namespaces = namespaces.ok_or_else(|| failed("its namespaces are lost".to_owned()))?;
        let nics = Nics::attach(
            &run.container.name,
            run.container.role,
            &run.nics,
            namespaces,
        )
        .map_err(failed)?;
        write_names(&run.container, parts, &nics).map_err(failed)?;
        init.start().map_err(|error| refused(&error))?;
        Ok((streams, nics))
    }

    /// Attaches one more NIC.
    pub fn add_nic(
        &mut self,
        run: &RunContainer,
        directory: &Path,
        nic: &NicSpec,
        live_only: bool,
    ) -> Result<(), String> {
        self.nics.add(nic, live_only)?;
        let told = self.tell_names(run, directory);
        if told.is_err() {
            self.nics.remove(&nic.name)?;
        }
        told
    }

    /// Detaches a NIC.
    pub fn remove_nic(
        &mut self,
        run: &RunContainer,
        directory: &Path,
        nic: &str,
    ) -> Result<(), String> {
        self.nics.remove(nic)?;
        self.tell_names(run, directory)
    }

    /// Writes what its NICs have to do with names, where it is told that.
    fn tell_names(&self, run: &RunContainer, directory: &Path) -> Result<(), String> {
        let parts = Parts::find(&run.container, directory)?;
        write_names(&run.container, &parts, &self.nics)
    }

    /// Its init, as the host numbers it.
    pub fn pid(&self) -> Pid {
        self.init.pid()
    }

    /// Readable when its init has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.init.pidfd()
    }

    /// Its control group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The way into its control groups, for another program.
    pub fn groups(&self) -> Result<Groups, String> {
        let group = self.group.for_program();
        let group = group.map_err(|error| error.to_string())?;
        Groups::of(&self.hierarchies, &group).map_err(|error| error.to_string())
    }

    /// Its description, for programs that are added to it.
    pub fn spec(&self, run: &RunContainer, directory: &Path) -> Result<Spec, String> {
        let parts = Parts::find(&run.container, directory)?;
        let user = Users::of_layers(layers(&parts)).find(&run.container.user)?;
        let user = user.among(run.container.ids)?;
        describe(run, directory, &parts, &user, is_unified(&self.hierarchies))
    }

    /// Sends its init a signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        croft_container::signal(self.init.pidfd(), signal)
    }

    /// Ends all its processes at once.
    pub fn kill(&self) {
        // One that has ended is seen so.
        let _ = self.signal(KILL);
        // What is held does not end by version 1.
        let _ = self.group.thaw();
    }

    /// Holds all its processes where they are.
    pub fn hold(&self) -> Result<(), String> {
        if self.group.is_nowhere() {
            return Err(NOT_HELD.to_owned());
        }
        self.group.freeze().map_err(|error| error.to_string())
    }

    /// Sets what it may use from now on.
    pub fn set_limits(&self, run: &RunContainer) -> Result<(), String> {
        let disks = parts::disks(&run.container)?;
        let unified = is_unified(&self.hierarchies);
        let resources = spec::limits(&run.container.limits, &disks, unified)?;
        let left_out = self
            .group
            .apply(&resources)
            .map_err(|error| error.to_string())?;
        match left_out.as_slice() {
            [] => Ok(()),
            some => Err(format!("not set: {}", list(some))),
        }
    }

    /// What it uses.
    pub fn stats(&self) -> Result<ContainerStats, String> {
        let stats = self.group.stats().map_err(|error| error.to_string())?;
        let memory = stats.memory;
        let (received, sent) = traffic(self.pid());
        Ok(ContainerStats {
            time: monotonic(),
            cpu: stats.cpu.usage.saturating_mul(1000),
            cpu_throttled: stats.cpu.throttled.saturating_mul(1000),
            memory: memory.used.saturating_sub(memory.inactive_file),
            memory_limit: memory.limit,
            swap: memory.swap,
            pids: stats.pids.current,
            pids_limit: stats.pids.limit,
            io_read: stats.io.iter().map(|io| io.read_bytes).sum(),
            io_written: stats.io.iter().map(|io| io.written_bytes).sum(),
            net_received: received,
            net_sent: sent,
            oom_kills: memory.oom_kills,
        })
    }

    /// Readable when the kernel has something to say of its group.
    pub fn events(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// What that is, for the operator.
    pub fn hear_events(&mut self) -> Vec<String> {
        let Some(events) = &mut self.events else {
            return Vec::new();
        };
        let Ok(events) = events.take() else {
            // Nothing more is heard of it, rather than the same without end.
            self.events = None;
            return Vec::new();
        };
        let lines = events.into_iter().filter_map(|event| match event {
            Event::OomKill(count) => Some(format!(
                "the kernel ended {count} of its processes for want of memory"
            )),
            Event::MemoryPressure | Event::Empty => None,
        });
        lines.collect()
    }

    /// Its init has ended: how. Of a system the kernel says by the signal what
    /// was asked for: to power off by SIGINT, to start again by SIGHUP
    /// (reboot(2), "Behavior inside PID namespaces").
    pub fn reap(&mut self, role: ContainerRole) {
        let Some(ended) = reap(self.init.pidfd()) else {
            return;
        };
        let out_of_memory = || self.group.oom_kills().is_ok_and(|kills| kills > 0);
        let system = role == ContainerRole::System;
        self.outcome = Some(match ended {
            Ended::Killed(INTERRUPT) if system => Outcome::PowerOff,
            Ended::Killed(HANG_UP) if system => Outcome::Reset,
            Ended::Exited(status) => Outcome::Exited { status },
            Ended::Killed(signal) => Outcome::Killed {
                signal,
                out_of_memory: i32::from(signal) == KILL && out_of_memory(),
            },
        });
    }

    /// Frees what others may want: the NICs. The rest is returned.
    pub fn finish(self) -> Remains {
        let Running {
            mut init,
            group,
            events,
            ..
        } = self;
        let rest = Rest {
            _events: events,
            _root: init.take_root(),
        };
        Remains { group, rest }
    }
}

impl Remains {
    /// Removes its group; what is still to be dropped, and whether that went
    /// well.
    pub fn remove(self) -> (Rest, Result<(), String>) {
        (self.rest, remove_group(&self.group))
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Killed(u8),
}

impl Ended {
    /// As a shell has it.
    pub fn status(self) -> u8 {
        match self {
            Ended::Exited(status) => status,
            Ended::Killed(signal) => signal.saturating_add(128),
        }
    }
}

/// How a child has ended, if it has.
pub fn reap(pidfd: BorrowedFd<'_>) -> Option<Ended> {
    let status = loop {
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            Ok(status) => break status?,
            Err(_) => return None,
        }
    };
    let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Some(Ended::Exited(byte(status))),
        (None, signal) => Some(Ended::Killed(byte(signal.unwrap_or_default()))),
    }
}

fn describe(
    run: &RunContainer,
    directory: &Path,
    parts: &Parts,
    user: &User,
    unified_memory: bool,
) -> Result<Spec, String> {
    spec::describe(&Given {
        container: &run.container,
        user,
        files: &parts.files,
        volumes: &parts.volumes,
        devices: &parts.devices,
        disks: &parts.disks,
        group: &store::control_group(directory).map_err(|error| error.to_string())?,
        maker: parts::maker(),
        unified_memory,
        profile: parts.profile.clone(),
    })
}

/// Writes the files that stand in for the image's.
fn write_names(container: &ContainerSpec, parts: &Parts, nics: &Nics) -> Result<(), String> {
    let (hostname, names) = (spec::hostname(container), nics.names());
    for (destination, text) in [
        ("/etc/hosts", Names::hosts(&hostname, &names)),
        ("/etc/resolv.conf", Names::resolv_conf(&names)),
        ("/etc/hostname", format!("{hostname}\n")),
    ] {
        let written = parts.write(destination, &text);
        written.map_err(|error| format!("{destination}: {error}"))?;
    }
    Ok(())
}

/// The directories of a root, the topmost first.
fn layers(parts: &Parts) -> impl Iterator<Item = &Path> {
    let lowers = parts.root.lowers.iter().rev();
    std::iter::once(&parts.root.upper)
        .chain(lowers)
        .map(PathBuf::as_path)
}

fn is_unified(hierarchies: &Hierarchies) -> bool {
    let memory = hierarchies.with(Controllers::MEMORY);
    memory.is_some_and(|one| one.version == croft_isolate::cgroups::Version::Two)
}

/// Files of `/proc` that show a container its own limits, where it has some and
/// this process may mount them.
fn views(container: &ContainerSpec, say: &mut dyn FnMut(String)) -> Vec<View> {
    let limits = &container.limits;
    let limited = limits.memory.is_some() || limits.cpus.is_some() || limits.cpuset.is_some();
    let wanted = limited || container.role == ContainerRole::System;
    if !wanted || !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    croft_procview::mounts(Path::new(RUNTIME)).unwrap_or_else(|error| {
        say(format!(
            "it sees the host's memory and processors in /proc, not its own limits: {error}"
        ));
        Vec::new()
    })
}

/// Makes the group. What a killed monitor has left in its place has ended with
/// it, or does now.
fn make_group(path: &Path, hierarchies: &Hierarchies) -> Result<Group, Outcome> {
    let left = Group::open(hierarchies, path).map_err(|error| failed(error.to_string()))?;
    remove_group(&left).map_err(failed)?;
    Group::create(hierarchies, path, Controllers::all()).map_err(|error| failed(error.to_string()))
}

fn remove_group(group: &Group) -> Result<(), String> {
    if group.is_nowhere() {
        return Ok(());
    }
    // Nobody is in it where its init has ended: then this is two reads.
    group
        .kill()
        .and_then(|()| group.delete())
        .map_err(|error| error.to_string())
}

/// Sets a container's limits; what cannot be had for root is an error, as
/// others would suffer from it.
fn limit(
    container: &ContainerSpec,
    group: &Group,
    spec: &Spec,
    say: &mut dyn FnMut(String),
) -> Result<(), Outcome> {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let Some(resources) = resources else {
        return Ok(());
    };
    let mut left_out = group.apply(resources).map_err(|error| Outcome::Invalid {
        message: error.to_string(),
    })?;
    left_out.retain(|one| is_missed(&one.what, &container.limits));
    if !left_out.is_empty() {
        say(format!(
            "without some limits: {}; 'croft doctor' tells more",
            list(&left_out)
        ));
    }
    Ok(())
}

/// Whether somebody misses what is left out: not what nobody asked for, nor what
/// keeps a user's container from devices, which the user has no rights to.
fn is_missed(what: &str, limits: &ContainerLimits) -> bool {
    let root = rustix::process::geteuid().is_root();
    match what {
        "cpu" => limits.cpus.is_some() || limits.cpu_weight.is_some(),
        "cpuset" => limits.cpuset.is_some(),
        "memory" => {
            limits.memory.is_some() || limits.memory_high.is_some() || limits.swap.is_some()
        }
        "pids" => root || limits.pids != Some(PIDS),
        "devices" => root,
        _ => true,
    }
}

fn list<T: std::fmt::Display>(all: &[T]) -> String {
    let texts: Vec<String> = all.iter().map(T::to_string).collect();
    texts.join(", ")
}

fn failed(message: String) -> Outcome {
    Outcome::Failed { message }
}

/// Why a container did not come to be: its program, or all else.
fn refused(error: &croft_container::Error) -> Outcome {
    let message = error.to_string();
    match error.exit_code() {
        NOT_STARTED => Outcome::Failed { message },
        status => Outcome::NotExecuted { status, message },
    }
}

/// Nanoseconds of the host's clock.
fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let rest = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Bytes received and sent by all interfaces of a process's namespace but its
/// loopback (proc_pid_net(5), `/proc/PID/net/dev`).
fn traffic(pid: Pid) -> (u64, u64) {
    let path = format!("/proc/{}/net/dev", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let rows = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        if name.trim() == "lo" {
            return None;
        }
        let mut numbers = rest.split_whitespace();
        let received: u64 = numbers.next()?.parse().ok()?;
        let sent: u64 = numbers.nth(7)?.parse().ok()?;
        Some((received, sent))
    });
    rows.fold((0, 0), |(a, b), (received, sent)| {
        (a.saturating_add(received), b.saturating_add(sent))
    })
}
