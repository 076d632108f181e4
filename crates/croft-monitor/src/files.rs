//! Opening what an instance is made from.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use croft_api::EngineChoice;
use croft_api::monitor::{RunRequest, RunShare};
use croft_api::saved::SavedRun;
use croft_api::vmm::{KvmDevice, StartRequest};
use rustix::fs::OFlags;

use crate::control::Control;
use crate::disks::Disk;
use crate::gdb::GdbListener;
use crate::nics::{Nic, Wires};
use crate::ports::Port;
use crate::shares::Share;
use crate::vsock::Vsock;
use croft_host::socket::SocketFile;

/// All of them, open.
#[derive(Debug)]
pub struct Files {
    kernel: Option<File>,
    initrd: Option<File>,
    disks: Vec<Disk>,
    nics: Vec<Nic>,
    shares: Vec<Share>,
    saved: Option<File>,
    log: Option<File>,
    control: Option<Control>,
    vsock: Option<Vsock>,
    ports: Vec<(Port, OwnedFd)>,
    /// Where a debugger can connect.
    pub gdb: Option<GdbListener>,
    /// `/dev/kvm`, if the machine may run on it.
    kvm: Option<io::Result<File>>,
}

/// What the monitor keeps.
#[derive(Debug)]
pub struct Kept {
    /// Console output goes here too.
    pub log: Option<File>,
    /// Where commands can connect.
    pub control: Option<Control>,
    /// Where programs connect to the guest.
    pub vsock: Option<Vsock>,
    /// The console's ports.
    pub ports: Vec<Port>,
    /// What the NICs hang on.
    pub nics: Wires,
    /// Removes the debugger's socket when dropped.
    pub _socket: Option<SocketFile>,
}

impl Files {
    /// Opens everything, or says what is wrong and what to do. `saved` is the
    /// file of a machine that is restored.
    pub fn open(run: &RunRequest, saved: Option<File>) -> Result<Files, String> {
        let kernel = match &run.kernel {
            Some(path) => Some(open_input("kernel", "--kernel", path)?),
            None if run.disks.is_empty() => {
                return Err("there is neither a kernel nor a disk to boot from; \
                            name one with --kernel or --disk"
                    .to_owned());
            }
            None => None,
        };
        let initrd = match &run.initrd {
            Some(path) => Some(open_input("initrd", "--initrd", path)?),
            None => None,
        };
        let disks = Disk::open_all(&run.disks)?;
        let shares = run.shares.iter().map(Share::open);
        let shares = shares.collect::<Result<_, _>>()?;
        let log = match &run.log {
            Some(path) => Some(open_log(path)?),
            None => None,
        };
        let control = match &run.control {
            Some(path) => Some(bind_control(path, run, &disks)?),
            None => None,
        };
        let vsock = match &run.vsock {
            Some(path) => Some(bind_vsock(path)?),
            None => None,
        };
        let paths = run.ports.iter().map(Option::as_ref);
        let paths = paths.chain(std::iter::repeat(None));
        let ports = run.machine.ports.iter().zip(paths);
        let ports = ports.map(|(name, path)| open_port(name, path));
        let ports = ports.collect::<Result<_, _>>()?;
        let gdb = match &run.gdb {
            Some(address) => Some(GdbListener::bind(address)?),
            None => None,
        };
        // Last: it starts processes.
        let nics = Nic::open_all(&run.machine, &run.nics)?;
        Ok(Files {
            kernel,
            initrd,
            disks,
            nics,
            shares,
            saved,
            log,
            control,
            vsock,
            ports,
            gdb,
            kvm: open_kvm(run.machine.engine),
        })
    }

    /// What the payload is told of `/dev/kvm`.
    fn kvm_device(&self) -> KvmDevice {
        match &self.kvm {
            None => KvmDevice::Unwanted,
            Some(Ok(_)) => KvmDevice::Handed,
            Some(Err(error)) => KvmDevice::Refused(error.raw_os_error().unwrap_or_default()),
        }
    }

    /// What the payload is told.
    pub fn start_request(&self, run: &RunRequest) -> StartRequest {
        StartRequest {
            machine: run.machine.clone(),
            kernel: run.kernel.as_deref().map(quoted),
            initrd: run.initrd.as_deref().map(quoted),
            disks: self.disks.iter().map(Disk::describe).collect(),
            nics: self.nics.iter().map(Nic::describe).collect(),
            shares: self.shares.iter().map(Share::describe).collect(),
            saved: self.saved.is_some(),
            gdb: self.gdb.is_some(),
            kvm: self.kvm_device(),
        }
    }

    /// The disks.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// What the file of the machine begins with, if it is saved.
    pub fn saved_run(&self, run: &RunRequest) -> io::Result<SavedRun> {
        saved_run(run, &self.disks)
    }

    /// What is handed to the payload, in the order of
    /// [`croft_api::vmm::Request::Start`] behind the console, and the rest.
    pub fn split(self) -> (Vec<OwnedFd>, Kept) {
        let (listener, socket) = match self.gdb.map(GdbListener::split) {
            Some((listener, socket)) => (Some(listener), socket),
            None => (None, None),
        };
        let (backends, wires): (Vec<_>, Wires) = self.nics.into_iter().map(Nic::split).unzip();
        let handed = [self.kernel.map(Into::into), self.initrd.map(Into::into)]
            .into_iter()
            .chain(self.disks.into_iter().flat_map(Disk::into_files).map(Some))
            .chain(backends.into_iter().flatten().map(Some))
            .chain(self.shares.into_iter().map(|share| Some(share.directory)))
            .chain([self.saved.map(Into::into), listener])
            .chain([self.kvm.and_then(Result::ok).map(Into::into)]);
        let (ports, far): (_, Vec<_>) = self.ports.into_iter().unzip();
        let kept = Kept {
            log: self.log,
            control: self.control,
            vsock: self.vsock,
            ports,
            nics: wires,
            _socket: socket,
        };
        (handed.flatten().chain(far).collect(), kept)
    }
}

