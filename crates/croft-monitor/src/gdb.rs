//! The socket on which a debugger can connect.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use croft_api::monitor::GdbAddress;
use rustix::fs::Mode;
use rustix::process::umask;

use crate::files::quoted;

/// A bound socket and how to name it.
#[derive(Debug)]
pub struct GdbListener {
    socket: OwnedFd,
    file: Option<SocketFile>,
    address: String,
}

impl GdbListener {
    /// Binds it. Whoever can connect controls the guest: a port is bound on
    /// the loopback interface only, a socket file is its owner's alone.
    pub fn bind(address: &GdbAddress) -> Result<Self, String> {
        match address {
            GdbAddress::Port(port) => {
                let (listener, bound) = TcpListener::bind((Ipv4Addr::LOCALHOST, *port))
                    .and_then(|listener| listener.local_addr().map(|bound| (listener, bound)))
                    .map_err(|error| {
                        format!("gdb port {port}: {error}; choose another with --gdb")
                    })?;
                Ok(GdbListener {
                    socket: listener.into(),
                    file: None,
                    address: bound.to_string(),
                })
            }
            GdbAddress::Socket(path) => {
                let name = quoted(path);
                let path = Path::new(path);
                remove_stale(path);
                let listener = bind_private(path).map_err(|error| {
                    format!("gdb socket {name}: {error}; choose another path with --gdb")
                })?;
                Ok(GdbListener {
                    socket: listener.into(),
                    file: SocketFile::new(path),
                    address: name,
                })
            }
        }
    }

    /// For the operator.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The socket, and what removes its file.
    pub fn split(self) -> (OwnedFd, Option<SocketFile>) {
        (self.socket, self.file)
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let before = umask(Mode::RWXG | Mode::RWXO);
    let listener = UnixListener::bind(path);
    umask(before);
    listener
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
    use super::*;

    #[test]
    fn a_socket_file_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gdb");
        let address = GdbAddress::Socket(path.clone().into());
        let listener = GdbListener::bind(&address).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o077, 0);
        let taken = GdbListener::bind(&address).unwrap_err();
        assert!(taken.contains("--gdb"), "{taken}");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_another_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gdb");
        let address = GdbAddress::Socket(path.clone().into());
        drop(UnixListener::bind(&path).unwrap());
        drop(GdbListener::bind(&address).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(GdbListener::bind(&address).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
