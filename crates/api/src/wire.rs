//! Frames: how messages are told apart on a byte stream.
//!
//! ```text
//! offset  0        4     5          8
//!         ┌────────┬─────┬──────────┬─────────────────┐
//!         │ length │ fds │ zero × 3 │ JSON, `length`  │
//!         └────────┴─────┴──────────┴─────────────────┘
//! ```
//!
//! `length` is little-endian and at most [`MAX_PAYLOAD`]; `fds` is how many of
//! the descriptors received so far, in order, belong to this message.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Bytes before the payload of a frame.
pub const HEADER: usize = 8;
/// Longest payload in bytes. Command lines and register reports are a few
/// kilobytes; a peer that announces more is broken.
pub const MAX_PAYLOAD: usize = 256 * 1024;
/// Most descriptors of one message: what a socket takes at once (`SCM_MAX_FD`,
/// Linux include/net/scm.h).
pub const MAX_DESCRIPTORS: usize = 253;

/// Why a conversation cannot go on.
#[derive(Debug, Error)]
pub enum WireError {
    /// The socket failed.
    #[error("connection to {peer}: {source}")]
    Io {
        /// Whom we talk to.
        peer: &'static str,
        /// What the host answered.
        source: io::Error,
    },
    /// A frame that is none.
    #[error("damaged message: {0}")]
    Damaged(&'static str),
    /// A payload that is not the message expected.
    #[error("unreadable message: {0}")]
    Json(#[from] serde_json::Error),
    /// A message of ours that is longer than a frame.
    #[error("a message of {0} bytes is longer than a frame; shorten the command line")]
    TooLong(usize),
    /// The other end speaks something else.
    #[error(
        "{peer} speaks {theirs}, this program speaks {ours}; install the parts of one Croft version"
    )]
    Version {
        /// Whom we talk to.
        peer: &'static str,
        /// What it speaks.
        theirs: String,
        /// What we speak.
        ours: String,
    },
}

/// One frame, without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// JSON.
    pub payload: Vec<u8>,
    /// How many descriptors belong to it.
    pub descriptors: usize,
}

impl Frame {
    /// Reads the payload as a message.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, WireError> {
        Ok(serde_json::from_slice(&self.payload)?)
    }
}

/// The bytes of a message that comes with `descriptors` descriptors.
pub fn encode<T: Serialize>(message: &T, descriptors: usize) -> Result<Vec<u8>, WireError> {
    let payload = serde_json::to_vec(message)?;
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= MAX_PAYLOAD)
        .ok_or(WireError::TooLong(payload.len()))?;
    let count = u8::try_from(descriptors)
        .ok()
        .filter(|_| descriptors <= MAX_DESCRIPTORS)
        .ok_or(WireError::Damaged("too many descriptors"))?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&[count, 0, 0, 0]);
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// Cuts a byte stream into frames. Holds at most one frame and what was
/// pushed behind it; take frames out until there is none, then push again.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one. After an error the stream
    /// cannot be read further.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, count, zeros @ ..] = *header;
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let descriptors = usize::from(count);
        if length > MAX_PAYLOAD {
            return Err(WireError::Damaged("its length is out of range"));
        }
        if descriptors > MAX_DESCRIPTORS || zeros != [0; 3] {
            return Err(WireError::Damaged("its header is not one"));
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Frame {
            payload: payload.to_vec(),
            descriptors,
        };
        self.buffer.drain(..HEADER + length);
        Ok(Some(frame))
    }

    /// True if the stream stopped within a frame.
    pub fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(decoder: &mut Decoder) -> Result<Vec<Frame>, WireError> {
        let mut all = Vec::new();
        while let Some(frame) = decoder.next_frame()? {
            all.push(frame);
        }
        Ok(all)
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            messages in prop::collection::vec((".{0,200}", 0usize..=MAX_DESCRIPTORS), 0..8),
            cut in 1usize..97,
        ) {
            let stream: Vec<u8> = messages
                .iter()
                .flat_map(|(text, fds)| encode(text, *fds).unwrap())
                .collect();
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                got.extend(frames(&mut decoder).unwrap());
            }
            prop_assert!(!decoder.is_partial());
            let got: Vec<(String, usize)> = got
                .iter()
                .map(|frame| (frame.message().unwrap(), frame.descriptors))
                .collect();
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn garbage_never_panics_and_never_grows(pieces in prop::collection::vec(any::<Vec<u8>>(), 0..40)) {
            let mut decoder = Decoder::default();
            for piece in &pieces {
                decoder.push(piece);
                match frames(&mut decoder) {
                    Ok(all) => for frame in all {
                        prop_assert!(frame.payload.len() <= MAX_PAYLOAD);
                        let _ = frame.message::<crate::vmm::Request>();
                    },
                    Err(_) => break,
                }
                prop_assert!(decoder.buffer.len() <= HEADER + MAX_PAYLOAD + piece.len());
            }
        }
    }

    #[test]
    fn refuses_what_is_too_long() {
        let text = "x".repeat(MAX_PAYLOAD);
        assert!(matches!(encode(&text, 0), Err(WireError::TooLong(_))));
        let mut decoder = Decoder::default();
        decoder.push(&[0xff; HEADER]);
        assert!(decoder.next_frame().is_err());
    }
}
