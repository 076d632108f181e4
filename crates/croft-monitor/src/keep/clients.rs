//! Who is connected to an instance's control socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use croft_api::channel::channel;
use croft_api::control::{Event, PROTOCOL, Request};
use croft_api::{Receiver, Sender, WireError};
use croft_host::socket::{self, SocketFile};
use rustix::event::PollFlags;

/// Name of the other end in messages.
const PEER: &str = "croft";
/// Most commands connected at once; more wait.
const CLIENTS_MAX: usize = 64;
/// Answers waiting for a client that is read no further.
const BACKLOG: usize = 16;
/// Events waiting for a watcher that is disconnected.
const WATCH_BACKLOG: usize = 256;

/// The socket and who is connected to it.
#[derive(Debug)]
pub struct Clients {
    listener: Option<(UnixListener, Option<SocketFile>)>,
    clients: Vec<Client>,
    /// Numbers the clients.
    next: u64,
    /// Who has gone and was not asked for yet.
    left: Vec<u64>,
}

/// A command that is connected.
#[derive(Debug)]
struct Client {
    number: u64,
    sender: Sender,
    receiver: Receiver,
    watches: bool,
    gone: bool,
}

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Somebody wants to connect.
    Listener,
    /// A client by its number.
    Client(u64),
}

/// What a client wants.
#[derive(Debug)]
pub struct Asked {
    /// Who.
    pub client: u64,
    /// What.
    pub request: Request,
    /// What came along.
    pub descriptors: Vec<OwnedFd>,
}

impl Clients {
    /// Makes the socket.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let (listener, file) = socket::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Clients {
            listener: Some((listener, file)),
            clients: Vec::new(),
            next: 0,
            left: Vec::new(),
        })
    }

    /// What is worth waiting for.
    pub fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>, PollFlags)> {
        let room = self.clients.len() < CLIENTS_MAX;
        let listener = self.listener.iter().filter(move |_| room);
        let listener =
            listener.map(|(listener, _)| (Source::Listener, listener.as_fd(), PollFlags::IN));
        listener.chain(self.clients.iter().map(|client| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, client.sender.backlog() < BACKLOG);
            flags.set(PollFlags::OUT, client.sender.backlog() > 0);
            (
                Source::Client(client.number),
                client.receiver.as_fd(),
                flags,
            )
        }))
    }

    /// Something is there.
    pub fn hear(&mut self, source: Source) -> Vec<Asked> {
        match source {
            Source::Listener => {
                self.accept();
                Vec::new()
            }
            Source::Client(number) => {
                let client = self.clients.iter_mut().find(|c| c.number == number);
                let Some(client) = client else {
                    return Vec::new();
                };
                client.hear().unwrap_or_else(|_| {
                    // It is gone, or speaks nonsense.
                    client.gone = true;
                    Vec::new()
                })
            }
        }
    }

    fn accept(&mut self) {
        // One that is gone again is no loss.
        let Some(Ok((stream, _))) = self.listener.as_ref().map(|(l, _)| l.accept()) else {
            return;
        };
        let (sender, receiver) = channel(stream.into(), PROTOCOL, PEER);
        self.next += 1;
        self.clients.push(Client {
            number: self.next,
            sender,
            receiver,
            watches: false,
            gone: false,
        });
    }

    /// Answers a client that may be gone by now.
    pub fn answer(&mut self, number: u64, event: &Event, descriptors: Vec<OwnedFd>) {
        if let Some(client) = self.clients.iter_mut().find(|c| c.number == number) {
            client.say(event, descriptors);
        }
    }

    /// Tells it what the watchers hear from now on.
    pub fn watch(&mut self, number: u64) {
        if let Some(client) = self.clients.iter_mut().find(|c| c.number == number) {
            client.watches = true;
        }
    }

    /// Tells all watchers.
    pub fn tell(&mut self, event: &Event) {
        for client in self.clients.iter_mut().filter(|client| client.watches) {
            if client.sender.backlog() < WATCH_BACKLOG {
                client.say(event, vec![]);
            } else {
                client.gone = true;
            }
        }
    }

    /// Sends what the sockets take, and forgets who is gone; true if nothing
    /// is left to be sent.
    pub fn flush(&mut self) -> bool {
        for client in &mut self.clients {
            if client.sender.flush().is_err() {
                client.gone = true;
            }
        }
        let gone = self.clients.iter().filter(|client| client.gone);
        self.left.extend(gone.map(|client| client.number));
        self.clients.retain(|client| !client.gone);
        self.clients
            .iter()
            .all(|client| client.sender.backlog() == 0)
    }

    /// Who has gone since this was last asked for.
    pub fn left(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.left)
    }

    /// Nobody can connect any more, and the socket's file is gone.
    pub fn close(&mut self) {
        self.listener = None;
    }

    /// Nobody is connected any more.
    pub fn disconnect(&mut self) {
        self.clients.clear();
    }
}

impl Client {
    fn hear(&mut self) -> Result<Vec<Asked>, WireError> {
        self.receiver.fill()?;
        let mut asked = Vec::new();
        while let Some((request, descriptors)) = self.receiver.message::<Request>()? {
            if descriptors.len() != request.descriptors() {
                return Err(WireError::Damaged("a command has other descriptors"));
            }
            asked.push(Asked {
                client: self.number,
                request,
                descriptors,
            });
        }
        // What it asked for before it went is done all the same.
        self.gone |= self.receiver.ended();
        Ok(asked)
    }

    fn say(&mut self, event: &Event, descriptors: Vec<OwnedFd>) {
        if self.sender.push(event, descriptors).is_err() {
            self.gone = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_host::{Client as Connection, ClientError};

    use super::*;

    fn hear_all(clients: &mut Clients) -> Vec<Asked> {
        let sources: Vec<Source> = clients.sources().map(|(source, ..)| source).collect();
        sources
            .into_iter()
            .flat_map(|source| clients.hear(source))
            .collect()
    }

    #[test]
    fn watchers_that_do_not_read_are_disconnected() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("sock");
        let mut clients = Clients::bind(&path).unwrap();
        let mut deaf = Connection::connect(&path).unwrap();
        deaf.watch().unwrap();
        clients.hear(Source::Listener);
        for asked in hear_all(&mut clients) {
            assert_eq!(asked.request, Request::Watch);
            clients.watch(asked.client);
        }
        let event = Event::Log {
            text: "x".repeat(10_000),
        };
        for _ in 0..2 * WATCH_BACKLOG {
            clients.tell(&event);
            clients.flush();
        }
        assert!(clients.clients.is_empty());
        clients.close();
        assert!(!path.exists());
        assert!(matches!(
            Connection::connect(&path),
            Err(ClientError::NoMonitor)
        ));
    }

    #[test]
    fn a_crowd_waits() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("sock");
        let mut clients = Clients::bind(&path).unwrap();
        let all: Vec<_> = (0..CLIENTS_MAX + 5)
            .map(|_| Connection::connect(&path).unwrap())
            .collect();
        for _ in 0..2 * CLIENTS_MAX {
            hear_all(&mut clients);
        }
        assert_eq!(clients.clients.len(), CLIENTS_MAX);
        drop(all);
        for _ in 0..2 * CLIENTS_MAX {
            hear_all(&mut clients);
            clients.flush();
        }
        assert!(clients.clients.is_empty());
    }
}
