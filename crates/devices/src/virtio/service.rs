//! What a worker runs: a service over the queues that it looks after.
//!
//! Most devices serve requests of one queue, one after the other: they give a
//! [`QueueHandler`] for each queue, and [`Requests`] makes a service of it. A
//! device that reaches its driver by itself, or whose queues share much, is
//! served as a whole by a [`Service`] of its own on one worker.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use croft_memory::GuestRam;

use super::QueueHandler;
use super::queue::{ActiveQueue, Chain, QueueError, Served, serve};

/// When a service wants to be called although nothing happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// At once: it did only part of what there is to do.
    pub again: bool,
    /// Then at the latest.
    pub deadline: Option<Instant>,
}

/// Serves a device's queues on a worker thread. It is called when the driver
/// notified, when the worker was woken, when its descriptor is readable, and
/// when it wished to be ([`Next`]); never while the device stands still.
pub trait Service: Send {
    /// Readable when there is something to do. It must be open, and
    /// the same, during the service's life.
    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    /// Does what there is to do, as long as the queues are
    /// [`live`](Queues::live); must not block. An error says that the driver
    /// broke the rules: the device stops.
    fn serve(&mut self, queues: &mut Queues<'_>) -> Result<Next, QueueError>;
}

/// The queues that a worker looks after, for one call of its service. A queue
/// that the driver does not use is always empty.
pub struct Queues<'a> {
    queues: &'a mut [(u16, ActiveQueue)],
    ram: &'a GuestRam,
    live: &'a AtomicBool,
    interrupt: &'a dyn Fn(u16),
}

impl<'a> Queues<'a> {
    /// `queues` with their numbers, served while `live`; `interrupt` tells
    /// the driver of one of them.
    pub fn new(
        queues: &'a mut [(u16, ActiveQueue)],
        ram: &'a GuestRam,
        live: &'a AtomicBool,
        interrupt: &'a dyn Fn(u16),
    ) -> Self {
        Queues {
            queues,
            ram,
            live,
            interrupt,
        }
    }

    /// Guest memory.
    pub fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// Whether to go on. Asked before each request: a machine that is paused
    /// waits for it.
    pub fn live(&self) -> bool {
        self.live.load(Ordering::SeqCst)
    }

    fn get(&mut self, queue: u16) -> Option<&mut ActiveQueue> {
        let mut queues = self.queues.iter_mut();
        queues.find(|(n, _)| *n == queue).map(|(_, queue)| queue)
    }

    /// Takes the next buffers of `queue` into `chain`; false when there are
    /// none.
    pub fn pop(&mut self, queue: u16, chain: &mut Chain) -> Result<bool, QueueError> {
        let ram = self.ram;
        self.get(queue).map_or(Ok(false), |q| q.pop(ram, chain))
    }

    /// The buffers taken last are as if they had not been taken.
    pub fn unpop(&mut self, queue: u16) {
        if let Some(queue) = self.get(queue) {
            queue.unpop();
        }
    }

    /// Hands buffers back, with the number of bytes written to them.
    pub fn push(&mut self, queue: u16, chain: &Chain, written: u32) -> Result<(), QueueError> {
        let ram = self.ram;
        self.get(queue)
            .map_or(Ok(()), |q| q.push(ram, chain, written))
    }

    /// Hands several buffers back, which the driver sees all at once.
    pub fn push_all(&mut self, queue: u16, done: &[(&Chain, u32)]) -> Result<(), QueueError> {
        let ram = self.ram;
        self.get(queue).map_or(Ok(()), |q| q.push_all(ram, done))
    }

    /// Interrupts the driver, if it wants to know of what was handed back.
    pub fn interrupt(&mut self, queue: u16) -> Result<(), QueueError> {
        let ram = self.ram;
        let wants = self
            .get(queue)
            .map_or(Ok(false), |q| q.wants_interrupt(ram))?;
        if wants {
            (self.interrupt)(queue);
        }
        Ok(())
    }

    /// Whether the driver is to notify of more buffers, which is only a hint
    /// to it. Returns whether there are some.
    pub fn expect(&mut self, queue: u16, notify: bool) -> Result<bool, QueueError> {
        let ram = self.ram;
        self.get(queue).map_or(Ok(false), |q| q.expect(ram, notify))
    }

    /// Whether buffers wait in `queue`.
    pub fn waits(&mut self, queue: u16) -> Result<bool, QueueError> {
        let ram = self.ram;
        self.get(queue).map_or(Ok(false), |q| q.waits(ram))
    }
}

/// Serves the requests of one queue by a handler.
pub struct Requests {
    queue: u16,
    handler: Box<dyn QueueHandler>,
    chain: Chain,
}

impl Requests {
    /// Of queue `queue`.
    pub fn new(queue: u16, handler: Box<dyn QueueHandler>) -> Self {
        Requests {
            queue,
            handler,
            chain: Chain::default(),
        }
    }
}

impl Service for Requests {
    fn serve(&mut self, queues: &mut Queues<'_>) -> Result<Next, QueueError> {
        let (ram, live, interrupt) = (queues.ram, queues.live, queues.interrupt);
        let index = self.queue;
        if let Some(queue) = queues.get(index) {
            let (handler, chain) = (&mut *self.handler, &mut self.chain);
            let served = serve(queue, handler, ram, chain, live, || interrupt(index))?;
            if let Served::Later(Some(wait)) = served {
                return Ok(Next {
                    again: false,
                    deadline: Instant::now().checked_add(wait),
                });
            }
        }
        Ok(Next::default())
    }
}
