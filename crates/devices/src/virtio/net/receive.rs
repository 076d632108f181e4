//! Frames for the driver.
//!
//! ```text
//!                 frame is there, buffers are
//! waiting ────────────────────────────────────► filter ─► limit ─► deliver
//!   ▲                                                                │
//!   └── no frame, no buffers, or above the limit: the frame stays ◄──┘
//! ```

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft_memory::GuestRam;
use croft_net::{Backend, HEADER_LEN, Header, Lost, complete};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::config::{self, Features, QUEUE_SIZE};
use super::filter::Filter;
use super::handle::{Hub, Limiters};
use super::port::Port;
use super::{TURN_BYTES, TURN_FRAMES};
use crate::virtio::{Chain, Next, QueueError, Queues, Service};

/// Serves the receiving queue of a pair.
pub struct Receive {
    hub: Arc<Hub>,
    pair: u16,
    features: Features,
    port: Port,
    /// What was asked of which backend last, by the first pair.
    asked: Option<(Arc<Backend>, u64)>,
    buffers: Buffers,
    /// For frames that have to be changed.
    scratch: Vec<u8>,
}

/// The buffers of a frame.
#[derive(Default)]
struct Buffers {
    chains: Vec<Chain>,
    count: usize,
}

/// What became of a frame.
enum Delivered {
    /// It is in the driver's buffers, or was not to be.
    Done,
    /// There are too few buffers; the driver notifies of more.
    NoRoom,
    /// It would be too much now.
    TooFast(Duration),
}

/// What holds during one call.
struct Turn {
    up: bool,
    offloads: u64,
    filter: Arc<Filter>,
    limits: Arc<Limiters>,
}

impl Receive {
    /// For pair `pair`.
    pub fn new(hub: Arc<Hub>, pair: u16, features: Features) -> Self {
        Receive {
            hub,
            pair,
            features,
            port: Port::for_reading(),
            asked: None,
            buffers: Buffers::default(),
            scratch: Vec::new(),
        }
    }

    /// The queue that it serves.
    fn queue(&self) -> u16 {
        2 * self.pair
    }

    /// Holds what is behind the NIC now: every pair in use has its share of
    /// the sources, whatever their number.
    fn follow(&mut self) {
        let (pair, pairs) = (usize::from(self.pair), usize::from(self.hub.pairs()));
        self.port.hold(self.hub.backend(), |backend| {
            let all = 0..backend.sources();
            all.filter(|source| source % pairs == pair).collect()
        });
        if self.pair == 0
            && let Some(backend) = self.port.backend()
        {
            let wanted = self.hub.offloads();
            let same = self
                .asked
                .as_ref()
                .is_some_and(|(of, what)| Arc::ptr_eq(of, backend) && *what == wanted);
            if !same {
                // Who leaves more than that to the driver is not heard.
                let _ = backend.set_offloads(config::offloads(wanted));
                self.asked = Some((backend.clone(), wanted));
            }
        }
    }
}

impl Service for Receive {
    fn descriptor(&self) -> Option<RawFd> {
        self.port.descriptor()
    }

    fn serve(&mut self, queues: &mut Queues<'_>) -> Result<Next, QueueError> {
        self.follow();
        self.port.hear();
        let queue = self.queue();
        let Some(backend) = self.port.backend().cloned() else {
            return Ok(Next::default());
        };
        queues.expect(queue, false)?;
        let turn = Turn {
            up: self.hub.is_up(),
            offloads: self.hub.offloads(),
            filter: self.hub.filter(),
            limits: self.hub.limits(),
        };
        let (mut frames, mut bytes) = (0, 0);
        let mut next = Next::default();
        let mut place = 0;
        'sources: while let Some(ready) = self.port.next(place) {
            place = ready;
            let source = self.port.source(place);
            let Some(mut receiver) = source.and_then(|source| backend.receiver(source)) else {
                break;
            };
            loop {
                if !queues.live() {
                    break 'sources;
                }
                if frames >= TURN_FRAMES || bytes >= TURN_BYTES {
                    next.again = true;
                    break 'sources;
                }
                match receiver.peek() {
                    Ok(None) => {
                        self.port.rest(place);
                        break;
                    }
                    Err(Lost) => {
                        drop(receiver);
                        self.hub.lost(&backend);
                        self.follow();
                        break 'sources;
                    }
                    Ok(Some((header, frame))) => {
                        frames += 1;
                        bytes += frame.len();
                        let mut delivery = Delivery {
                            turn: &turn,
                            queue,
                            mergeable: self.features.has(VIRTIO_NET_F_MRG_RXBUF),
                            buffers: &mut self.buffers,
                            scratch: &mut self.scratch,
                        };
                        match delivery.frame(queues, header, frame)? {
                            Delivered::Done => receiver.take(),
                            Delivered::NoRoom => break 'sources,
                            Delivered::TooFast(wait) => {
                                next.deadline = Instant::now().checked_add(wait);
                                break 'sources;
                            }
                        }
                    }
                }
            }
        }
        queues.interrupt(queue)?;
        Ok(next)
    }
}

