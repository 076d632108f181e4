//! A virtqueue in use (virtio 1.2, 2.7), and the chains of buffers in it.
//!
//! The ring's place is checked once, when the queue is put to use: each of
//! its three parts lies in one piece of RAM, and neither place nor size
//! change from then on. Every access keeps its own bounds besides, so that a
//! mistake in that reasoning costs a request and not the host.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use croft_memory::{GuestRam, PageTable};
use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::bitmap::RefSlice;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemoryError, VolatileSlice,
};

use super::QueueHandler;

/// How the driver broke the rules.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The ring's registers cannot be.
    #[error("its {0} cannot be: {1}")]
    Ring(&'static str, String),
    /// The available ring, or another part that must be there, is not right.
    #[error("its ring is damaged: {0}")]
    Damaged(#[from] virtio_queue::Error),
    /// A chain without an end that belongs to it.
    #[error(
        "the descriptor chain at {0} loops, is too long, or points outside of its table or RAM"
    )]
    Chain(u16),
    /// A readable buffer after a writable one (2.7.4.2).
    #[error("the descriptor chain at {0} has a readable buffer after a writable one")]
    Order(u16),
    /// A buffer that is not in RAM.
    #[error("a buffer of {len} bytes at {address:#x} is not in RAM")]
    NotRam {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// A request that has not the parts it needs.
    #[error("a request {0}")]
    Request(&'static str),
    /// The host could not do its part.
    #[error("it cannot be waited for: {0}")]
    Host(#[from] std::io::Error),
    /// Not for RAM that is there: see [`VolatileMemoryError`].
    #[error(transparent)]
    Memory(#[from] VolatileMemoryError),
    /// Not an offence: the request is to be served again from its start,
    /// after this time or when the worker is woken (the device goes on after
    /// a pause, the driver notifies, [`Notifier::wake`]). Until then it is in
    /// the queue as if it had not been taken.
    ///
    /// [`Notifier::wake`]: super::Notifier::wake
    #[error("a request waits")]
    Later(Option<Duration>),
}

/// A piece of guest memory; what is written through it leaves the traces of
/// a store.
pub type GuestSlice<'a> = VolatileSlice<'a, RefSlice<'a, PageTable>>;

/// A part of a buffer chain, all of it readable or all of it writable.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    /// Address and length of each.
    pieces: Vec<(u64, u32)>,
}

impl Buffers {
    /// Bytes of all together.
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    /// True when there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Guest-physical address and length of each piece, in order.
    pub fn pieces(&self) -> &[(u64, u32)] {
        &self.pieces
    }

    /// Bytes `offset..offset + len` as pieces of guest memory; fewer where
    /// the buffers end before.
    pub fn slices<'a>(
        &self,
        ram: &'a GuestRam,
        mut offset: u64,
        mut len: u64,
    ) -> Result<Vec<GuestSlice<'a>>, QueueError> {
        let mut slices = Vec::with_capacity(self.pieces.len());
        for (address, piece) in &self.pieces {
            let piece = u64::from(*piece);
            if len == 0 {
                break;
            }
            if offset >= piece {
                offset -= piece;
                continue;
            }
            let part = (piece - offset).min(len);
            let not_ram = || QueueError::NotRam {
                address: *address,
                len: piece,
            };
            let start = address.checked_add(offset).ok_or_else(not_ram)?;
            let found =
                GuestMemoryBackend::get_slices(ram.mappings(), GuestAddress(start), part as usize);
            for slice in found {
                slices.push(slice.map_err(|_| not_ram())?);
            }
            offset = 0;
            len -= part;
        }
        Ok(slices)
    }

    /// Copies out of the buffers from byte `offset` on; returns how many
    /// bytes there were.
    pub fn read(&self, ram: &GuestRam, offset: u64, data: &mut [u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for slice in self.slices(ram, offset, data.len() as u64)? {
            done += slice.copy_to(data.get_mut(done..).unwrap_or_default());
        }
        Ok(done)
    }

    /// Copies into the buffers from byte `offset` on; returns how many bytes
    /// had room.
    pub fn write(&self, ram: &GuestRam, offset: u64, data: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for slice in self.slices(ram, offset, data.len() as u64)? {
            let part = data.get(done..).unwrap_or_default();
            let count = slice.len().min(part.len());
            slice.copy_from(part.get(..count).unwrap_or_default());
            done += count;
        }
        Ok(done)
    }
}

/// A request: its buffers in order.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    head: u16,
    /// What the device reads.
    pub readable: Buffers,
    /// What the device writes.
    pub writable: Buffers,
}

