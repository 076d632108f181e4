//! The maker: one thread, as the library asks for.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use croft_container::{
    Create, Error, Exec, Gate, Groups, OverlayRoot, Root, Spec, Stdio, allowed_devices, create,
    exec,
};
use croft_isolate::cgroups::{Controllers, Group, Hierarchies};
use oci_spec::runtime::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Gid, Pid, Uid, WaitOptions, waitpid};

#[derive(Default)]
struct Wanted {
    bundle: PathBuf,
    overlay: Option<PathBuf>,
    group: Option<String>,
    execs: Vec<PathBuf>,
    /// How long each of them may take to begin.
    patience: Option<Duration>,
    /// To be made when they have all ended.
    after: Option<PathBuf>,
    /// The container may live longer than we.
    outlives: bool,
}

fn parse(words: &[String]) -> Wanted {
    let mut wanted = Wanted::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--outlives" => wanted.outlives = true,
            "--overlay" => wanted.overlay = words.next().map(PathBuf::from),
            "--group" => wanted.group = words.next().cloned(),
            "--exec" => wanted.execs.extend(words.next().map(PathBuf::from)),
            "--patience" => {
                let seconds = words.next().and_then(|word| word.parse().ok());
                wanted.patience = seconds.map(Duration::from_secs);
            }
            "--after" => wanted.after = words.next().map(PathBuf::from),
            _ => wanted.bundle = PathBuf::from(word),
        }
    }
    wanted
}

pub fn run(words: &[String]) -> ExitCode {
    let wanted = parse(words);
    let hierarchies = Hierarchies::find().expect("the hierarchies");
    let group = wanted.group.as_ref().map(|name| {
        let path = Path::new("croft-test").join(name);
        Group::create(&hierarchies, &path, Controllers::all()).expect("a group")
    });
    let groups = || match &group {
        Some(group) => Groups::of(&hierarchies, group).expect("its descriptors"),
        None => Groups::default(),
    };
    let code = match whole(&wanted, group.as_ref(), groups) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("driver: {:?}: {error}", error.step);
            error.exit_code()
        }
    };
    if let Some(group) = group {
        group.kill().expect("an end of the group");
        group.delete().expect("no group");
    }
    ExitCode::from(code)
}

fn whole(wanted: &Wanted, group: Option<&Group>, groups: impl Fn() -> Groups) -> Result<u8, Error> {
    let text = fs::read(wanted.bundle.join("config.json")).expect("a description");
    let spec: Spec = serde_json::from_slice(&text).expect("a right description");
    let linux = spec.linux().as_ref();
    let maps = linux.and_then(|linux| linux.uid_mappings().as_ref());
    if let (Some(group), Some(first)) = (group, maps.and_then(|maps| maps.first())) {
        let id = first.host_id();
        let delegated = group.delegate(Uid::from_raw(id), Gid::from_raw(id));
        delegated.expect("a group of the container's own");
    }
    let limits = linux.and_then(|linux| linux.resources().as_ref());
    if let (Some(group), Some(mut limits)) = (group, limits.cloned()) {
        if let Some(rules) = limits.devices_mut() {
            rules.extend(allowed_devices());
        }
        let left_out = group.apply(&limits).expect("right limits");
        assert_eq!(left_out, [], "limits that cannot be had");
    }
    let overlay = wanted.overlay.as_ref().map(|directory| OverlayRoot {
        lowers: (0..)
            .map(|number| directory.join(format!("lower{number}")))
            .take_while(|path| path.is_dir())
            .collect(),
        upper: directory.join("upper"),
        work: directory.join("work"),
    });
    let mut created = create(Create {
        id: "test",
        spec: &spec,
        bundle: &wanted.bundle,
        root: overlay.as_ref().map_or(Root::Spec, Root::Overlay),
        groups: groups(),
        stdio: Stdio::Inherit,
        gate: Gate::Caller,
        preserve_fds: 0,
        pivot: true,
        keyring: true,
        die_with_parent: !wanted.outlives,
    })?;
    let console = created.take_console();
    created.start()?;
    for path in &wanted.execs {
        let text = fs::read(path).expect("a process");
        let process: Process = serde_json::from_slice(&text).expect("a right process");
        let joined = exec(Exec {
            target: created.pidfd(),
            target_pid: created.pid(),
            spec: &spec,
            process: &process,
            groups: groups(),
            stdio: Stdio::Inherit,
            preserve_fds: 0,
            die_with_parent: true,
            patience: wanted.patience,
        });
        match joined {
            Ok(joined) => println!("exec: {}", code(joined.pid())),
            Err(error) => println!("exec: {} {:?}: {error}", error.exit_code(), error.step),
        }
    }
    if let Some(after) = &wanted.after {
        fs::write(after, "").expect("the file for afterwards");
    }
    if let Some(console) = console {
        show(console, created.pidfd());
    }
    Ok(code(created.pid()))
}

/// What the container's terminal shows, until its init has ended: between two
/// programs that have it open, and at its end, reading is an error.
fn show(console: OwnedFd, init: BorrowedFd<'_>) {
    let mut console = fs::File::from(console);
    loop {
        // What there is comes out, whether init is still there or not.
        let ended = {
            let mut wanted = [PollFd::new(&init, PollFlags::IN)];
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            poll(&mut wanted, Some(&wait)).is_ok_and(|count| count > 0)
        };
        let _ = io::copy(&mut console, &mut io::stdout());
        if ended {
            return;
        }
    }
}

fn code(pid: Pid) -> u8 {
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())
        .expect("a child")
        .expect("its end");
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code as u8,
        (_, Some(signal)) => 128 + signal as u8,
        _ => 255,
    }
}
