//! What a container's maker and its init tell each other.
//!
//! ```text
//! init → maker   prepared    in its namespaces; waits for "go on"
//!                created     ready for its program, with its terminal
//!                failed      a step, and what is wrong
//!                other       the process that is really it, of a go-between
//! maker → init   go on       with descriptors, if any were asked for
//! ```
//!
//! The end of the stream is the program's beginning: no descriptor survives
//! that.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::{Error, Step, springboard};

/// Longest message.
const LENGTH: usize = 4096;
/// Most descriptors with a message (unix(7), `SCM_MAX_FD`).
pub const DESCRIPTORS: usize = 253;

/// A message.
#[derive(Debug)]
pub enum Message {
    /// Init is in its namespaces.
    Prepared,
    /// Init is ready.
    Created,
    /// Nothing will come of it.
    Failed(Error),
    /// The springboard could not run the program.
    NotRun(Errno),
    /// A go-between made init, which has this number.
    Other(i32),
    /// Go on.
    Go,
}

impl Message {
    fn write(&self) -> Vec<u8> {
        match self {
            Message::Prepared => vec![b'P'],
            Message::Created => vec![b'C'],
            Message::Go => vec![b'G'],
            Message::NotRun(error) => {
                let mut bytes = vec![springboard::FAILED];
                bytes.extend(error.raw_os_error().to_le_bytes());
                bytes
            }
            Message::Other(id) => {
                let mut bytes = vec![b'O'];
                bytes.extend(id.to_le_bytes());
                bytes
            }
            Message::Failed(error) => {
                let mut bytes = vec![b'F', error.step.to_byte()];
                bytes.extend(error.message.as_bytes());
                bytes.truncate(LENGTH);
                bytes
            }
        }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match kind {
            b'P' => Some(Message::Prepared),
            b'C' => Some(Message::Created),
            b'G' => Some(Message::Go),
            b'O' => Some(Message::Other(i32::from_le_bytes(rest.try_into().ok()?))),
            &springboard::FAILED => springboard::error(rest).map(Message::NotRun),
            b'F' => {
                let (step, text) = rest.split_first()?;
                let text = String::from_utf8_lossy(text);
                Some(Message::Failed(Error::new(Step::from_byte(*step), text)))
            }
            _ => None,
        }
    }
}

/// Both ends.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Tells the other end. At most [`DESCRIPTORS`] go with a message.
pub fn send(
    channel: impl AsFd,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let bytes = message.write();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOMANYREFS);
    }
    loop {
        match sendmsg(
            channel.as_fd(),
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Waits for the other end; `None` if that is gone.
pub fn receive(channel: impl AsFd) -> Result<Option<(Message, Vec<OwnedFd>)>, Errno> {
    let mut bytes = vec![0_u8; LENGTH];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        match recvmsg(
            channel.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            // It went without reading all: told once, and before what it said.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            result => break result?.bytes,
        }
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if length == 0 {
        return Ok(None);
    }
    let message = bytes.get(..length).and_then(Message::read);
    message
        .map(|message| Some((message, descriptors)))
        .ok_or(Errno::PROTO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive() {
        let (one, other) = pair().unwrap();
        let error = Error::new(Step::Mounts, "no");
        send(
            &one,
            &Message::Failed(error.clone()),
            &[one.as_fd(), one.as_fd()],
        )
        .unwrap();
        send(&one, &Message::Other(7), &[]).unwrap();
        drop(one);
        let (message, descriptors) = receive(&other).unwrap().unwrap();
        assert!(matches!(message, Message::Failed(got) if got == error));
        assert_eq!(descriptors.len(), 2);
        drop(descriptors);
        let (message, _) = receive(&other).unwrap().unwrap();
        assert!(matches!(message, Message::Other(7)));
        assert!(receive(&other).unwrap().is_none());
    }

    #[test]
    fn who_goes_without_listening_is_heard() {
        let (one, other) = pair().unwrap();
        send(&other, &Message::Go, &[]).unwrap();
        send(&one, &Message::Other(7), &[]).unwrap();
        drop(one);
        let (message, _) = receive(&other).unwrap().unwrap();
        assert!(matches!(message, Message::Other(7)));
        assert!(receive(&other).unwrap().is_none());
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&b""[..], b"x", b"O12", b"F"] {
            assert!(Message::read(bytes).is_none());
        }
    }
}
