//! Commands that clients run in a container.
//!
//! Their streams are the clients' own, or a terminal whose other end the
//! client gets: nothing of them passes through here.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use croft_api::container::{ContainerSpec, ExecSpec, LIST_MAX};
use croft_api::control::Event as Told;
use croft_api::monitor::RunContainer;
use croft_container::{Exec, Joined, Stdio};
use oci_spec::runtime::{BoxBuilder, Process};
use rustix::fs::{Mode, OFlags, open};

use super::running::{Running, reap};
use super::spec;
use super::users::Users;

/// Most commands at once.
const RUNNING_MAX: usize = 256;
/// How long a command may take to begin. What is in the container can stop it,
/// and must not stop us.
const PATIENCE: Duration = Duration::from_secs(10);
/// The exit status of a command that was not started for any other reason than
/// itself.
const NOT_STARTED: u8 = 125;

/// The commands that run.
#[derive(Debug, Default)]
pub struct Execs {
    all: Vec<One>,
    /// Numbers the commands.
    next: u64,
}

#[derive(Debug)]
struct One {
    id: u64,
    /// Who runs it; nobody any more if not there.
    client: Option<u64>,
    joined: Joined,
}

impl Execs {
    /// Runs a command for a client: what the client is told, and a terminal's
    /// end if the command has one.
    pub fn start(
        &mut self,
        client: u64,
        exec: &ExecSpec,
        descriptors: Vec<OwnedFd>,
        running: &Running,
        run: &RunContainer,
        directory: &Path,
    ) -> (Told, Vec<OwnedFd>) {
        let started = self.try_start(client, exec, descriptors, running, run, directory);
        started.unwrap_or_else(|(status, message)| (Told::ExecFailed { status, message }, vec![]))
    }

    fn try_start(
        &mut self,
        client: u64,
        exec: &ExecSpec,
        descriptors: Vec<OwnedFd>,
        running: &Running,
        run: &RunContainer,
        directory: &Path,
    ) -> Result<(Told, Vec<OwnedFd>), (u8, String)> {
        let refused = |message: String| (NOT_STARTED, message);
        if self.all.len() >= RUNNING_MAX {
            return Err(refused(format!("{RUNNING_MAX} commands run in it already")));
        }
        let spec = running.spec(run, directory).map_err(refused)?;
        let pid = running.pid();
        let path = format!("/proc/{}/root", pid.as_raw_nonzero());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(&path, flags, Mode::empty());
        let root = root.map_err(|error| refused(format!("its root: {error}")))?;
        let users = Users::of_root(&root, PATIENCE).map_err(refused)?;
        let process = process(exec, &run.container, &users).map_err(refused)?;
        let stdio = match <[OwnedFd; 3]>::try_from(descriptors) {
            Ok(streams) => Stdio::Given(streams),
            Err(_) => Stdio::Inherit,
        };
        let exec = Exec {
            target: running.pidfd(),
            target_pid: pid,
            spec: &spec,
            process: &process,
            groups: running.groups().map_err(refused)?,
            stdio,
            preserve_fds: 0,
            die_with_parent: true,
            patience: Some(PATIENCE),
        };
        let mut joined =
            croft_container::exec(exec).map_err(|error| (error.exit_code(), error.to_string()))?;
        let terminal = joined.take_console();
        self.next += 1;
        let told = Told::ExecStarted {
            id: self.next,
            pid: joined.pid().as_raw_nonzero().get().unsigned_abs(),
        };
        self.all.push(One {
            id: self.next,
            client: Some(client),
            joined,
        });
        Ok((told, terminal.into_iter().collect()))
    }

    /// What is worth waiting for: readable when a command has ended.
    pub fn sources(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.all.iter().map(|one| (one.id, one.joined.pidfd()))
    }

