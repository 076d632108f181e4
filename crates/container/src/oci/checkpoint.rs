//! `checkpoint` and `restore`, by CRIU (criu(8)), where it is able to.
//!
//! CRIU saves the processes, their namespaces and what is mounted in these,
//! but not what came from outside: the root, binds and control groups. Those
//! are named (`--external`) when it dumps, by the place that they have in the
//! container, and given again by the bundle that is restored.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use croft_isolate::cgroups::{Controllers, Group, Hierarchies};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::fs::OFlags;
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use rustix::process::Pid;

use super::Context;
use super::args::{Checkpoint, Images, Restore};
use super::bundle::Bundle;
use super::error::Error;
use super::files;
use super::foreground::Foreground;
use super::groups;
use super::process::Process;
use super::status::{self, Status};
use super::store::{Entry, Record, read_bounded};
use crate::Groups;

/// Where images are, unless it is said.
const IMAGES: &str = "checkpoint";
/// File beside CRIU's images: what was outside when they were made.
const OUTSIDE: &str = "croft.json";
/// File beside them: what the standard streams were.
const DESCRIPTORS: &str = "descriptors.json";
/// How long what CRIU has killed may take to end.
const ENDING: Duration = Duration::from_secs(30);
/// The first version of CRIU that can do without locking the network.
const WITHOUT_LOCK: (u32, u32) = (3, 18);
/// Name of a network namespace that is not the container's, as runc has it.
const NETWORK: &str = "extRootNetNS";
/// Name of an external mount's kind.
const KEY: &str = "croft";

/// `checkpoint`.
pub fn checkpoint(context: &Context, options: &Checkpoint) -> Result<u8, Error> {
    let entry = context.store.open(&options.id)?;
    entry.lock()?;
    let record = entry.record()?;
    let status = status::of(&entry, record.as_ref())?;
    let (true, Some(record)) = (matches!(status, Status::Running | Status::Paused), record) else {
        return Err(status.refuse(&options.id, "only a running container can be saved"));
    };
    let init = record
        .init
        .ok_or_else(|| status.refuse(&options.id, "it has no init"))?;
    check(context)?;
    let images = directory(&options.images)?;
    let spec = entry.spec()?;
    let outside = outside(init, &spec)?;
    let text = serde_json::to_vec(&outside).map_err(|error| Error::Content {
        path: images.join(OUTSIDE),
        why: error.to_string(),
    })?;
    fs::write(images.join(OUTSIDE), text)
        .map_err(|error| Error::file("write", images.join(OUTSIDE), error))?;
    write_descriptors(init, &images)?;
    let mut command = criu(context, "dump", &options.images, &images);
    command.args(["--tree", &init.pid.to_string()]);
    if options.leave_running {
        command.arg("--leave-running");
    }
    if options.skip_in_flight {
        command.arg("--skip-in-flight");
    }
    if !options.images.tcp_established && skips_lock(context) {
        // There is nothing to be locked, and locking needs iptables.
        command.args(["--network-lock", "skip"]);
    }
    for place in outside.keys() {
        command
            .arg("--external")
            .arg(format!("mnt[{place}]:{KEY}{place}"));
    }
    if joined_network(&spec).is_some() {
        let path = format!("/proc/{}/ns/net", init.pid);
        let found = fs::metadata(&path).map_err(|error| Error::file("look at", &path, error))?;
        command
            .arg("--external")
            .arg(format!("net[{}]:{NETWORK}", found.ino()));
    }
    run(command, &work(&options.images, &images), "dump.log")?;
    if !options.leave_running {
        // CRIU has killed it; whoever asked may look for it at once.
        init.ends_within(ENDING);
        // What it was is in the images, and its name is free for what is made
        // of them.
        super::life::remove(&context.log, &entry, Some(&record))?;
    }
    Ok(0)
}

/// The network namespace of others that a container is in.
fn joined_network(spec: &Spec) -> Option<&Path> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_deref()?;
    let network = |one: &&LinuxNamespace| one.typ() == LinuxNamespaceType::Network;
    namespaces.iter().find(network)?.path().as_deref()
}

/// What was outside, as whoever gives the images says.
fn read_outside(path: PathBuf) -> Result<BTreeMap<String, PathBuf>, Error> {
    let text = read(&path)?;
    serde_json::from_slice(&text).map_err(|error| Error::Content {
        path,
        why: error.to_string(),
    })
}

/// A file of the images', which others may have made: what is no file, such as
/// a pipe, is not waited for.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| Error::file("open", path, error))?;
    read_bounded(file, path)
}

