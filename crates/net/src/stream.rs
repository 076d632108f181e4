//! A socket that takes frames behind their length.
//!
//! ```text
//! 0            4
//! ┌────────────┬─────────────────┐
//! │ length, BE │ frame           │ …
//! └────────────┴─────────────────┘
//! ```
//!
//! So do passt (`--fd`) and QEMU's `-netdev stream`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::backend::Sent;
use crate::martian::is_for_the_host;
use crate::tap::copy;
use crate::{ETHERNET, FRAME_MAX, Header, Lost, finish};

/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// Bytes read at once: the longest frame, or many.
const BUFFER: usize = 2 * (LENGTH + FRAME_MAX);
/// With so many bytes that the socket did not take yet, no frame is begun.
/// One more is at most some 300 KiB, when it is cut very small.
const BACKLOG: usize = 64 << 10;

/// A connected stream socket, one end of which is the guest's.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    /// The longest frame that the link takes.
    largest: usize,
    out: Mutex<Out>,
    /// The guest takes it from us that checksums are right.
    checks_nothing: AtomicBool,
}

/// What is on its way out.
#[derive(Debug, Default)]
struct Out {
    bytes: Vec<u8>,
    /// So many of them have gone.
    gone: usize,
}

impl Stream {
    /// Over this socket, which takes packets of `mtu` bytes.
    pub fn new(socket: OwnedFd, mtu: u16) -> Self {
        Stream {
            socket,
            largest: (ETHERNET + usize::from(mtu)).min(FRAME_MAX),
            out: Mutex::default(),
            checks_nothing: AtomicBool::new(false),
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the guest takes it that checksums are right. Those who made
    /// the frames have seen to it, and a socket loses nothing.
    pub(crate) fn set_valid(&self, valid: bool) {
        self.checks_nothing.store(valid, Ordering::Relaxed);
    }

    pub(crate) fn header(&self) -> Header {
        if self.checks_nothing.load(Ordering::Relaxed) {
            Header::valid()
        } else {
            Header::default()
        }
    }

    /// Takes a frame of the guest's, which goes with the next
    /// [`flush`](Self::flush).
    pub fn send<B: BitmapSlice>(
        &self,
        header: Header,
        pieces: &[VolatileSlice<'_, B>],
        scratch: &mut Vec<u8>,
    ) -> Sent {
        let mut out = self.out();
        if out.waiting() >= BACKLOG {
            match self.push(&mut out) {
                Sent::Full if out.waiting() < BACKLOG => {}
                Sent::Taken => {}
                other => return other,
            }
        }
        copy(pieces, scratch);
        if is_for_the_host(scratch) {
            return Sent::Dropped;
        }
        let finished = finish(header, scratch, self.largest, &mut |headers, data| {
            let len = (headers.len() + data.len()) as u32;
            out.bytes.extend(len.to_be_bytes());
            out.bytes.extend(headers);
            out.bytes.extend(data);
        });
        if finished.is_ok() {
            Sent::Taken
        } else {
            Sent::Dropped
        }
    }

    /// Hands over what was taken. [`Sent::Full`] when some is left.
    pub fn flush(&self) -> Sent {
        let mut out = self.out();
        self.push(&mut out)
    }

    fn push(&self, out: &mut Out) -> Sent {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while out.waiting() > 0 {
            match send(
                &self.socket,
                out.bytes.get(out.gone..).unwrap_or_default(),
                flags,
            ) {
                Ok(count) => out.gone += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    out.close_up();
                    return Sent::Full;
                }
                Err(_) => return Sent::Lost,
            }
        }
        out.close_up();
        Sent::Taken
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Out {
    fn waiting(&self) -> usize {
        self.bytes.len() - self.gone
    }

    /// Forgets what has gone.
    fn close_up(&mut self) {
        if self.gone == self.bytes.len() {
            self.bytes.clear();
            self.gone = 0;
        } else if self.gone > BACKLOG {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
    }
}

/// Reads a stream, frame by frame.
#[derive(Debug)]
pub struct StreamReceiver {
    buffer: Vec<u8>,
    /// What was read and is not dealt with.
    start: usize,
    end: usize,
}

impl StreamReceiver {
    pub fn new() -> Self {
        StreamReceiver {
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
        }
    }

    /// Bytes of the frame at the start, if its length is there and can be.
    fn len(&self) -> Result<Option<usize>, Lost> {
        let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some(length) = bytes.first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        // Whoever sends more does not speak this: nothing after it is a
        // frame.
        if length > FRAME_MAX {
            return Err(Lost);
        }
        Ok(Some(length))
    }

    /// Where the next frame is, if it is complete.
    fn complete(&self) -> Result<Option<std::ops::Range<usize>>, Lost> {
        let from = self.start + LENGTH;
        let frame = self.len()?.map(|len| from..from + len);
        Ok(frame.filter(|frame| frame.end <= self.end))
    }

    /// The next frame, which stays until it is [taken](Self::take).
    pub fn peek(&mut self, socket: BorrowedFd<'_>) -> Result<Option<&[u8]>, Lost> {
        let frame = loop {
            if let Some(frame) = self.complete()? {
                break frame;
            }
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            } else if self.start + LENGTH + FRAME_MAX > self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let space = self.buffer.get_mut(self.end..).unwrap_or_default();
            match recv(socket, space, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(Lost),
                Ok((count, _)) => self.end += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(Lost),
            }
        };
        Ok(self.buffer.get(frame))
    }

    /// The frame in hand is dealt with.
    pub fn take(&mut self) {
        if let Ok(Some(frame)) = self.complete() {
            self.start = frame.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::Backend;

    fn pair() -> (Backend, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::new(ours.into(), 1500).into(), theirs)
    }

    fn frame(len: usize) -> Vec<u8> {
        (0..len).map(|n| n as u8).collect()
    }

    /// Sends as a guest that leaves nothing to do.
    fn give(backend: &Backend, frame: &[u8]) -> Sent {
        let mut bytes = frame.to_vec();
        let (one, other) = bytes.split_at_mut(frame.len() / 3);
        let pieces = [VolatileSlice::from(one), VolatileSlice::from(other)];
        backend.send(0, Header::default(), &pieces, &mut Vec::new())
    }

    #[test]
    fn frames_in_any_pieces() {
        let (backend, mut peer) = pair();
        backend.set_offloads(crate::Offloads::CSUM).unwrap();
        let frames: Vec<_> = [14, 60, 1514, 0, 65535].map(frame).to_vec();
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend((frame.len() as u32).to_be_bytes());
            bytes.extend(frame);
        }
        let mut got = Vec::new();
        for step in [1, 7, 1000, 70_000] {
            for piece in bytes.chunks(step) {
                peer.write_all(piece).unwrap();
                let mut receiver = backend.receiver(0).unwrap();
                while let Some((header, frame)) = receiver.peek().unwrap() {
                    assert_eq!(header, Header::valid());
                    got.push(frame.to_vec());
                    // It stays until it is taken.
                    assert_eq!(receiver.peek().unwrap().unwrap().1, got.last().unwrap());
                    receiver.take();
                }
            }
            assert_eq!(std::mem::take(&mut got), frames);
        }
        drop(peer);
        assert_eq!(backend.receiver(0).unwrap().peek(), Err(Lost));
        assert!(backend.receiver(1).is_none());
    }

    #[test]
    fn a_length_that_cannot_be() {
        let (backend, mut peer) = pair();
        peer.write_all(&65536u32.to_be_bytes()).unwrap();
        assert_eq!(backend.receiver(0).unwrap().peek(), Err(Lost));
    }

    #[test]
    fn a_peer_that_does_not_read_holds_up_and_loses_nothing() {
        let (backend, mut peer) = pair();
        let mut sent = 0;
        while give(&backend, &frame(1000 + sent)) == Sent::Taken {
            sent += 1;
        }
        assert!(sent > 50);
        assert_eq!(backend.flush(), Sent::Full);
        peer.set_nonblocking(true).unwrap();
        let (mut bytes, mut space) = (Vec::new(), [0; 5000]);
        loop {
            match peer.read(&mut space) {
                Ok(count) => bytes.extend(&space[..count]),
                Err(_) if backend.flush() == Sent::Taken => {
                    match peer.read(&mut space) {
                        Ok(count) => bytes.extend(&space[..count]),
                        Err(_) => break,
                    };
                }
                Err(_) => {}
            }
        }
        let mut rest = &*bytes;
        for n in 0..sent {
            let (length, after) = rest.split_first_chunk::<4>().unwrap();
            assert_eq!(u32::from_be_bytes(*length) as usize, 1000 + n);
            let (got, after) = after.split_at(1000 + n);
            assert_eq!(got, frame(1000 + n));
            rest = after;
        }
        assert!(rest.is_empty());
        drop(peer);
        assert_eq!(give(&backend, &frame(100)), Sent::Taken);
        assert_eq!(backend.flush(), Sent::Lost);
    }

    #[test]
    fn what_is_no_frame_is_dropped() {
        let (backend, _peer) = pair();
        assert_eq!(give(&backend, &frame(13)), Sent::Dropped);
        assert_eq!(give(&backend, &frame(65536)), Sent::Dropped);
    }
}
