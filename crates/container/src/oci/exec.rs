//! `exec`: another process in a container.

use std::fs::File;
use std::os::fd::AsFd;

use croft_isolate::cgroups::{Group, Hierarchies};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, Spec, User};
use rustix::process::Pid;

use super::Context;
use super::args::Exec;
use super::capabilities;
use super::error::Error;
use super::files;
use super::foreground::Foreground;
use super::log::Log;
use super::status::{self, Status};
use super::store::{Record, read_bounded};
use crate::{Groups, Stdio};

/// Runs it, and waits for its end unless it is to be on its own.
pub fn exec(context: &Context, options: &Exec) -> Result<u8, Error> {
    let preserve_fds = files::preserved(options.preserve_fds, 0)?;
    let entry = context.store.open(&options.id)?;
    let record = entry.record()?;
    let status = status::of(&entry, record.as_ref())?;
    let (true, Some(record)) = (status.is_alive(), record) else {
        return Err(status.refuse(&options.id, "programs can be run in a container that runs"));
    };
    if status == Status::Paused && !options.ignore_paused {
        return Err(status.refuse(&options.id, "resume it first, or give --ignore-paused"));
    }
    let gone = || Status::Stopped.refuse(&options.id, "its init has just ended");
    let init = record.init.ok_or_else(gone)?;
    let target = init
        .open()
        .map_err(|error| Error::system("open the container's init", error))?
        .ok_or_else(gone)?;
    let target_pid = Pid::from_raw(init.pid).ok_or_else(gone)?;
    let spec = entry.spec()?;
    if crate::needs_seal(&spec) {
        crate::seal(super::NAME)?;
    }
    let process = process(&context.log, options, &spec)?;
    check_console(&process, options)?;
    if let Some(affinity) = process.exec_cpu_affinity().as_ref() {
        let before = affinity.initial().as_deref().and_then(processors);
        if let Some(before) = before {
            context
                .log
                .debug(|| format!("CPU affinity: {before:#x} before the container's"));
        }
    }
    let mut joined = crate::exec(crate::Exec {
        target: target.as_fd(),
        target_pid,
        spec: &spec,
        process: &process,
        groups: enter(options, &record)?,
        stdio: Stdio::Inherit,
        preserve_fds,
        die_with_parent: false,
        // Whoever calls it may end it.
        patience: None,
    })?;
    if let Some(path) = &options.pid_file {
        files::write_pid(path, joined.pid())?;
    }
    let mut console = joined.take_console();
    if let (Some(socket), Some(console)) = (&options.console_socket, console.take()) {
        files::send_console(socket, console.as_fd())?;
    }
    if options.detach {
        return Ok(0);
    }
    Foreground::begin(console)?.wait(joined.pid(), joined.pidfd())
}

/// The container's group, or one below it.
fn enter(options: &Exec, record: &Record) -> Result<Groups, Error> {
    let Some(path) = &record.groups else {
        return Ok(Groups::default());
    };
    let hierarchies = Hierarchies::find()?;
    let path = match &options.cgroup {
        Some(below) => path.join(below.trim_start_matches('/')),
        None => path.clone(),
    };
    let group = Group::open(&hierarchies, &path)?.for_program()?;
    if group.is_nowhere() && options.cgroup.is_some() {
        return Err(Error::Content {
            path,
            why: "there is no such control group".to_owned(),
        });
    }
    Ok(Groups::of(&hierarchies, &group)?)
}

/// What is to run: a whole process from a file, or the container's own with
/// the options' changes.
fn process(log: &Log, options: &Exec, spec: &Spec) -> Result<Process, Error> {
    if let Some(path) = &options.process {
        let file = File::open(path).map_err(|error| Error::file("open", path, error))?;
        let text = read_bounded(file, path)?;
        let read = capabilities::read(&text, capabilities::OF_PROCESS);
        let read = read.map_err(|error| Error::Content {
            path: path.clone(),
            why: error.to_string(),
        })?;
        capabilities::warn_unknown(log, &read.unknown);
        return Ok(read.value);
    }
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(options.command.clone()));
    process.set_terminal(Some(options.tty));
    process.set_command_line(None);
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    process.set_env(Some(with_env(
        process.env().as_deref().unwrap_or_default(),
        &options.env,
    )));
    if options.user.is_some() || !options.additional_gids.is_empty() {
        process.set_user(user(options, process.user()));
    }
    if !options.caps.is_empty() {
        let held = process.capabilities().clone().unwrap_or_default();
        process.set_capabilities(Some(with_caps(&options.caps, held)?));
    }
    if options.apparmor.is_some() {
        process.set_apparmor_profile(options.apparmor.clone());
    }
    if options.process_label.is_some() {
        process.set_selinux_label(options.process_label.clone());
    }
    if options.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    Ok(process)
}