/// What init's standard streams are, for whoever restores it with others in
/// their places; in the file and the form that runc's callers know.
fn write_descriptors(init: Process, images: &Path) -> Result<(), Error> {
    let link = |number| fs::read_link(format!("/proc/{}/fd/{number}", init.pid));
    let streams: Vec<_> = (0..3).map(|number| link(number).ok()).collect();
    let path = images.join(DESCRIPTORS);
    let text = serde_json::to_vec(&streams).map_err(|error| Error::Content {
        path: path.clone(),
        why: error.to_string(),
    })?;
    fs::write(&path, text).map_err(|error| Error::file("write", path, error))
}

/// `restore`.
pub fn restore(context: &Context, options: &Restore) -> Result<u8, Error> {
    check(context)?;
    let create = &options.run.create;
    if create.console_socket.is_some() {
        return Err(Error::Criu(
            "restore: terminals of containers cannot be restored".to_owned(),
        ));
    }
    let bundle = Bundle::read(create.bundle.as_deref())?;
    let images = directory(&options.images)?;
    let path = images.join(OUTSIDE);
    let outside = read_outside(path)?;
    let entry = context.store.create(&create.id)?;
    let rootfs = bundle.rootfs();
    let mut record = Record::new(
        &create.id,
        bundle.path.clone(),
        rootfs.clone(),
        &bundle.spec,
    );
    let made = restore_in(
        context,
        options,
        &bundle,
        &images,
        &outside,
        &entry,
        &mut record,
    );
    let init = match made {
        Ok(init) => init,
        Err(error) => {
            if let Err(other) = super::life::clear(&entry, &record) {
                context.log.warn(&other.to_string());
            }
            return Err(error);
        }
    };
    entry.unlock();
    if options.run.detach {
        return Ok(0);
    }
    let gone = || Error::Criu("restore: the container has just ended".to_owned());
    let pid = Pid::from_raw(init.pid).ok_or_else(gone)?;
    let descriptor = init
        .open()
        .map_err(|error| Error::system("open the container's init", error))?
        .ok_or_else(gone)?;
    let code = Foreground::begin(None)?.wait(pid, std::os::fd::AsFd::as_fd(&descriptor))?;
    if !options.run.keep {
        entry.lock()?;
        super::life::remove(&context.log, &entry, Some(&record))?;
    }
    Ok(code)
}

fn restore_in(
    context: &Context,
    options: &Restore,
    bundle: &Bundle,
    images: &Path,
    outside: &BTreeMap<String, PathBuf>,
    entry: &Entry,
    record: &mut Record,
) -> Result<Process, Error> {
    entry.keep_config(&bundle.text)?;
    let path = groups::path(entry.id(), &bundle.spec);
    record.groups = Some(path.clone());
    entry.write(record)?;
    let (hierarchies, group) = groups::create(&path, &context.log)?;
    groups::limit(&group, &bundle.spec, &context.log)?;
    let enter = Groups::of(&hierarchies, &group)?;
    let places = sources(&bundle.spec, &hierarchies, &group);
    let pid_file = entry.path().join("restored");
    let mut command = criu(context, "restore", &options.images, images);
    command
        .arg("--restore-detached")
        .arg("--pidfile")
        .arg(&pid_file)
        .arg("--root")
        .arg(&record.rootfs);
    for (place, before) in outside {
        let source = places.get(place).unwrap_or(before);
        command
            .arg("--external")
            .arg(format!("mnt[{KEY}{place}]:{}", source.display()));
    }
    // Open in CRIU too, and nowhere else.
    let network = joined_network(&bundle.spec).map(|path| {
        File::open(path)
            .map_err(|error| Error::file("open", path, error))
            .and_then(|file| {
                rustix::io::dup(&file).map_err(|error| Error::file("open", path, error))
            })
    });
    let network = network.transpose()?;
    if let Some(network) = &network {
        command
            .arg("--inherit-fd")
            .arg(format!("fd[{}]:{NETWORK}", network.as_raw_fd()));
    }
    let rootfs = record.rootfs.clone();
    // SAFETY: this process has a single thread; after the fork the closure
    // makes system calls, and allocates as a single thread may.
    unsafe {
        command.pre_exec(move || {
            enter.enter_all()?;
            // The root must be a mount; that it is one is nobody else's affair.
            rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)?;
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            mount_change("/", slave)?;
            mount_bind_recursive(&rootfs, &rootfs)?;
            Ok(())
        });
    }
    // Its child becomes ours when CRIU ends, if we wait for it.
    if !options.run.detach {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| Error::system("take over the container", error))?;
    }
    run(command, &work(&options.images, images), "restore.log")?;
    let text = read(&pid_file)?;
    let init = String::from_utf8_lossy(&text)
        .trim()
        .parse()
        .ok()
        .and_then(Pid::from_raw)
        .and_then(Process::of)
        .ok_or_else(|| Error::Criu("restore: the container has just ended".to_owned()))?;
    let _ = fs::remove_file(&pid_file);
    record.creator = None;
    record.init = Some(init);
    entry.write(record)?;
    if let (Some(path), Some(pid)) = (&options.run.create.pid_file, Pid::from_raw(init.pid)) {
        files::write_pid(path, pid)?;
    }
    Ok(init)
}

