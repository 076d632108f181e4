//! The ports of a machine's virtio console: a terminal (`hvc0` in the guest)
//! and byte streams with names.
//!
//! Each has a socket that one program at a time connects to; another one
//! waits until it is gone. What the guest sends while nobody is connected is
//! dropped: a guest's terminal must not stand still for want of a viewer.
//!
//! ```text
//! guest ◄──► the vmm's socket ◄──► queues ◄──► the program that is connected
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use croft_api::pair;
use croft_host::socket::{self, SocketFile};
use rustix::event::PollFlags;

use crate::console::Queue;

/// A port and who is connected to it.
#[derive(Debug)]
pub struct Port {
    guest: OwnedFd,
    listener: Option<UnixListener>,
    _file: Option<SocketFile>,
    client: Option<Client>,
    /// The guest's side is at its end: the vmm is gone.
    ended: bool,
}

/// A program that is connected.
#[derive(Debug)]
struct Client {
    stream: OwnedFd,
    /// Guest to program.
    output: Queue,
    /// Program to guest.
    input: Queue,
    /// It is gone, and not only silent.
    hung_up: bool,
}

/// What a descriptor of a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest's side.
    Guest,
    /// Somebody wants to connect.
    Listener,
    /// Who is connected.
    Client,
}

impl Port {
    /// A port, with its socket at `path` if there is one, and the vmm's end
    /// of it.
    pub fn new(path: Option<&Path>) -> io::Result<(Self, OwnedFd)> {
        let (guest, far) = pair()?;
        let bound = path.map(socket::bind).transpose()?;
        let (listener, file) = bound.map_or((None, None), |(l, file)| (Some(l), file));
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        let port = Port {
            guest,
            listener,
            _file: file,
            client: None,
            ended: false,
        };
        Ok((port, far))
    }

    /// What is worth waiting for.
    pub fn interests(&self) -> Vec<(End, BorrowedFd<'_>, PollFlags)> {
        let when = |condition: bool, flag: PollFlags| {
            if condition { flag } else { PollFlags::empty() }
        };
        let (read, write) = (PollFlags::IN, PollFlags::OUT);
        let guest = self.guest.as_fd();
        let Some(client) = &self.client else {
            let listener = self.listener.iter();
            return listener
                .map(|listener| (End::Listener, listener.as_fd(), read))
                .chain([(End::Guest, guest, when(!self.ended, read))])
                .collect();
        };
        vec![
            (
                End::Guest,
                guest,
                when(!self.ended && client.output.wants_input(), read)
                    | when(client.input.wants_output(), write),
            ),
            (
                End::Client,
                client.stream.as_fd(),
                when(!client.hung_up, PollFlags::HUP)
                    | when(client.input.wants_input(), read)
                    | when(client.output.wants_output(), write),
            ),
        ]
    }

    /// Something is there.
    pub fn hear(&mut self, end: End, ready: PollFlags) {
        let readable = ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        let writable = ready.intersects(PollFlags::OUT | PollFlags::ERR);
        match (end, &mut self.client) {
            (End::Listener, None) => self.accept(),
            (End::Guest, None) if readable => {
                // For nobody.
                let mut nobody = Queue::default();
                nobody.read_from(&self.guest, |_| {});
                self.ended = nobody.has_ended();
            }
            (End::Guest, Some(client)) => {
                if readable && client.output.wants_input() {
                    client.output.read_from(&self.guest, |_| {});
                    self.ended = client.output.has_ended();
                }
                if writable && client.input.wants_output() {
                    client.input.write_to(&self.guest);
                }
            }
            (End::Client, Some(client)) => {
                client.hung_up |= ready.contains(PollFlags::HUP) && !client.input.wants_input();
                if readable && client.input.wants_input() {
                    client.input.read_from(&client.stream, |_| {});
                }
                if writable && client.output.wants_output() {
                    client.output.write_to(&client.stream);
                }
            }
            _ => {}
        }
        // What a program typed last reaches the guest.
        let over =
            |client: &Client| client.hung_up && client.input.is_done() || client.output.is_done();
        if self.client.as_ref().is_some_and(over) {
            self.client = None;
        }
    }

    fn accept(&mut self) {
        // One that is gone again is no loss.
        let accepted = self.listener.as_ref().map(UnixListener::accept);
        if let Some(Ok((stream, _))) = accepted {
            self.client = Some(Client {
                stream: stream.into(),
                output: Queue::default(),
                input: Queue::default(),
                hung_up: false,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Everything that can be done without waiting.
    fn work(port: &mut Port) {
        for _ in 0..8 {
            for end in [End::Listener, End::Guest, End::Client] {
                let wanted = port.interests().into_iter().find(|(e, ..)| *e == end);
                if let Some((_, _, flags)) = wanted.filter(|(.., flags)| !flags.is_empty()) {
                    port.hear(end, flags);
                }
            }
        }
    }

    #[test]
    fn one_program_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("port");
        let (mut port, guest) = Port::new(Some(&path)).unwrap();
        let mut guest = UnixStream::from(guest);
        guest.write_all(b"for nobody").unwrap();
        work(&mut port);
        let mut one = UnixStream::connect(&path).unwrap();
        work(&mut port);
        let mut two = UnixStream::connect(&path).unwrap();
        one.write_all(b"typed").unwrap();
        guest.write_all(b"shown").unwrap();
        work(&mut port);
        let mut bytes = [0; 5];
        guest.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"typed");
        one.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"shown");
        one.write_all(b"last.").unwrap();
        drop(one);
        work(&mut port);
        guest.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"last.");
        guest.write_all(b"again").unwrap();
        work(&mut port);
        two.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"again");
        drop(guest);
        work(&mut port);
        assert_eq!(two.read(&mut bytes).unwrap(), 0);
        drop(port);
        assert!(!path.exists());
    }
}