    /// A command has ended: who is told, and what.
    pub fn hear(&mut self, id: u64) -> Option<(u64, Told)> {
        let at = self.all.iter().position(|one| one.id == id)?;
        let one = self.all.get(at)?;
        let ended = reap(one.joined.pidfd())?;
        let client = one.client;
        self.all.remove(at);
        let status = ended.status();
        Some((client?, Told::ExecEnded { id, status }))
    }

    /// Sends a client's command a signal.
    pub fn signal(&self, client: u64, id: u64, signal: i32) -> Result<(), String> {
        let mut all = self.all.iter();
        let one = all.find(|one| one.id == id && one.client == Some(client));
        let one = one.ok_or("it has no such command")?;
        croft_container::signal(one.joined.pidfd(), signal).map_err(|error| error.to_string())
    }

    /// A client has gone; its commands go on.
    pub fn left(&mut self, client: u64) {
        for one in self.all.iter_mut().filter(|one| one.client == Some(client)) {
            one.client = None;
        }
    }

    /// The container has ended, and they with it: who is told, and what.
    pub fn end(&mut self) -> Vec<(u64, Told)> {
        let ids: Vec<u64> = self.all.iter().map(|one| one.id).collect();
        let told = ids.into_iter().filter_map(|id| self.hear(id)).collect();
        self.all.clear();
        told
    }
}

/// What a command runs as.
fn process(exec: &ExecSpec, container: &ContainerSpec, users: &Users) -> Result<Process, String> {
    if exec.command.is_empty() {
        return Err("it is no command".to_owned());
    }
    if exec.command.len() > LIST_MAX || exec.env.len() > LIST_MAX {
        return Err(format!("more than {LIST_MAX} arguments or variables"));
    }
    let user = users.find(exec.user.as_deref().unwrap_or(&container.user))?;
    let user = user.among(container.ids)?;
    let mut with = container.clone();
    with.tty = exec.tty.is_some();
    for variable in &exec.env {
        let name = variable.split('=').next().unwrap_or_default();
        let other = |one: &String| one.split('=').next() != Some(name);
        with.env.retain(other);
        with.env.push(variable.clone());
    }
    with.command.clone_from(&exec.command);
    if let Some(cwd) = &exec.cwd {
        with.cwd.clone_from(cwd);
    }
    let mut process = spec::process(&with, &user)?;
    if let Some((columns, rows)) = exec.tty {
        let size = BoxBuilder::default().width(columns).height(rows).build();
        let size = size.map_err(|error| error.to_string())?;
        process.set_console_size(Some(size));
    }
    if exec.privileged {
        // Of the container's own namespaces.
        with.cap_add
            .extend(["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN"].map(str::to_owned));
        let all = spec::capabilities(&with)?;
        process.set_capabilities(Some(spec::rights(&all, &user)));
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_containers_environment_and_its_own() {
        let container = ContainerSpec {
            env: vec!["A=1".to_owned(), "B=2".to_owned()],
            cwd: "/srv".to_owned(),
            ..ContainerSpec::default()
        };
        let exec = ExecSpec {
            command: vec!["env".to_owned()],
            env: vec!["B=3".to_owned()],
            tty: Some((80, 25)),
            ..ExecSpec::default()
        };
        let process = process(&exec, &container, &Users::default()).unwrap();
        let env = process.env().as_ref().unwrap();
        assert!(env.contains(&"A=1".to_owned()) && env.contains(&"B=3".to_owned()));
        assert!(!env.contains(&"B=2".to_owned()));
        assert_eq!(process.cwd(), Path::new("/srv"));
        assert_eq!(process.console_size().unwrap().height(), 25);
        let nobody = ExecSpec {
            user: Some("nobody".to_owned()),
            ..exec.clone()
        };
        assert!(super::process(&nobody, &container, &Users::default()).is_err());
        let nothing = ExecSpec {
            command: Vec::new(),
            ..exec
        };
        assert!(super::process(&nothing, &container, &Users::default()).is_err());
    }
}
