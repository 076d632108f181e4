//! Frames over a connected stream socket.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use croft_api::Hello;
use croft_api::agent::{FRAME_HEADER, FRAME_MAX, FrameKind, PROTOCOL, check};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::AgentError;

/// Bytes read at once.
const READ: usize = 64 << 10;

/// A frame that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What is in it.
    pub kind: FrameKind,
    /// Its contents.
    pub bytes: Vec<u8>,
}

/// Cuts a byte stream into frames. Holds at most one frame and what was pushed
/// behind it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// How much of the buffer has been taken out.
    taken: usize,
}

impl Decoder {
    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one; or what is wrong with it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, &'static str> {
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<FRAME_HEADER>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, kind] = *header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > FRAME_MAX {
            return Err("a frame that is too long");
        }
        let kind = FrameKind::from_number(kind).ok_or("a frame of an unknown kind")?;
        let Some(bytes) = rest.get(..length) else {
            return Ok(None);
        };
        let bytes = bytes.to_vec();
        self.taken += FRAME_HEADER + length;
        Ok(Some(Frame { kind, bytes }))
    }

    /// True if the stream stopped within a frame.
    pub fn is_partial(&self) -> bool {
        self.taken < self.buffer.len()
    }
}

/// The half that listens.
#[derive(Debug)]
pub struct Receiver {
    socket: File,
    peer: &'static str,
    decoder: Decoder,
}

/// The half that speaks.
#[derive(Debug)]
pub struct Sender {
    socket: File,
    peer: &'static str,
}

/// Both halves of a conversation over `socket` with `peer`, named in errors.
/// Nothing has been said yet.
pub fn halves(socket: OwnedFd, peer: &'static str) -> Result<(Sender, Receiver), AgentError> {
    let failed = |source| AgentError::Io { peer, source };
    let copy = socket.try_clone().map_err(failed)?;
    let sender = Sender {
        socket: File::from(copy),
        peer,
    };
    let receiver = Receiver {
        socket: File::from(socket),
        peer,
        decoder: Decoder::default(),
    };
    Ok((sender, receiver))
}

impl Sender {
    /// Says hello.
    pub fn hello(&mut self) -> Result<(), AgentError> {
        self.message(&Hello::new(PROTOCOL))
    }

    /// Sends a message.
    pub fn message<T: Serialize>(&mut self, message: &T) -> Result<(), AgentError> {
        let json = serde_json::to_vec(message).map_err(croft_api::WireError::from)?;
        if json.len() > FRAME_MAX {
            return Err(croft_api::WireError::TooLong(json.len()).into());
        }
        self.frame(FrameKind::Message, &json)
    }

    /// Sends data of a stream, in as many frames as it takes; without bytes
    /// that is the stream's end.
    pub fn data(&mut self, kind: FrameKind, bytes: &[u8]) -> Result<(), AgentError> {
        if bytes.is_empty() {
            return self.frame(kind, bytes);
        }
        bytes
            .chunks(FRAME_MAX)
            .try_for_each(|chunk| self.frame(kind, chunk))
    }

    fn frame(&mut self, kind: FrameKind, bytes: &[u8]) -> Result<(), AgentError> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut frame = Vec::with_capacity(FRAME_HEADER + bytes.len());
        frame.extend(length.to_le_bytes());
        frame.push(kind.number());
        frame.extend(bytes);
        let sent = self.socket.write_all(&frame);
        sent.map_err(|source| AgentError::Io {
            peer: self.peer,
            source,
        })
    }
}

impl Receiver {
    /// Waits for the other end's hello and says which version both understand.
    pub fn hello(&mut self) -> Result<u32, AgentError> {
        let hello: Hello = self.message()?;
        Ok(check(&hello, self.peer)?)
    }

