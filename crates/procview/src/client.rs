//! How a container gets the files.

use std::fs::{self, File as Disk};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, flock, statfs};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::{FILES, File};

/// Where lxcfs(1) is mounted.
const LXCFS: &str = "/var/lib/lxcfs";
/// `FUSE_SUPER_MAGIC` (`linux/magic.h`).
const FUSE_MAGIC: u64 = 0x6573_5546;
/// Who waits longer for a server has none.
const PATIENCE: Duration = Duration::from_secs(30);
/// The program, beside whoever starts it.
const PROGRAM: &str = "croft-procview";

/// A failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of a step, on a path.
    #[error("cannot {action} {}: {source}", path.display())]
    Step {
        /// What was done.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The server has started and gives no files.
    #[error(
        "croft-procview gives no files: it could not mount its file system (is there /dev/fuse?)"
    )]
    NoFiles,
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Step {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A file, ready for a container.
#[derive(Debug)]
pub struct View {
    /// A detached mount of it, for `move_mount(2)`.
    pub mount: OwnedFd,
    /// The path in the container that it belongs on.
    pub destination: &'static str,
}

/// The files, from lxcfs where it runs, else from our own server, which is
/// started if it does not run. `directory` is where its socket is, such as
/// `/run/croft`.
///
/// # Errors
/// Needs `CAP_SYS_ADMIN` on the host: a user's containers see the host's
/// files.
pub fn mounts(directory: &Path) -> Result<Vec<View>, Error> {
    if let Some(views) = lxcfs(Path::new(LXCFS)) {
        return Ok(views);
    }
    let program = std::env::current_exe().map_err(failed("find", Path::new(PROGRAM)))?;
    mounts_of(directory, &program.with_file_name(PROGRAM))
}

/// The files of our own server, which is this program if it does not run.
///
/// # Errors
/// As [`mounts`].
pub fn mounts_of(directory: &Path, program: &Path) -> Result<Vec<View>, Error> {
    let server = connect(directory, program)?;
    let path = directory.join(SOCKET);
    server
        .set_read_timeout(Some(PATIENCE))
        .map_err(failed("wait for", &path))?;
    let descriptors = receive(&server).map_err(failed("read from", &path))?;
    if descriptors.len() != FILES.len() {
        return Err(Error::NoFiles);
    }
    let view = |(mount, file): (OwnedFd, &File)| View {
        mount,
        destination: file.destination,
    };
    Ok(descriptors.into_iter().zip(&FILES).map(view).collect())
}

/// Those of lxcfs; `None` where it does not run, or not all of them.
fn lxcfs(root: &Path) -> Option<Vec<View>> {
    let kind = statfs(root).ok()?.f_type;
    if u64::try_from(kind).ok()? != FUSE_MAGIC {
        return None;
    }
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = |file: &File| {
        // One that it does not have, such as an old version's, is not ours
        // either: its server may be dead.
        let mount = open_tree(CWD, root.join(file.lxcfs), clone).ok()?;
        Some(View {
            mount,
            destination: file.destination,
        })
    };
    let views: Option<Vec<View>> = FILES.iter().map(view).collect();
    views.filter(|_| fs::read(root.join("proc/uptime")).is_ok())
}

/// Name of the server's socket in its directory.
pub(crate) const SOCKET: &str = "procview.sock";
/// Held by whoever starts the server.
const LOCK: &str = "procview.lock";

/// Connects to the server, started if need be.
fn connect(directory: &Path, program: &Path) -> Result<UnixStream, Error> {
    let path = directory.join(SOCKET);
    if let Ok(server) = UnixStream::connect(&path) {
        return Ok(server);
    }
    fs::create_dir_all(directory).map_err(failed("make", directory))?;
    let lock = directory.join(LOCK);
    let held = Disk::create(&lock).map_err(failed("make", &lock))?;
    flock(&held, FlockOperation::LockExclusive)
        .map_err(|error| failed("lock", &lock)(error.into()))?;
    // Somebody else has, while we waited.
    if let Ok(server) = UnixStream::connect(&path) {
        return Ok(server);
    }
    let _ = fs::remove_file(&path);
    // It is there before the server is: whoever connects, waits.
    let listener = UnixListener::bind(&path).map_err(failed("bind", &path))?;
    let status = Command::new(program)
        .arg("start")
        .arg(directory)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => {}
        result => {
            let _ = fs::remove_file(&path);
            let why = match result {
                Ok(status) => io::Error::other(status.to_string()),
                Err(error) => error,
            };
            return Err(failed("run", program)(why));
        }
    }
    UnixStream::connect(&path).map_err(failed("connect to", &path))
}

/// All descriptors that come in one message.
fn receive(server: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES.len()))];
    let mut buffer = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    recvmsg(
        server.as_fd(),
        &mut data,
        &mut buffer,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut all = Vec::new();
    for message in buffer.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            all.extend(descriptors);
        }
    }
    Ok(all)
}
