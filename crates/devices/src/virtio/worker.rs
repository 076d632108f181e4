//! The thread that serves a queue.
//!
//! ```text
//!            spawn                 wake, doorbell
//! (no thread) ───► waiting ───────────────────────► serving (holds the slot)
//!                   │  ▲                               │ nothing left,
//!                   │  └───────────────────────────────┘ or not live
//!                   └─ drop ─► ended
//! ```
//!
//! The thread is made when a driver first puts the queue to use, and stays.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::thread::JoinHandle;

use croft_isolate::{Role, spawn_sized};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::poll::{EpollContext, EpollEvents};

use super::QueueHandler;
use super::queue::{ActiveQueue, Chain, serve};
use super::transport::Shared;
use crate::lock;

/// Address space for a worker's stack; it uses a few pages of it.
const STACK: usize = 256 << 10;
/// What an event is about.
const WAKE: u32 = 0;
const DOORBELL: u32 = 1;

/// A queue in use, and what serves it.
pub struct InUse {
    pub queue: ActiveQueue,
    pub handler: Box<dyn QueueHandler>,
}

/// What worker and transport share.
struct Link {
    index: u16,
    role: Role,
    shared: Arc<Shared>,
    wake: EventFd,
    poll: EpollContext<u32>,
    stop: AtomicBool,
    doorbell: Mutex<Option<EventFd>>,
    /// Held while requests are served.
    slot: Mutex<Option<InUse>>,
}

/// A queue's worker. Its thread has ended when this is dropped.
pub struct Worker {
    link: Arc<Link>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// For queue `index`, without a thread yet, which will have this role.
    pub fn new(index: u16, role: Role, shared: Arc<Shared>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let poll = EpollContext::new().map_err(io::Error::from)?;
        poll.add(&wake, WAKE).map_err(io::Error::from)?;
        Ok(Worker {
            link: Arc::new(Link {
                index,
                role,
                shared,
                wake,
                poll,
                stop: AtomicBool::new(false),
                doorbell: Mutex::new(None),
                slot: Mutex::new(None),
            }),
            thread: None,
        })
    }

    /// Makes the thread, if there is none yet.
    pub fn spawn(&mut self) -> io::Result<()> {
        if self.thread.is_none() {
            let link = self.link.clone();
            let name = format!("{}-{}", link.shared.name, link.index);
            let thread = spawn_sized(link.role, name, STACK, move || link.run());
            self.thread = Some(thread?);
        }
        Ok(())
    }

    /// Something may be available.
    pub fn wake(&self) {
        self.link.wake();
    }

    /// For waking it from elsewhere.
    pub fn waker(&self) -> Waker {
        Waker(Arc::downgrade(&self.link))
    }

    /// The queue, unless the worker is serving it.
    pub fn try_slot(&self) -> Option<MutexGuard<'_, Option<InUse>>> {
        match self.link.slot.try_lock() {
            Ok(slot) => Some(slot),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The queue; waits for the request that is being served.
    pub fn slot(&self) -> MutexGuard<'_, Option<InUse>> {
        lock(&self.link.slot)
    }

    /// Replaces the doorbell that the worker hears.
    pub fn set_doorbell(&self, doorbell: Option<EventFd>) {
        let mut current = lock(&self.link.doorbell);
        if let Some(old) = current.take() {
            // It was added, so it can be deleted.
            let _ = self.link.poll.delete(&old);
        }
        if let Some(new) = doorbell
            && self.link.poll.add(&new, DOORBELL).is_ok()
        {
            *current = Some(new);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.link.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// Wakes a worker, as long as there is one.
#[derive(Clone)]
pub struct Waker(Weak<Link>);

impl Waker {
    /// Something may be available, or the handler may be ready.
    pub fn wake(&self) {
        if let Some(link) = self.0.upgrade() {
            link.wake();
        }
    }
}

impl Link {
    fn wake(&self) {
        // A counter at its limit is as good as another signal.
        let _ = self.wake.write(1);
    }

    fn run(&self) {
        let events = EpollEvents::new();
        let mut chain = Chain::default();
        loop {
            match self.poll.wait(&events) {
                Ok(ready) => ready
                    .iter_readable()
                    .for_each(|event| self.hear(event.token())),
                Err(error) => {
                    let text = format!("virtqueue {} cannot be waited for: {error}", self.index);
                    self.shared.fail(&text);
                    return;
                }
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.serve(&mut chain);
        }
    }

    /// Takes a signal back; another thread may have removed the doorbell
    /// meanwhile.
    fn hear(&self, token: u32) {
        if token == WAKE {
            let _ = self.wake.read();
        } else if let Some(doorbell) = &*lock(&self.doorbell) {
            let _ = doorbell.read();
        }
    }

    fn serve(&self, chain: &mut Chain) {
        let shared = &self.shared;
        let mut slot = lock(&self.slot);
        let Some(InUse { queue, handler }) = &mut *slot else {
            return;
        };
        if !shared.live.load(Ordering::SeqCst) {
            return;
        }
        let interrupt = || shared.interrupts.queue(self.index);
        let result = serve(
            queue,
            &mut **handler,
            &shared.ram,
            chain,
            &shared.live,
            interrupt,
        );
        if let Err(error) = result {
            shared.fail(&format!("virtqueue {}: {error}", self.index));
        }
    }
}