/// The way of a frame into the driver's buffers.
struct Delivery<'a> {
    turn: &'a Turn,
    queue: u16,
    mergeable: bool,
    buffers: &'a mut Buffers,
    scratch: &'a mut Vec<u8>,
}

impl Delivery<'_> {
    fn frame(
        &mut self,
        queues: &mut Queues<'_>,
        header: Header,
        frame: &[u8],
    ) -> Result<Delivered, QueueError> {
        let turn = self.turn;
        if !turn.up || !turn.filter.passes(frame) || !config::takes(turn.offloads, header) {
            return Ok(Delivered::Done);
        }
        let needed = (HEADER_LEN + frame.len()) as u64;
        let most = if self.mergeable {
            usize::from(QUEUE_SIZE)
        } else {
            1
        };
        let Some(room) = self.buffers.gather(queues, self.queue, needed, most)? else {
            return Ok(Delivered::NoRoom);
        };
        if room < needed {
            // No number of such buffers holds it.
            self.buffers.give_back(queues, self.queue);
            return Ok(Delivered::Done);
        }
        if let Err(wait) = turn.limits.inbound.admit(frame.len() as u64) {
            self.buffers.give_back(queues, self.queue);
            return Ok(Delivered::TooFast(wait));
        }
        let mut header = Header {
            buffers: self.buffers.count as u16,
            ..header
        };
        let sums = config::offloads(turn.offloads).contains(croft_net::Offloads::CSUM);
        let mut frame = frame;
        if !sums {
            if header.needs_checksum() {
                self.scratch.clear();
                self.scratch.extend_from_slice(frame);
                if complete(header, self.scratch).is_err() {
                    self.buffers.give_back(queues, self.queue);
                    return Ok(Delivered::Done);
                }
                frame = self.scratch;
            }
            header = Header {
                buffers: header.buffers,
                ..Header::default()
            };
        }
        self.buffers.fill(queues, self.queue, header, frame)?;
        Ok(Delivered::Done)
    }
}

impl Buffers {
    /// Takes buffers for `needed` bytes out of the queue, at most `most`;
    /// returns how many bytes they have. `None` when there are too few, which
    /// are then as if they had not been taken, and the driver notifies of
    /// more.
    fn gather(
        &mut self,
        queues: &mut Queues<'_>,
        queue: u16,
        needed: u64,
        most: usize,
    ) -> Result<Option<u64>, QueueError> {
        self.count = 0;
        let mut room = 0;
        while room < needed && self.count < most {
            if self.chains.len() == self.count {
                self.chains.push(Chain::default());
            }
            let Some(chain) = self.chains.get_mut(self.count) else {
                break;
            };
            if queues.pop(queue, chain)? {
                room += chain.writable.len();
                self.count += 1;
            } else if !queues.expect(queue, true)? {
                self.give_back(queues, queue);
                return Ok(None);
            }
        }
        Ok(Some(room))
    }

    /// They are as if they had not been taken.
    fn give_back(&mut self, queues: &mut Queues<'_>, queue: u16) {
        (0..self.count).for_each(|_| queues.unpop(queue));
        self.count = 0;
    }

    /// Writes a frame to the buffers, which have room for it, and hands them
    /// back.
    fn fill(
        &mut self,
        queues: &mut Queues<'_>,
        queue: u16,
        header: Header,
        frame: &[u8],
    ) -> Result<(), QueueError> {
        let ram: &GuestRam = queues.ram();
        let mut done = Vec::with_capacity(self.count);
        let mut rest = frame;
        for (index, chain) in self.chains.iter().take(self.count).enumerate() {
            let mut at = 0;
            if index == 0 {
                at = chain.writable.write(ram, 0, &header.to_bytes())?;
                if at < HEADER_LEN {
                    return Err(QueueError::Request("has no room for a frame's header"));
                }
            }
            let written = chain.writable.write(ram, at as u64, rest)?;
            rest = rest.get(written..).unwrap_or_default();
            done.push((chain, (at + written) as u32));
        }
        self.count = 0;
        queues.push_all(queue, &done)
    }
}
