//! Ports of the host for tests.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};

/// A port of the loopback interface that the kernel gives nobody else as long
/// as this lives. Who binds it by its number and lets others reuse addresses,
/// as all servers here do, can have it, since nobody listens there yet.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _kept: OwnedFd,
}

impl Port {
    /// One that nobody has.
    ///
    /// # Panics
    /// When there is none.
    pub fn free() -> Self {
        let kept = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        sockopt::set_socket_reuseaddr(&kept, true).expect("a socket that shares");
        bind(&kept, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a port");
        let at = getsockname(&kept).expect("an address");
        let at = SocketAddr::try_from(at).expect("an address of IP");
        Port {
            number: at.port(),
            _kept: kept,
        }
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}