/// CRIU depends on the kernel's version in many ways, and knows itself whether
/// they fit.
fn check(context: &Context) -> Result<(), Error> {
    let mut command = Command::new(&context.criu);
    command.arg("check");
    let output = start(command)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Criu(format!(
        "this CRIU does not work with this kernel (criu check: {}); a newer CRIU may",
        complaint(&String::from_utf8_lossy(&output.stderr))
    )))
}

/// Whether this CRIU can leave the network alone. What does not say its
/// version is taken for a new one.
fn skips_lock(context: &Context) -> bool {
    let mut command = Command::new(&context.criu);
    command.arg("--version");
    let said = start(command)
        .map(|output| output.stdout)
        .unwrap_or_default();
    version(&String::from_utf8_lossy(&said)).is_none_or(|one| one >= WITHOUT_LOCK)
}

/// The first two numbers of `Version: 3.17.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))?;
    let mut numbers = line.trim().split('.').map(|one| one.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// What both commands are told.
fn criu(context: &Context, action: &str, options: &Images, images: &Path) -> Command {
    let mut command = Command::new(&context.criu);
    command
        .args([action, "--images-dir"])
        .arg(images)
        // The groups are made by who restores.
        .arg(format!(
            "--manage-cgroups={}",
            options.manage_cgroups.unwrap_or("ignore")
        ))
        .arg("--work-dir")
        .arg(work(options, images))
        .args(["--log-file", &format!("{action}.log")]);
    for (asked, option) in [
        (options.tcp_established, "--tcp-established"),
        (options.ext_unix_sk, "--ext-unix-sk"),
        (options.shell_job, "--shell-job"),
        (options.file_locks, "--file-locks"),
        (options.link_remap, "--link-remap"),
    ] {
        if asked {
            command.arg(option);
        }
    }
    command
}

fn work(options: &Images, images: &Path) -> PathBuf {
    options
        .work_path
        .clone()
        .unwrap_or_else(|| images.to_path_buf())
}

/// The directory of images, which is made if it is not there.
fn directory(options: &Images) -> Result<PathBuf, Error> {
    let path = options.image_path.clone().unwrap_or_else(|| IMAGES.into());
    fs::create_dir_all(&path).map_err(|error| Error::file("make", &path, error))?;
    fs::canonicalize(&path).map_err(|error| Error::file("find", &path, error))
}

fn run(command: Command, work: &Path, log: &str) -> Result<(), Error> {
    let output = start(command)?;
    if output.status.success() {
        return Ok(());
    }
    let log = work.join(log);
    // Before it has a log it says so aloud.
    Err(Error::Criu(match read(&log) {
        Ok(text) => format!(
            "CRIU failed: {}; {} has more",
            complaint(&String::from_utf8_lossy(&text)),
            log.display()
        ),
        Err(_) => format!(
            "CRIU failed: {}",
            complaint(&String::from_utf8_lossy(&output.stderr))
        ),
    }))
}

fn start(mut command: Command) -> Result<Output, Error> {
    command.output().map_err(|error| {
        let program = command.get_program().display();
        Error::Criu(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "checkpoints need CRIU, and there is no {program}; install criu, or name it with --criu"
            ),
            _ => format!("cannot run {program}: {error}"),
        })
    })
}

/// The first thing that CRIU calls an error: later ones follow from it.
fn complaint(text: &str) -> &str {
    // That it cannot raise its own limits does not stop it.
    let is_error = |line: &&str| line.contains("Error") && !line.contains("rlimit:");
    let line = text.lines().find(is_error);
    line.map_or("it does not say why", str::trim)
}

