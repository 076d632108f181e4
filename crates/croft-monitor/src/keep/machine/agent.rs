//! The guest's agent, which says that the guest is ready.
//!
//! It connects once after each boot, says hello and [`Ready`], and is heard no
//! further. Whoever is in the guest may say anything here: it is bounded, and
//! what it says is only shown.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use croft_api::agent::{FRAME_HEADER, FrameKind, Ready, check};
use croft_api::hello::Hello;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Name of the other end in messages.
const PEER: &str = "the agent";
/// Longest of its two messages in bytes.
const MESSAGE_MAX: usize = 4096;
/// Most bytes held.
const HELD_MAX: usize = 2 * (FRAME_HEADER + MESSAGE_MAX);

/// A connection of the agent's.
#[derive(Debug)]
pub struct Agent {
    socket: OwnedFd,
    bytes: Vec<u8>,
    greeted: bool,
}

impl Agent {
    /// Over a socket.
    pub fn new(socket: OwnedFd) -> Self {
        Agent {
            socket,
            bytes: Vec::new(),
            greeted: false,
        }
    }

    /// Hears what is there; [`Ready`] once it has been said.
    pub fn hear(&mut self) -> io::Result<Option<Ready>> {
        let mut buffer = [0; 1024];
        let count = match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(nonsense("it went away before it was ready")),
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.bytes.extend(buffer.iter().take(count));
        if self.bytes.len() > HELD_MAX {
            return Err(nonsense("it says too much"));
        }
        while let Some(message) = self.message()? {
            if self.greeted {
                return Ok(Some(serde_json::from_slice(&message)?));
            }
            let hello: Hello = serde_json::from_slice(&message)?;
            check(&hello, PEER).map_err(|error| nonsense(&error.to_string()))?;
            self.greeted = true;
        }
        Ok(None)
    }

    /// The next message that is whole.
    fn message(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<FRAME_HEADER>() else {
            return Ok(None);
        };
        let [a, b, c, d, kind] = *header;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if FrameKind::from_number(kind) != Some(FrameKind::Message) || length > MESSAGE_MAX {
            return Err(nonsense("it does not say that it is ready"));
        }
        let Some(message) = rest.get(..length).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        self.bytes.drain(..FRAME_HEADER.saturating_add(length));
        Ok(Some(message))
    }
}

impl AsFd for Agent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use croft_api::agent::PROTOCOL;
    use croft_api::pair;
    use rustix::net::{SendFlags, send};
    use serde::Serialize;

    use super::*;

    fn frame<T: Serialize>(message: &T) -> Vec<u8> {
        let json = serde_json::to_vec(message).unwrap();
        let mut bytes = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
        bytes.push(FrameKind::Message.number());
        bytes.extend(json);
        bytes
    }

    fn words() -> Vec<u8> {
        let ready = Ready {
            boot_id: "boot".to_owned(),
            version: "0.1.0".to_owned(),
        };
        [frame(&Hello::new(PROTOCOL)), frame(&ready)].concat()
    }

    #[test]
    fn ready_is_heard_however_it_is_cut() {
        let words = words();
        for piece in [1, 7, 1000] {
            let (ours, theirs) = pair().unwrap();
            let mut agent = Agent::new(ours);
            let mut heard = None;
            for bytes in words.chunks(piece) {
                assert!(heard.is_none());
                send(&theirs, bytes, SendFlags::empty()).unwrap();
                heard = agent.hear().unwrap();
            }
            assert_eq!(heard.unwrap().boot_id, "boot");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let stranger = frame(&Hello::new(croft_api::vmm::PROTOCOL));
        let mut long = words();
        long[2] = 1;
        let mut data = words();
        data[4] = FrameKind::Stdout.number();
        for bytes in [stranger, long, data, vec![0xFF; 64], frame(&"hello")] {
            let (ours, theirs) = pair().unwrap();
            let mut agent = Agent::new(ours);
            send(&theirs, &bytes, SendFlags::empty()).unwrap();
            assert!(agent.hear().is_err(), "{bytes:?}");
        }
        let (ours, theirs) = pair().unwrap();
        drop(theirs);
        assert!(Agent::new(ours).hear().is_err());
    }
}
