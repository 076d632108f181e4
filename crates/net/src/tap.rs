//! Queues of a tap interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use bitflags::bitflags;
use rustix::io::{Errno, read};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::backend::Sent;
use crate::{FRAME_MAX, GSO_UDP, HEADER_LEN, Header, Lost, finish, sys};

/// Bytes of the longest frame with its header: a packet that is still to be
/// cut, as long as IP can say, with its Ethernet header and tags.
const BUFFER: usize = HEADER_LEN + FRAME_MAX + 64;

bitflags! {
    /// What a reader takes over, as `TUN_F_*` (linux/if_tun.h) has it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Checksums that are not complete.
        const CSUM = 0x01;
        /// Large TCP packets over IPv4.
        const TSO4 = 0x02;
        /// Over IPv6.
        const TSO6 = 0x04;
        /// With CWR in the first segment.
        const ECN = 0x08;
        /// Several UDP packets in one, over IPv4.
        const USO4 = 0x20;
        /// Over IPv6. The kernel knows only both together.
        const USO6 = 0x40;
    }
}

impl Offloads {
    const USO: Offloads = Offloads::USO4.union(Offloads::USO6);
}

/// A tap that was opened by [`open_tap`](crate::open_tap).
#[derive(Debug)]
pub struct Tap {
    queues: Vec<OwnedFd>,
    /// The kernel cuts UDP packets (since Linux 6.2).
    cuts_udp: AtomicBool,
}

impl Tap {
    /// Of these queues, which do not block.
    pub fn new(queues: Vec<OwnedFd>) -> Self {
        Tap {
            queues,
            cuts_udp: AtomicBool::new(false),
        }
    }

    /// Its queues.
    pub fn queues(&self) -> &[OwnedFd] {
        &self.queues
    }

    /// Lets the kernel leave so much to whoever reads, and no more.
    pub fn set_offloads(&self, wanted: Offloads) -> io::Result<()> {
        let Some(queue) = self.queues.first() else {
            return Ok(());
        };
        let set = |offloads: Offloads| sys::set_offload(queue.as_fd(), offloads.bits().into());
        // What it takes it also does.
        let cuts = set(Offloads::CSUM | Offloads::USO).is_ok();
        self.cuts_udp.store(cuts, Ordering::Relaxed);
        let mut offloads = wanted;
        if !cuts || !offloads.contains(Offloads::USO) {
            offloads -= Offloads::USO;
        }
        if !offloads.contains(Offloads::CSUM) {
            offloads = Offloads::empty();
        }
        if !offloads.intersects(Offloads::TSO4 | Offloads::TSO6) {
            offloads -= Offloads::ECN;
        }
        set(offloads)
    }

    /// Shows the host that a cable is plugged in, or is not.
    pub fn set_carrier(&self, carrier: bool) -> io::Result<()> {
        let queue = self.queues.first();
        queue.map_or(Ok(()), |queue| sys::set_carrier(queue.as_fd(), carrier))
    }

    /// Hands a frame of the guest's to `queue`. `scratch` is for frames that
    /// have to be looked at.
    pub fn send<B: BitmapSlice>(
        &self,
        queue: usize,
        header: Header,
        pieces: &[VolatileSlice<'_, B>],
        scratch: &mut Vec<u8>,
    ) -> Sent {
        let Some(queue) = queue
            .checked_rem(self.queues.len())
            .and_then(|queue| self.queues.get(queue))
        else {
            return Sent::Dropped;
        };
        if header.gso() == GSO_UDP && !self.cuts_udp.load(Ordering::Relaxed) {
            return send_cut(queue.as_fd(), header, pieces, scratch);
        }
        let header = Header {
            buffers: 0,
            ..header
        };
        sent(sys::write_pieces(queue.as_fd(), &header.to_bytes(), pieces))
    }
}

/// Sends what the kernel would not cut.
fn send_cut<B: BitmapSlice>(
    queue: BorrowedFd<'_>,
    header: Header,
    pieces: &[VolatileSlice<'_, B>],
    scratch: &mut Vec<u8>,
) -> Sent {
    copy(pieces, scratch);
    let plain = Header::default().to_bytes();
    let mut result = Sent::Taken;
    let finished = finish(header, scratch, 0, &mut |headers, data| {
        // Once some are gone the others cannot wait.
        if result == Sent::Taken {
            let none: [VolatileSlice<'_, ()>; 0] = [];
            let frame = [&plain[..], headers, data].concat();
            result = match sent(sys::write_pieces(queue, &frame, &none)) {
                Sent::Full => Sent::Dropped,
                other => other,
            };
        }
    });
    if finished.is_err() {
        return Sent::Dropped;
    }
    result
}

/// Copies a frame out of guest memory, where it may change.
pub fn copy<B: BitmapSlice>(pieces: &[VolatileSlice<'_, B>], frame: &mut Vec<u8>) {
    let len = pieces.iter().map(VolatileSlice::len).sum();
    frame.resize(len, 0);
    let mut at = 0;
    for piece in pieces {
        at += piece.copy_to(frame.get_mut(at..).unwrap_or_default());
    }
}

fn sent(written: io::Result<usize>) -> Sent {
    let Err(error) = written else {
        return Sent::Taken;
    };
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN) => Sent::Full,
        // The interface was deleted.
        Some(Errno::BADFD) => Sent::Lost,
        // It is down, or the frame is none.
        _ => Sent::Dropped,
    }
}

/// Reads a queue, frame by frame.
#[derive(Debug)]
pub struct TapReceiver {
    buffer: Vec<u8>,
    /// Bytes of the frame in hand, with its header.
    len: usize,
}

impl TapReceiver {
    pub fn new() -> Self {
        TapReceiver {
            buffer: vec![0; BUFFER],
            len: 0,
        }
    }

    /// The next frame, which stays until it is [taken](Self::take).
    pub fn peek(&mut self, queue: BorrowedFd<'_>) -> Result<Option<(Header, &[u8])>, Lost> {
        while self.len < HEADER_LEN {
            match read(queue, &mut *self.buffer) {
                // One without even a header is none.
                Ok(len) => self.len = len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::BADFD) => return Err(Lost),
                // It is down, or has no room.
                Err(_) => return Ok(None),
            }
        }
        let Some((header, frame)) = self
            .buffer
            .get(..self.len)
            .and_then(<[u8]>::split_first_chunk)
        else {
            return Ok(None);
        };
        Ok(Some((Header::from_bytes(*header), frame)))
    }

    /// The frame in hand is dealt with.
    pub fn take(&mut self) {
        self.len = 0;
    }
}
