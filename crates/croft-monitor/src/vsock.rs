//! The host's side of a machine's socket device (vsock).
//!
//! Programs of the host connect to a socket and name a port of the guest:
//!
//! ```text
//!          connect           CONNECT <port>\n             OK <port>\n
//! (nobody) ───────► reading ─────────────────► the vmm's ───────────► data
//!                     │ nonsense, too many          │ the guest refuses
//!                     ▼                             ▼
//!                   closed                        closed
//! ```
//!
//! What the guest connects to, port P of the host, is the socket whose path
//! has `_P` behind it. Here are sockets handed over; their data does not pass
//! through the monitor.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use croft_host::socket::{self, SocketFile};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Most programs that have connected and not named a port yet; the one that
/// has waited longest gives way to a new one.
const CLIENTS_MAX: usize = 16;
/// Longest first line: `CONNECT 4294967295\n` and some spaces.
const LINE_MAX: usize = 32;

/// The socket and who is connected to it.
#[derive(Debug)]
pub struct Vsock {
    path: PathBuf,
    listener: UnixListener,
    _file: Option<SocketFile>,
    /// In the order of their arrival.
    clients: Vec<Client>,
    /// Numbers the clients.
    next: u64,
}

/// A program that has not named its port yet.
#[derive(Debug)]
struct Client {
    number: u64,
    stream: OwnedFd,
    line: Vec<u8>,
}

/// What a descriptor of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Somebody wants to connect.
    Listener,
    /// A client by its number.
    Client(u64),
}

impl Vsock {
    /// Makes the socket.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let (listener, file) = socket::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Vsock {
            path,
            listener,
            _file: file,
            clients: Vec::new(),
            next: 0,
        })
    }

    /// What is worth waiting for.
    pub fn sources(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let clients = self
            .clients
            .iter()
            .map(|client| (Source::Client(client.number), client.stream.as_fd()));
        let listener = (Source::Listener, self.listener.as_fd());
        std::iter::once(listener).chain(clients).collect()
    }

    /// Something is there. Returns the guest's port and the socket to be
    /// connected to it, when somebody asked for that.
    pub fn hear(&mut self, source: Source) -> Option<(u32, OwnedFd)> {
        match source {
            Source::Listener => {
                self.accept();
                None
            }
            Source::Client(number) => self.hear_client(number),
        }
    }

    fn accept(&mut self) {
        // One that is gone again is no loss.
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if self.clients.len() >= CLIENTS_MAX {
            self.clients.remove(0);
        }
        self.next += 1;
        self.clients.push(Client {
            number: self.next,
            stream: stream.into(),
            line: Vec::new(),
        });
    }

    fn hear_client(&mut self, number: u64) -> Option<(u32, OwnedFd)> {
        let at = self.clients.iter().position(|c| c.number == number)?;
        match self.clients.get_mut(at)?.read() {
            Line::Partial => None,
            Line::Nonsense => {
                self.clients.remove(at);
                None
            }
            Line::Connect(port) => Some((port, self.clients.remove(at).stream)),
        }
    }

    /// A socket connected to whoever listens for port `port` of the host.
    pub fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        socket::connect_at_once(path.as_ref())
    }
}

/// What a client has said.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Partial,
    Nonsense,
    Connect(u32),
}

impl Client {
    /// Reads to the end of the line and not beyond: what follows is the
    /// guest's.
    fn read(&mut self) -> Line {
        let mut peeked = [0; LINE_MAX];
        let room = LINE_MAX.saturating_sub(self.line.len());
        let space = peeked.get_mut(..room).unwrap_or_default();
        let flags = RecvFlags::DONTWAIT;
        let count = match recv(&self.stream, space, flags | RecvFlags::PEEK) {
            Ok((count @ 1.., _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Line::Partial,
            Ok(_) | Err(_) => return Line::Nonsense,
        };
        let seen = peeked.get(..count).unwrap_or_default();
        let end = seen.iter().position(|byte| *byte == b'\n');
        let own = end.map_or(count, |end| end + 1);
        let mut taken = [0; LINE_MAX];
        let space = taken.get_mut(..own).unwrap_or_default();
        if recv(&self.stream, space, flags) != Ok((own, own)) {
            return Line::Nonsense;
        }
        self.line.extend(taken.iter().take(own));
        match end {
            Some(_) => parse(&self.line).map_or(Line::Nonsense, Line::Connect),
            None if self.line.len() >= LINE_MAX => Line::Nonsense,
            None => Line::Partial,
        }
    }
}

/// The port of `CONNECT <port>`.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("CONNECT"), Some(port), None) => port.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn hear_all(vsock: &mut Vsock) -> Vec<(u32, OwnedFd)> {
        let sources: Vec<Source> = vsock.sources().iter().map(|(s, _)| *s).collect();
        let heard = sources.into_iter().filter_map(|source| vsock.hear(source));
        heard.collect()
    }

    #[test]
    fn a_client_names_its_port() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let mut vsock = Vsock::bind(&path).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        assert!(hear_all(&mut vsock).is_empty());
        client.write_all(b"CONNECT").unwrap();
        assert!(hear_all(&mut vsock).is_empty());
        client.write_all(b" 1024\nfor the guest\n").unwrap();
        let (port, stream) = hear_all(&mut vsock).pop().unwrap();
        assert_eq!(port, 1024);
        assert!(vsock.clients.is_empty());
        drop(client);
        let mut rest = String::new();
        UnixStream::from(stream).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "for the guest\n");
        drop(vsock);
        assert!(!path.exists());
    }

    #[test]
    fn nonsense_and_crowds_are_turned_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let mut vsock = Vsock::bind(&path).unwrap();
        for text in [
            "\n",
            "CONNECT\n",
            "CONNECT -1\n",
            "CONNECT 4294967296\n",
            "CONNECT 1 2\n",
            "HELLO 1\n",
            "CONNECT \u{fffd}\n",
            "CONNECT 00000000000000000000000000000001\n",
        ] {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(text.as_bytes()).unwrap();
            hear_all(&mut vsock);
            assert!(hear_all(&mut vsock).is_empty(), "{text}");
            assert!(vsock.clients.is_empty(), "{text}");
        }
        let waiting: Vec<UnixStream> = (0..CLIENTS_MAX + 4)
            .map(|_| {
                let client = UnixStream::connect(&path).unwrap();
                hear_all(&mut vsock);
                client
            })
            .collect();
        assert_eq!(vsock.clients.len(), CLIENTS_MAX);
        assert_eq!((&waiting[0]).read(&mut [0]).unwrap(), 0);
        let mut last = waiting.last().unwrap();
        last.write_all(b"CONNECT 7\n").unwrap();
        assert_eq!(hear_all(&mut vsock).pop().unwrap().0, 7);
    }

    #[test]
    fn a_guest_reaches_who_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let vsock = Vsock::bind(&path).unwrap();
        assert!(vsock.connect(80).is_err());
        let listener = UnixListener::bind(directory.path().join("vsock_80")).unwrap();
        let stream = vsock.connect(80).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        UnixStream::from(stream).write_all(b"x").unwrap();
        served.read_exact(&mut [0]).unwrap();
    }
}