/// A path for messages: what could upset a terminal is escaped.
pub fn quoted(path: &OsStr) -> String {
    format!("'{}'", path.to_string_lossy().escape_debug())
}

fn open_input(what: &str, flag: &str, path: &OsStr) -> Result<File, String> {
    let name = quoted(path);
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags(OFlags::NONBLOCK | OFlags::NOCTTY))
        .open(path)
        .map_err(|error| format!("{what} {name}: {}", explain(&error, flag, "readable")))?;
    let about = file
        .metadata()
        .map_err(|error| format!("{what} {name}: {error}; check {flag}"))?;
    let problem = if about.is_dir() {
        "is a directory; name the file within it"
    } else if !about.is_file() {
        "is not a regular file; copy it to one"
    } else if about.len() == 0 {
        "is empty; fetch or build it again"
    } else {
        return Ok(file);
    };
    Err(format!("{what} {name} {problem}"))
}

/// Opens `/dev/kvm`, which the payload cannot; it knows what a failure means.
fn open_kvm(engine: EngineChoice) -> Option<io::Result<File>> {
    const DEVICE: &str = "/dev/kvm";
    match engine {
        EngineChoice::Software | EngineChoice::Lockstep => None,
        EngineChoice::Auto | EngineChoice::Kvm => {
            Some(OpenOptions::new().read(true).write(true).open(DEVICE))
        }
    }
}

fn bind_control(path: &OsStr, run: &RunRequest, disks: &[Disk]) -> Result<Control, String> {
    let name = quoted(path);
    saved_run(run, disks)
        .and_then(|run| Control::bind(path.as_ref(), run))
        .map_err(|error| {
            format!("control socket {name}: {error}; choose another path with --control")
        })
}

fn open_port(name: &str, path: Option<&OsString>) -> Result<(Port, OwnedFd), String> {
    Port::new(path.map(|path| path.as_ref())).map_err(|error| match path {
        Some(path) => format!(
            "socket {} of port '{}': {error}; choose another path with --terminal or --port",
            quoted(path),
            name.escape_debug()
        ),
        None => format!("port '{}': {error}", name.escape_debug()),
    })
}

fn bind_vsock(path: &OsStr) -> Result<Vsock, String> {
    let name = quoted(path);
    Vsock::bind(path.as_ref())
        .map_err(|error| format!("vsock socket {name}: {error}; choose another path with --vsock"))
}

/// What a machine that is saved was run with.
fn saved_run(run: &RunRequest, disks: &[Disk]) -> io::Result<SavedRun> {
    let absolute = |path: &OsString| Ok::<_, io::Error>(std::path::absolute(path)?.into());
    let disks = disks.iter().map(Disk::found);
    let shares = run.shares.iter().map(|share| {
        Ok::<_, io::Error>(RunShare {
            path: absolute(&share.path)?,
            ..share.clone()
        })
    });
    Ok(SavedRun {
        machine: run.machine.clone(),
        kernel: run.kernel.as_ref().map(absolute).transpose()?,
        initrd: run.initrd.as_ref().map(absolute).transpose()?,
        disks: disks.collect::<Result<_, _>>()?,
        nics: run.nics.clone(),
        shares: shares.collect::<Result<_, _>>()?,
    })
}

fn open_log(path: &OsStr) -> Result<File, String> {
    let name = quoted(path);
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(flags(OFlags::NONBLOCK | OFlags::NOCTTY))
        .open(path)
        .map_err(|error| format!("log {name}: {}", explain(&error, "--log", "writable")))?;
    let kind = file
        .metadata()
        .map_err(|error| format!("log {name}: {error}; check --log"))?
        .file_type();
    if kind.is_file() || kind.is_char_device() {
        Ok(file)
    } else {
        Err(format!(
            "log {name} is not a regular file; name one with --log"
        ))
    }
}

pub fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

pub fn explain(error: &io::Error, flag: &str, able: &str) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("no such file or directory; check {flag}"),
        io::ErrorKind::PermissionDenied => {
            format!("permission denied; make it {able} for this user")
        }
        io::ErrorKind::IsADirectory => format!("is a directory; name a file with {flag}"),
        _ => format!("{error}; check {flag}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn problem(path: &Path) -> String {
        open_input("kernel", "--kernel", path.as_os_str()).unwrap_err()
    }

    #[test]
    fn bad_inputs_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert!(problem(&path("none")).contains("no such file"));
        assert!(problem(directory.path()).contains("is a directory"));
        fs::write(path("empty"), b"").unwrap();
        assert!(problem(&path("empty")).contains("is empty"));
        assert!(problem(Path::new("/dev/zero")).contains("not a regular file"));
        assert!(problem(Path::new("a\x1b[2Jb")).contains("a\\u{1b}[2Jb"));
    }

    #[test]
    fn a_log_is_appended_to() {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        for text in ["one ", "two"] {
            let mut log = open_log(path.as_os_str()).unwrap();
            log.write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one two");
        assert!(open_log(directory.path().as_os_str()).is_err());
    }
}