/// A list of processors as bits, as far as they fit; for the log.
fn processors(list: &str) -> Option<u128> {
    let mut bits = 0_u128;
    for part in list.split(',') {
        let (first, last) = part
            .trim()
            .split_once('-')
            .unwrap_or((part.trim(), part.trim()));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        for one in first..=last.min(u128::BITS - 1) {
            bits |= 1_u128.checked_shl(one)?;
        }
    }
    Some(bits)
}

/// Variables, in which later ones replace those of the same name.
fn with_env(before: &[String], more: &[String]) -> Vec<String> {
    let name = |one: &str| {
        one.split_once('=')
            .map_or(one.len(), |(name, _)| name.len())
    };
    let replaced = |one: &&String| {
        let own = one.get(..name(one));
        more.iter().any(|other| other.get(..name(other)) == own)
    };
    let kept = before.iter().filter(|one| !replaced(one));
    kept.chain(more).cloned().collect()
}

fn user(options: &Exec, before: &User) -> User {
    let mut user = before.clone();
    if let Some((uid, gid)) = options.user {
        user.set_uid(uid);
        user.set_gid(gid.unwrap_or(0));
    }
    if !options.additional_gids.is_empty() {
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&options.additional_gids);
        user.set_additional_gids(Some(gids));
    }
    user
}

fn with_caps(names: &[String], mut held: LinuxCapabilities) -> Result<LinuxCapabilities, Error> {
    let mut more = Capabilities::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let known: Capability = serde_json::from_value(upper.clone().into())
            .map_err(|_| Error::Usage(format!("--cap: there is no capability {name}")))?;
        more.insert(known);
    }
    let with = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(more.iter().copied());
        Some(set)
    };
    let (bounding, effective, permitted) = (
        with(held.bounding()),
        with(held.effective()),
        with(held.permitted()),
    );
    held.set_bounding(bounding);
    held.set_effective(effective);
    held.set_permitted(permitted);
    Ok(held)
}

/// A terminal needs somebody who takes its other end.
fn check_console(process: &Process, options: &Exec) -> Result<(), Error> {
    let terminal = process.terminal().unwrap_or(false);
    match (terminal, &options.console_socket) {
        (true, None) if options.detach => Err(Error::Usage(
            "exec: a terminal without somebody who waits needs --console-socket".to_owned(),
        )),
        (false, Some(_)) => Err(Error::Usage(
            "exec: --console-socket is for a process with a terminal; give --tty".to_owned(),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::args::Globals;

    fn log() -> Log {
        Log::new(&Globals::default())
    }

    fn options() -> Exec {
        Exec {
            id: "box".to_owned(),
            command: vec!["ls".to_owned(), "-l".to_owned()],
            ..Exec::default()
        }
    }

    #[test]
    fn the_container_s_process_with_changes() {
        let spec = Spec::default();
        let options = Exec {
            tty: true,
            env: vec!["A=1".to_owned()],
            user: Some((5, None)),
            additional_gids: vec![7],
            cwd: Some("/tmp".into()),
            caps: vec!["cap_sys_ptrace".to_owned()],
            no_new_privs: true,
            ..options()
        };
        let process = process(&log(), &options, &spec).unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["ls", "-l"]);
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(process.cwd(), std::path::Path::new("/tmp"));
        assert_eq!((process.user().uid(), process.user().gid()), (5, 0));
        assert_eq!(process.user().additional_gids(), &Some(vec![7]));
        assert_eq!(process.env().as_ref().unwrap().last().unwrap(), "A=1");
        assert_eq!(process.no_new_privileges(), Some(true));
        let held = process.capabilities().clone().unwrap();
        let ptrace = Capability::SysPtrace;
        assert!(held.bounding().as_ref().unwrap().contains(&ptrace));
        assert!(held.effective().as_ref().unwrap().contains(&ptrace));
        let others = Spec::default().process().clone().unwrap();
        let others = others.capabilities().clone().unwrap();
        assert_eq!(held.inheritable(), others.inheritable());
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(processors("0-2, 4"), Some(0b1_0111));
        assert_eq!(processors("0-4000000000").map(u128::count_ones), Some(128));
        assert_eq!(processors("x"), None);
    }

    #[test]
    fn later_variables_replace_earlier_ones() {
        let before = ["A=1", "AB=2", "C"].map(str::to_owned);
        let more = ["A=3=4", "D="].map(str::to_owned);
        assert_eq!(with_env(&before, &more), ["AB=2", "C", "A=3=4", "D="]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mut wrong = options();
        wrong.caps = vec!["CAP_FLY".to_owned()];
        let error = process(&log(), &wrong, &Spec::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("CAP_FLY"), "{error}");
        wrong = options();
        wrong.process = Some("/nowhere/process.json".into());
        let error = process(&log(), &wrong, &Spec::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nowhere/process.json"), "{error}");
    }
}