/// A ring's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingPlace {
    /// Entries, a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Of the driver's part, the available ring.
    pub driver: u64,
    /// Of the device's part, the used ring.
    pub device: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct ActiveQueue {
    queue: Queue,
    /// Where the used ring was when the driver was told last.
    told: u16,
}

impl ActiveQueue {
    /// Puts a ring of at most `most` entries to use, at these positions
    /// (both 0 after a reset).
    pub fn new(
        ram: &GuestRam,
        place: RingPlace,
        most: u16,
        event_idx: bool,
        (next_avail, next_used): (u16, u16),
    ) -> Result<Self, QueueError> {
        let size = u64::from(place.size);
        // 2.7: descriptors of 16 bytes; two 16-bit words, an element of 2 or
        // 8 bytes each, and a 16-bit word of the event index.
        let parts = [
            ("descriptor table", place.descriptors, 16 * size),
            ("driver area", place.driver, 6 + 2 * size),
            ("device area", place.device, 6 + 8 * size),
        ];
        for (what, start, len) in parts {
            if !in_one_piece(ram, start, len) {
                let why = format!("{len} bytes at {start:#x} are not RAM");
                return Err(QueueError::Ring(what, why));
            }
        }
        let queue = Queue::try_from(QueueState {
            max_size: most,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size: place.size,
            ready: true,
            desc_table: place.descriptors,
            avail_ring: place.driver,
            used_ring: place.device,
        })
        .map_err(|error| QueueError::Ring("size or alignment", error.to_string()))?;
        Ok(ActiveQueue {
            queue,
            told: next_used,
        })
    }

    /// Positions in the available and the used ring.
    pub fn positions(&self) -> (u16, u16) {
        (self.queue.next_avail(), self.queue.next_used())
    }

    /// Takes the next request into `chain`; false when there is none.
    pub fn pop(&mut self, ram: &GuestRam, chain: &mut Chain) -> Result<bool, QueueError> {
        let size = self.queue.size();
        let Some(found) = self.queue.iter(ram.mappings())?.next() else {
            return Ok(false);
        };
        let head = found.head_index();
        chain.head = head;
        chain.readable.pieces.clear();
        chain.writable.pieces.clear();
        // The iterator ends without a word where a chain is broken: the last
        // descriptor then still has a successor.
        let mut ended = false;
        for (count, descriptor) in found.enumerate() {
            if count == usize::from(size) {
                return Err(QueueError::Chain(head));
            }
            ended = !descriptor.has_next();
            let piece = (descriptor.addr().0, descriptor.len());
            if descriptor.is_write_only() {
                chain.writable.pieces.push(piece);
            } else if chain.writable.pieces.is_empty() {
                chain.readable.pieces.push(piece);
            } else {
                return Err(QueueError::Order(head));
            }
        }
        if ended {
            Ok(true)
        } else {
            Err(QueueError::Chain(head))
        }
    }

    /// The request taken last is as if it had not been taken.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Hands a request back, with the number of bytes written to it.
    pub fn push(&mut self, ram: &GuestRam, chain: &Chain, written: u32) -> Result<(), QueueError> {
        Ok(self.queue.add_used(ram.mappings(), chain.head, written)?)
    }

    /// Hands several requests back, each with the number of bytes written to
    /// it, which the driver sees all at once: it expects the buffers of one
    /// frame together (5.1.6.4).
    pub fn push_all(&mut self, ram: &GuestRam, done: &[(&Chain, u32)]) -> Result<(), QueueError> {
        let Some(((last, len), before)) = done.split_last() else {
            return Ok(());
        };
        let size = self.queue.size().max(1);
        let mut at = self.queue.next_used();
        for (chain, len) in before {
            // 2.7.8: behind two words, elements of two numbers each.
            let place = self.queue.used_ring() + 4 + 8 * u64::from(at % size);
            let element = u64::from(chain.head) | u64::from(*len) << 32;
            ram.mappings()
                .write_slice(&element.to_le_bytes(), GuestAddress(place))
                .map_err(virtio_queue::Error::GuestMemory)?;
            at = at.wrapping_add(1);
        }
        self.queue.set_next_used(at);
        self.push(ram, last, *len)
    }

