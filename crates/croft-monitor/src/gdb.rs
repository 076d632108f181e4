//! The socket on which a debugger can connect.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;

use croft_api::monitor::GdbAddress;

use crate::files::quoted;
use croft_host::socket::{self, SocketFile};

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
                let (listener, file) = socket::bind(path.as_ref()).map_err(|error| {
                    format!("gdb socket {name}: {error}; choose another path with --gdb")
                })?;
                Ok(GdbListener {
                    socket: listener.into(),
                    file,
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;
    use std::thread;
    use std::time::{Duration, Instant};

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
        // Soon: a child that another test has begun listens there, too, until it
        // becomes its program.
        let end = Instant::now() + Duration::from_secs(600);
        while let Err(error) = GdbListener::bind(&address).map(drop) {
            assert!(Instant::now() < end, "{error}");
            thread::sleep(Duration::from_millis(10));
        }
        fs::write(&path, "precious").unwrap();
        assert!(GdbListener::bind(&address).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
