//! The guest's sockets to its host.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use croft_api::agent::{HOST_CID, PORT, READY_PORT};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Between two attempts, at first and at most: the device's module may be
/// loaded later.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Hears the host, and nobody else.
#[derive(Debug)]
pub struct Listener(VsockListener);

impl Listener {
    /// Listens; waits until there are such sockets.
    pub fn bind() -> Self {
        let mut pause = PAUSES.0;
        loop {
            match VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT) {
                Ok(listener) => return Listener(listener),
                Err(_) => thread::sleep(pause),
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Waits for a connection of the host's. A process of the guest that
    /// connects by loopback, or a guest of the guest, is turned away: whoever
    /// speaks here is root.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            let (stream, peer) = self.0.accept()?;
            if peer.cid() == HOST_CID {
                return Ok(OwnedFd::from(stream));
            }
        }
    }
}

/// Connects to where the host hears that the guest is up.
pub fn connect_ready() -> io::Result<OwnedFd> {
    VsockStream::connect_with_cid_port(HOST_CID, READY_PORT).map(OwnedFd::from)
}