    /// Whether the driver wants an interrupt for what was handed back.
    pub fn wants_interrupt(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        // What was handed back is to be seen before the driver's wish is
        // looked at (2.7.10.1).
        fence(Ordering::SeqCst);
        let now = self.queue.next_used();
        let told = std::mem::replace(&mut self.told, now);
        if now == told {
            return Ok(false);
        }
        let ring = self.queue.avail_ring();
        let half = |at: u64| -> Result<u16, QueueError> {
            let half = ram
                .mappings()
                .load(GuestAddress(at), Ordering::Relaxed)
                .map_err(virtio_queue::Error::GuestMemory)?;
            Ok(u16::from_le(half))
        };
        if self.queue.event_idx_enabled() {
            // 2.7.10: behind the ring; whether it was passed since.
            let event = half(ring + 4 + 2 * u64::from(self.queue.size()))?;
            return Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(told));
        }
        Ok(u32::from(half(ring)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Whether the driver is to notify of more requests, which is only a hint
    /// to it. Returns whether there are some.
    pub fn expect(&mut self, ram: &GuestRam, notify: bool) -> Result<bool, QueueError> {
        if notify {
            return Ok(self.queue.enable_notification(ram.mappings())?);
        }
        self.queue.disable_notification(ram.mappings())?;
        self.waits(ram)
    }

    /// Whether there are requests.
    pub fn waits(&self, ram: &GuestRam) -> Result<bool, QueueError> {
        let available = self.queue.avail_idx(ram.mappings(), Ordering::Acquire)?;
        Ok(available.0 != self.queue.next_avail())
    }
}

fn in_one_piece(ram: &GuestRam, start: u64, len: u64) -> bool {
    let Some(region) = ram.mappings().find_region(GuestAddress(start)) else {
        return false;
    };
    let offset = start - region.start_addr().0;
    region.len() - offset >= len
}

/// How long a finished request waits for others, so that one interrupt tells
/// of them all. Much less than a disk's latency or a timer's tick.
const GATHER: Duration = Duration::from_micros(50);

/// How [`serve`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// There is nothing left, `live` was taken away, or the handler is not
    /// ready.
    All,
    /// The first request of those that are left waits: see
    /// [`QueueError::Later`].
    Later(Option<Duration>),
}

/// Serves everything that is available while `live`, with an `interrupt`
/// whenever the driver wants one. Ends when there is nothing left and the
/// driver knows that it must notify, when `live` is taken away, or when the
/// handler is not ready or a request has to wait; then somebody wakes the
/// worker. Each request is bounded by the queue's size and RAM.
pub fn serve(
    queue: &mut ActiveQueue,
    handler: &mut dyn QueueHandler,
    ram: &GuestRam,
    chain: &mut Chain,
    live: &AtomicBool,
    mut interrupt: impl FnMut(),
) -> Result<Served, QueueError> {
    loop {
        queue.queue.disable_notification(ram.mappings())?;
        // Since when the driver may not know of requests handed back.
        let mut untold = None;
        let ended = loop {
            if !live.load(Ordering::SeqCst) || !handler.ready() {
                break Ok(Some(Served::All));
            }
            match serve_one(queue, handler, ram, chain) {
                Ok(true) => {}
                Ok(false) => break Ok(None),
                Err(QueueError::Later(wait)) => break Ok(Some(Served::Later(wait))),
                Err(error) => break Err(error),
            }
            let since: &Instant = untold.get_or_insert_with(Instant::now);
            if since.elapsed() >= GATHER {
                untold = None;
                if queue.wants_interrupt(ram)? {
                    interrupt();
                }
            }
        };
        if untold.is_some() && queue.wants_interrupt(ram)? {
            interrupt();
        }
        if let Some(served) = ended? {
            return Ok(served);
        }
        if !queue.queue.enable_notification(ram.mappings())? {
            return Ok(Served::All);
        }
    }
}

/// Serves the next request; false when there is none.
fn serve_one(
    queue: &mut ActiveQueue,
    handler: &mut dyn QueueHandler,
    ram: &GuestRam,
    chain: &mut Chain,
) -> Result<bool, QueueError> {
    if !queue.pop(ram, chain)? {
        return Ok(false);
    }
    match handler.serve(ram, chain) {
        Ok(written) => queue.push(ram, chain, written)?,
        Err(error) => {
            if matches!(error, QueueError::Later(_)) {
                queue.unpop();
            }
            return Err(error);
        }
    }
    Ok(true)
}
