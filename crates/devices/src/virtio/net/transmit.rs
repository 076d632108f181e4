//! Frames of the driver's.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use croft_net::{Backend, ETHERNET, FRAME_MAX, HEADER_LEN, Header, Sent};

use super::config::Features;
use super::handle::Hub;
use super::port::Port;
use super::{TURN_BYTES, TURN_FRAMES};
use crate::virtio::{Chain, Next, QueueError, Queues, Service};

/// Longest frame that is still to be cut: as long as IP can say, with its
/// Ethernet header and tags.
const LARGE_MAX: u64 = FRAME_MAX as u64 + 64;

/// Serves the transmitting queue of a pair.
pub struct Transmit {
    hub: Arc<Hub>,
    pair: u16,
    features: Features,
    port: Port,
    chain: Chain,
    /// For frames that have to be changed.
    scratch: Vec<u8>,
}

/// How a frame can go.
enum Fate {
    /// It is in the host's hands, or for nobody.
    Done,
    /// There is no room: again when there is.
    NoRoom,
    /// There is no other end any more.
    Lost,
}

impl Transmit {
    /// For pair `pair`.
    pub fn new(hub: Arc<Hub>, pair: u16, features: Features) -> Self {
        Transmit {
            hub,
            pair,
            features,
            port: Port::for_writing(),
            chain: Chain::default(),
            scratch: Vec::new(),
        }
    }

    /// The queue that it serves.
    fn queue(&self) -> u16 {
        2 * self.pair + 1
    }

    fn follow(&mut self) {
        let pair = usize::from(self.pair);
        self.port.hold(self.hub.backend(), |backend| {
            pair.checked_rem(backend.sources()).into_iter().collect()
        });
    }

    /// Whether the frame in the chain can go at all, and how.
    fn header(&self, queues: &Queues<'_>) -> Result<Option<Header>, QueueError> {
        let mut bytes = [0; HEADER_LEN];
        if self.chain.readable.read(queues.ram(), 0, &mut bytes)? < HEADER_LEN {
            return Err(QueueError::Request("has no complete header"));
        }
        let len = self.chain.readable.len() - HEADER_LEN as u64;
        if !(ETHERNET as u64..=LARGE_MAX).contains(&len) {
            return Ok(None);
        }
        Ok(self.features.outgoing(Header::from_bytes(bytes)))
    }

    fn send(
        &mut self,
        backend: &Backend,
        queues: &Queues<'_>,
        header: Header,
    ) -> Result<Fate, QueueError> {
        let readable = &self.chain.readable;
        let slices = readable.slices(queues.ram(), HEADER_LEN as u64, LARGE_MAX)?;
        let sent = backend.send(usize::from(self.pair), header, &slices, &mut self.scratch);
        Ok(match sent {
            Sent::Taken | Sent::Dropped => Fate::Done,
            Sent::Full => Fate::NoRoom,
            Sent::Lost => Fate::Lost,
        })
    }

    /// Does what there is to do, with a working other end or without.
    fn turn(
        &mut self,
        queues: &mut Queues<'_>,
        backend: Option<&Arc<Backend>>,
    ) -> Result<Next, QueueError> {
        let queue = self.queue();
        let limits = self.hub.limits();
        let mut next = Next::default();
        let (mut frames, mut bytes) = (0, 0);
        queues.expect(queue, false)?;
        while queues.live() {
            if frames >= TURN_FRAMES || bytes >= TURN_BYTES {
                next.again = true;
                break;
            }
            // The descriptor says when there is room again.
            if backend.is_some() && self.port.next(0).is_none() {
                break;
            }
            if !queues.pop(queue, &mut self.chain)? {
                if queues.expect(queue, true)? {
                    continue;
                }
                break;
            }
            let len = self.chain.readable.len();
            frames += 1;
            bytes += usize::try_from(len).unwrap_or(usize::MAX);
            if let Some(header) = self.header(queues)?
                && let Some(backend) = backend
            {
                if let Err(wait) = limits.outbound.admit(len - HEADER_LEN as u64) {
                    queues.unpop(queue);
                    next.deadline = Instant::now().checked_add(wait);
                    break;
                }
                match self.send(backend, queues, header)? {
                    Fate::Done => {}
                    Fate::NoRoom => {
                        queues.unpop(queue);
                        self.port.rest(0);
                        break;
                    }
                    Fate::Lost => {
                        queues.push(queue, &self.chain, 0)?;
                        self.hub.lost(backend);
                        next.again = true;
                        break;
                    }
                }
            }
            queues.push(queue, &self.chain, 0)?;
        }
        match backend.map(|backend| backend.flush()) {
            Some(Sent::Full) => self.port.rest(0),
            Some(Sent::Lost) => {
                if let Some(backend) = backend {
                    self.hub.lost(backend);
                }
                next.again = true;
            }
            _ => {}
        }
        queues.interrupt(queue)?;
        Ok(next)
    }
}

impl Service for Transmit {
    fn descriptor(&self) -> Option<RawFd> {
        self.port.descriptor()
    }

    fn serve(&mut self, queues: &mut Queues<'_>) -> Result<Next, QueueError> {
        self.follow();
        self.port.hear();
        // What comes while there is no link goes nowhere.
        let backend = self.port.backend().filter(|_| self.hub.is_up()).cloned();
        self.turn(queues, backend.as_ref())
    }
}
