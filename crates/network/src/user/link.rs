//! The stream of frames between passt and the machine.
//!
//! passt sends the guest all that its window has room for, and throws away
//! what the stream does not take at once, for TCP to send again seconds later.
//! So the stream must hold a window:
//!
//! ```text
//!  Unix sockets, with as large a buffer as is asked for ──► these
//!          │ the host gives less (net.core.wmem_max)
//!          ▼
//!  TCP on the loopback interface: its buffers grow by need ──► these
//!          │ there is no such interface
//!          ▼
//!  Unix sockets as they are: slow to the guest
//! ```

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt::{
    set_socket_send_buffer_size, set_socket_send_buffer_size_force, socket_send_buffer_size,
};

/// Bytes on their way to the guest: more than the window of a Linux guest
/// (`tcp_rmem`, 6 MiB).
const WINDOW: usize = 8 << 20;
/// How long a connection within this host may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Strangers who may connect before we do.
const STRANGERS: usize = 64;

/// Both ends: the machine's, and passt's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    // The first is for who administers the network, the second for all.
    if set_socket_send_buffer_size_force(&theirs, WINDOW).is_err() {
        let _ = set_socket_send_buffer_size(&theirs, WINDOW);
    }
    if socket_send_buffer_size(&theirs).is_ok_and(|size| size >= WINDOW) {
        return Ok((ours.into(), theirs.into()));
    }
    Ok(match loopback() {
        Ok((ours, theirs)) => (ours.into(), theirs.into()),
        Err(_) => (ours.into(), theirs.into()),
    })
}

fn loopback() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let ours = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    let theirs = accept(&listener, &ours)?;
    for end in [&ours, &theirs] {
        // A lone frame does not wait for more.
        end.set_nodelay(true)?;
    }
    Ok((ours, theirs))
}

/// The other end of `ours`. Anybody of this host can connect to the listener.
fn accept(listener: &TcpListener, ours: &TcpStream) -> io::Result<TcpStream> {
    let address = ours.local_addr()?;
    for _ in 0..STRANGERS {
        let (theirs, from) = listener.accept()?;
        if from == address {
            return Ok(theirs);
        }
    }
    Err(io::Error::other("others connect to the loopback interface"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_window_fits() {
        let (ours, theirs) = pair().unwrap();
        // Either family's: both are streams.
        let (mut ours, mut theirs) = (UnixStream::from(ours), UnixStream::from(theirs));
        theirs.set_nonblocking(true).unwrap();
        let piece = [7; 64 << 10];
        let mut sent = 0;
        while let Ok(count) = theirs.write(&piece) {
            sent += count;
        }
        assert!(sent >= 2 << 20, "{sent} bytes");
        drop(theirs);
        let mut got = Vec::new();
        ours.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), sent);
    }

    #[test]
    fn a_stranger_is_not_taken_for_the_other_end() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stranger = TcpStream::connect(address).unwrap();
        let mut ours = TcpStream::connect(address).unwrap();
        let mut theirs = accept(&listener, &ours).unwrap();
        assert_ne!(theirs.peer_addr().unwrap(), stranger.local_addr().unwrap());
        ours.write_all(b"frame").unwrap();
        let mut bytes = [0; 5];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"frame");
    }
}
