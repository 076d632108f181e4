//! Messages and descriptors over a connected socket.
//!
//! Nothing here blocks except [`Receiver::wait`] and [`Sender::deliver`]:
//! single-threaded users call [`Sender::flush`] and [`Receiver::fill`] when
//! `poll` says so.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::hello::{Hello, Protocol};
use crate::wire::{Decoder, MAX_DESCRIPTORS, WireError, encode};

/// Bytes read at once.
const READ: usize = 16 * 1024;

/// Two connected byte-stream sockets, closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Both halves of a conversation over `socket` with `peer` (named in errors).
pub fn channel(socket: OwnedFd, protocol: Protocol, peer: &'static str) -> (Sender, Receiver) {
    let socket = Arc::new(socket);
    (
        Sender {
            socket: Arc::clone(&socket),
            peer,
            hello: Some(Hello::new(protocol)),
            queue: VecDeque::new(),
        },
        Receiver {
            socket,
            peer,
            protocol,
            greeted: false,
            decoder: Decoder::default(),
            descriptors: VecDeque::new(),
            ended: false,
        },
    )
}

/// A message on its way out.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

/// The half that speaks. Says hello by itself, first.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<OwnedFd>,
    peer: &'static str,
    hello: Option<Hello>,
    queue: VecDeque<Outgoing>,
}

impl Sender {
    /// Queues a message; [`flush`](Self::flush) sends it.
    pub fn push<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), WireError> {
        if let Some(hello) = self.hello.take() {
            self.queue.push_back(Outgoing {
                bytes: encode(&hello, 0)?,
                sent: 0,
                descriptors: Vec::new(),
            });
        }
        self.queue.push_back(Outgoing {
            bytes: encode(message, descriptors.len())?,
            sent: 0,
            descriptors,
        });
        Ok(())
    }

    /// Messages not sent yet. Who produces many looks here first.
    pub fn backlog(&self) -> usize {
        self.queue.len()
    }

    /// Sends what the socket takes without waiting; true if that was all.
    pub fn flush(&mut self) -> Result<bool, WireError> {
        while let Some(front) = self.queue.front_mut() {
            match send_some(self.socket.as_fd(), front) {
                Ok(sent) => {
                    front.sent += sent;
                    front.descriptors.clear();
                    if front.sent >= front.bytes.len() {
                        self.queue.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(true)
    }

    /// Queues a message and waits until it is sent.
    pub fn deliver<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), WireError> {
        self.push(message, descriptors)?;
        while !self.flush()? {
            wait_for(self.socket.as_fd(), PollFlags::OUT).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn failed(&self, error: Errno) -> WireError {
        WireError::Io {
            peer: self.peer,
            source: error.into(),
        }
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn send_some(socket: BorrowedFd<'_>, message: &Outgoing) -> Result<usize, Errno> {
    let borrowed: Vec<BorrowedFd<'_>> = message.descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::INVAL);
    }
    let rest = message.bytes.get(message.sent..).unwrap_or_default();
    sendmsg(
        socket,
        &[IoSlice::new(rest)],
        &mut control,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )
}

/// The half that listens. Expects the other end's hello first.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<OwnedFd>,
    peer: &'static str,
    protocol: Protocol,
    greeted: bool,
    decoder: Decoder,
    descriptors: VecDeque<OwnedFd>,
    ended: bool,
}

impl Receiver {
    /// Reads what has arrived, without waiting. Take the messages out with
    /// [`message`](Self::message) before calling again.
    pub fn fill(&mut self) -> Result<(), WireError> {
        let mut bytes = [0; READ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match recvmsg(
            self.socket.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            flags,
        ) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            // The other end died with messages of ours unread.
            Err(Errno::CONNRESET) => {
                self.ended = true;
                return Ok(());
            }
            Err(error) => {
                return Err(WireError::Io {
                    peer: self.peer,
                    source: error.into(),
                });
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received.bytes == 0 {
            self.ended = true;
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.descriptors.len() > MAX_DESCRIPTORS
        {
            self.descriptors.clear();
            return Err(WireError::Damaged("it carries too many descriptors"));
        }
        self.decoder
            .push(bytes.get(..received.bytes).unwrap_or_default());
        Ok(())
    }

    /// The next message that is wholly here, with its descriptors.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        loop {
            let Some(frame) = self.decoder.next_frame()? else {
                return Ok(None);
            };
            if !self.greeted {
                frame.message::<Hello>()?.check(self.protocol, self.peer)?;
                self.greeted = true;
                continue;
            }
            if frame.descriptors > self.descriptors.len() {
                return Err(WireError::Damaged("descriptors are missing"));
            }
            let descriptors = self.descriptors.drain(..frame.descriptors).collect();
            return Ok(Some((frame.message()?, descriptors)));
        }
    }

    /// True once the other end has closed its side, or is gone.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Waits for a message; `None` at the end of the conversation.
    pub fn wait<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        loop {
            if let Some(message) = self.message()? {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            wait_for(self.socket.as_fd(), PollFlags::IN).map_err(|error| WireError::Io {
                peer: self.peer,
                source: error.into(),
            })?;
            self.fill()?;
        }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn wait_for(socket: BorrowedFd<'_>, what: PollFlags) -> Result<(), Errno> {
    match poll(&mut [PollFd::from_borrowed_fd(socket, what)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    const ONE: Protocol = Protocol {
        name: "test",
        version: 1,
    };

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (a, b) = pair().unwrap();
        let (mut sender, _) = channel(a, ONE, "b");
        let (_, mut receiver) = channel(b, ONE, "a");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        file.rewind().unwrap();
        sender.push(&"first", vec![]).unwrap();
        sender.deliver(&"second", vec![file.into()]).unwrap();
        sender.deliver(&"third", vec![]).unwrap();
        drop(sender);
        let (text, fds): (String, _) = receiver.wait().unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("first", 0));
        let (text, mut fds): (String, _) = receiver.wait().unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("second", 1));
        let mut content = String::new();
        File::from(fds.remove(0))
            .read_to_string(&mut content)
            .unwrap();
        assert_eq!(content, "content");
        assert_eq!(receiver.wait::<String>().unwrap().unwrap().0, "third");
    }

    #[test]
    fn another_version_is_named() {
        let (a, b) = pair().unwrap();
        let two = Protocol { version: 2, ..ONE };
        let (mut sender, _) = channel(a, two, "b");
        let (_, mut receiver) = channel(b, ONE, "croft-vmm");
        sender.deliver(&"x", vec![]).unwrap();
        let error = receiver.wait::<String>().unwrap_err().to_string();
        assert!(error.contains("croft-vmm speaks test version 2"), "{error}");
        assert!(error.contains("speaks test version 1"), "{error}");
    }

    #[test]
    fn death_of_the_other_end_is_the_end() {
        let (a, b) = pair().unwrap();
        let (mut sender, mut receiver) = channel(a, ONE, "b");
        drop(b);
        assert!(receiver.wait::<String>().unwrap().is_none());
        assert!(sender.deliver(&"x", vec![]).is_err());
    }

    #[test]
    fn a_full_socket_does_not_block_flush() {
        let (a, _b) = pair().unwrap();
        let (mut sender, _) = channel(a, ONE, "b");
        let text = "x".repeat(100_000);
        while sender.backlog() == 0 {
            sender.push(&text, vec![]).unwrap();
            sender.flush().unwrap();
        }
        assert!(!sender.flush().unwrap());
    }
}