    /// Reads what is there; waits only if nothing is. False at the end.
    pub fn fill(&mut self) -> Result<bool, AgentError> {
        let mut bytes = [0; READ];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(count) => {
                    self.decoder.push(bytes.get(..count).unwrap_or_default());
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // The other end died with something of ours unread.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Ok(false);
                }
                Err(source) => {
                    return Err(AgentError::Io {
                        peer: self.peer,
                        source,
                    });
                }
            }
        }
    }

    /// A frame that has arrived already.
    pub fn arrived(&mut self) -> Result<Option<Frame>, AgentError> {
        let peer = self.peer;
        let next = self.decoder.next_frame();
        next.map_err(|what| AgentError::Damaged { peer, what })
    }

    /// Waits for a frame; nothing when the other end has ended.
    pub fn frame(&mut self) -> Result<Option<Frame>, AgentError> {
        loop {
            if let Some(frame) = self.arrived()? {
                return Ok(Some(frame));
            }
            if !self.fill()? {
                return match self.decoder.is_partial() {
                    true => Err(AgentError::Closed(self.peer)),
                    false => Ok(None),
                };
            }
        }
    }

    /// Waits for a message.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<T, AgentError> {
        match self.frame()? {
            Some(frame) => self.read(&frame),
            None => Err(AgentError::Closed(self.peer)),
        }
    }

    /// The message that a frame is.
    pub fn read<T: DeserializeOwned>(&self, frame: &Frame) -> Result<T, AgentError> {
        if frame.kind != FrameKind::Message {
            return Err(self.damaged("data where a message belongs"));
        }
        let message = serde_json::from_slice(&frame.bytes);
        message.map_err(|_| self.damaged("a message that cannot be read"))
    }

    /// What the other end did wrong.
    pub fn damaged(&self, what: &'static str) -> AgentError {
        AgentError::Damaged {
            peer: self.peer,
            what,
        }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use croft_api::agent::Control;
    use proptest::prelude::*;

    use super::*;

    fn pair() -> ((Sender, Receiver), (Sender, Receiver)) {
        let (a, b) = UnixStream::pair().unwrap();
        (
            halves(a.into(), "the agent").unwrap(),
            halves(b.into(), "the host").unwrap(),
        )
    }

    #[test]
    fn messages_and_data_arrive_in_order() {
        let ((mut sender, _), (_, mut receiver)) = pair();
        let large = vec![7; FRAME_MAX + 5];
        let copy = large.clone();
        let thread = thread::spawn(move || {
            sender.hello().unwrap();
            sender.message(&Control::Signal(2)).unwrap();
            sender.data(FrameKind::Stdin, &copy).unwrap();
            sender.data(FrameKind::Stdin, b"").unwrap();
        });
        assert_eq!(receiver.hello().unwrap(), PROTOCOL.version);
        let control: Control = receiver.message().unwrap();
        assert_eq!(control, Control::Signal(2));
        let mut got = Vec::new();
        loop {
            let frame = receiver.frame().unwrap().unwrap();
            assert_eq!(frame.kind, FrameKind::Stdin);
            if frame.bytes.is_empty() {
                break;
            }
            got.extend(frame.bytes);
        }
        assert!(got == large);
        thread.join().unwrap();
        assert!(receiver.frame().unwrap().is_none());
    }

    #[test]
    fn an_end_within_a_frame_is_an_error() {
        let (a, b) = UnixStream::pair().unwrap();
        let (_, mut receiver) = halves(b.into(), "the host").unwrap();
        (&a).write_all(&[9, 0, 0, 0, 0, b'{']).unwrap();
        drop(a);
        assert!(matches!(receiver.frame(), Err(AgentError::Closed(_))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_never_grows(
            pieces in prop::collection::vec(any::<Vec<u8>>(), 0..40),
        ) {
            let mut decoder = Decoder::default();
            'all: for piece in &pieces {
                decoder.push(piece);
                loop {
                    match decoder.next_frame() {
                        Ok(Some(frame)) => prop_assert!(frame.bytes.len() <= FRAME_MAX),
                        Ok(None) => break,
                        Err(_) => break 'all,
                    }
                }
                prop_assert!(decoder.buffer.len() <= FRAME_HEADER + FRAME_MAX + piece.len());
            }
        }
    }
}
