//! Sockets with a path: whoever can connect controls an instance, so each is
//! its owner's alone.
//!
//! The address of a Unix socket has room for 107 bytes of path. A longer path
//! is reached through its directory, which is opened first:
//! `/proc/self/fd/N/NAME`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, listen, socket_with};

/// Longest path in bytes that an address has room for: `sun_path` of unix(7)
/// is 108 bytes, one of them for the zero at its end.
const PATH_MAX: usize = 107;
/// Most connections that wait to be accepted: the host's `net.core.somaxconn`
/// (listen(2)).
const WAITING: i32 = i32::MAX;

/// Connects to the socket at `path`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(Short::new(path)?.path())
}

/// Connects to the socket at `path`, or fails where that would wait: where
/// whoever listens does not keep up.
pub fn connect_at_once(path: &Path) -> io::Result<OwnedFd> {
    let short = Short::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(short.path())?)?;
    Ok(socket)
}

/// Makes a socket at `path`, where one that nobody listens on gives way; and
/// what removes its file.
pub fn bind(path: &Path) -> io::Result<(UnixListener, Option<SocketFile>)> {
    let short = Short::new(path)?;
    remove_stale(short.path());
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Its file will have the rights that it has itself, less the umask: nobody
    // else ever has any, and the umask, which is all threads', stays as it is.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(short.path())?)?;
    listen(&socket, WAITING)?;
    Ok((socket.into(), SocketFile::new(path)))
}

/// A path that fits into an address.
enum Short<'a> {
    Is(&'a Path),
    /// By way of its directory, which stays open.
    Through(
        PathBuf,
        #[expect(dead_code, reason = "keeps the path valid")] File,
    ),
}

impl<'a> Short<'a> {
    fn new(path: &'a Path) -> io::Result<Self> {
        if path.as_os_str().as_bytes().len() <= PATH_MAX {
            return Ok(Short::Is(path));
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidFilename.into());
        };
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::PATH | OFlags::DIRECTORY).bits().cast_signed())
            .open(parent)?;
        let through = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        Ok(Short::Through(through, directory))
    }

    fn path(&self) -> &Path {
        match self {
            Short::Is(path) => path,
            Short::Through(path, _) => path,
        }
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket());
    let refused = || {
        UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if is_socket && refused() {
        // If it cannot be removed, binding says so.
        let _ = fs::remove_file(path);
    }
}

/// A socket's file, removed when dropped if it is still the same.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> Option<Self> {
        let path = fs::canonicalize(path).ok()?;
        let identity = identity(&path)?;
        Some(SocketFile { path, identity })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == Some(self.identity) {
            // Nothing can be done about a failure on the way out.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let about = fs::symlink_metadata(path).ok()?;
    Some((about.dev(), about.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_path_of_any_length_will_do() {
        let place = tempfile::tempdir().unwrap();
        let deep = place.path().join("d".repeat(200));
        fs::create_dir(&deep).unwrap();
        let name = format!("{}.vsock_4294967295", "n".repeat(63));
        for path in [place.path().join("a.sock"), deep.join(name)] {
            let (listener, file) = bind(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            let mut client = connect(&path).unwrap();
            client.write_all(b"x").unwrap();
            let (mut served, _) = listener.accept().unwrap();
            let mut byte = [0];
            served.read_exact(&mut byte).unwrap();
            // One that is in use stays.
            assert!(bind(&path).is_err());
            drop(file);
            assert!(!path.exists());
            assert!(connect(&path).is_err());
        }
    }

    #[test]
    fn a_dead_one_gives_way() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.sock");
        let (listener, file) = bind(&path).unwrap();
        std::mem::forget(file);
        drop(listener);
        // Soon: a child that another test has begun listens there, too, until it
        // becomes its program.
        let end = Instant::now() + Duration::from_secs(600);
        let _bound = loop {
            match bind(&path) {
                Ok(bound) => break bound,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        connect(&path).unwrap();
    }
}