/// Places in the container where something is mounted that is not its own, and
/// what it was.
fn outside(init: Process, spec: &Spec) -> Result<BTreeMap<String, PathBuf>, Error> {
    let path = format!("/proc/{}/mountinfo", init.pid);
    let text = fs::read_to_string(&path).map_err(|error| Error::file("read", path, error))?;
    let bound = binds(spec);
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let Some(mount) = Mount::parse(line) else {
            continue;
        };
        if mount.place == "/" {
            continue;
        }
        if let Some(source) = bound.get(mount.place) {
            found.insert(mount.place.to_owned(), source.clone());
        } else if matches!(mount.kind, "cgroup" | "cgroup2") {
            found.insert(mount.place.to_owned(), PathBuf::from(mount.root));
        } else if mount.kind == "devtmpfs" {
            // A device that could not be made, or what hides a file.
            found.insert(
                mount.place.to_owned(),
                Path::new("/dev").join(mount.root.trim_start_matches('/')),
            );
        }
    }
    Ok(found)
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    root: &'a str,
    place: &'a str,
    kind: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        Some(Mount {
            root: front.next()?,
            place: front.next()?,
            kind: back.split(' ').next()?,
        })
    }
}

/// What the description binds, by place.
fn binds(spec: &Spec) -> BTreeMap<String, PathBuf> {
    let is_bind = |mount: &&oci_spec::runtime::Mount| {
        let options = mount.options().iter().flatten();
        mount.typ().as_deref() == Some("bind")
            || options
                .into_iter()
                .any(|one| one == "bind" || one == "rbind")
    };
    let mounts = spec.mounts().iter().flatten().filter(is_bind);
    mounts
        .filter_map(|mount| {
            let place = mount.destination().to_str()?.to_owned();
            Some((place, mount.source().clone()?))
        })
        .collect()
}

/// What there is now for places of the container.
fn sources(spec: &Spec, hierarchies: &Hierarchies, group: &Group) -> BTreeMap<String, PathBuf> {
    let mut sources = binds(spec);
    for hierarchy in hierarchies.iter() {
        let controller = match hierarchy.controllers {
            controllers if controllers.is_empty() => Controllers::CPUACCT,
            controllers => controllers,
        };
        let path = group
            .paths()
            .find(|path| path.starts_with(&hierarchy.mount));
        let path = path.or_else(|| group.path_of(controller));
        if let (Some(place), Some(path)) = (hierarchy.mount.to_str(), path) {
            sources.insert(place.to_owned(), path.to_path_buf());
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line =
            "204 200 0:32 /a/b /sys/fs/cgroup/memory ro,nosuid shared:3 - cgroup cgroup rw,memory";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(
            (mount.root, mount.place, mount.kind),
            ("/a/b", "/sys/fs/cgroup/memory", "cgroup")
        );
        assert_eq!(Mount::parse("204 200"), None);
    }

    #[test]
    fn binds_are_outside() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","mounts":[
                {"destination":"/a","type":"bind","source":"/x"},
                {"destination":"/b","type":"none","source":"/y","options":["rbind","ro"]},
                {"destination":"/proc","type":"proc","source":"proc"}]}"#,
        )
        .unwrap();
        let found = binds(&spec);
        assert_eq!(found.len(), 2);
        assert_eq!(found.get("/b"), Some(&PathBuf::from("/y")));
    }

    #[test]
    fn the_first_error_is_told() {
        let text = "Warn x\nError (u.c:9): rlimit: no\n(00.1) Error (a.c:1): first\nError (b.c:2): second\n";
        assert_eq!(complaint(text), "(00.1) Error (a.c:1): first");
        assert_eq!(complaint(""), "it does not say why");
    }

    #[test]
    fn what_images_say_is_bounded_and_not_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(OUTSIDE);
        fs::write(&path, r#"{"/data": "/srv"}"#).unwrap();
        let outside = read_outside(path.clone()).unwrap();
        assert_eq!(outside.get("/data"), Some(&PathBuf::from("/srv")));
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let why = read_outside(path.clone()).unwrap_err().to_string();
        assert!(why.contains("larger"), "{why}");
        fs::remove_file(&path).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        assert!(read_outside(path).is_err());
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("Version: 3.17.1\n"), Some((3, 17)));
        assert_eq!(version("Version: 4.2\nGitID: v4.2\n"), Some((4, 2)));
        assert_eq!(version("criu"), None);
        assert!(Some((3, 17)) < Some(WITHOUT_LOCK) && (4, 0) >= WITHOUT_LOCK);
    }
}
