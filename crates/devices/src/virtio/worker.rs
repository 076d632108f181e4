//! The thread that serves a queue, or all of a device's.
//!
//! ```text
//!            spawn            wake, doorbell, the service's own
//! (no thread) ───► waiting ───────────────────────► serving (holds the slot)
//!                   │  ▲                               │ nothing left,
//!                   │  └───────────────────────────────┘ or not live
//!                   └─ drop ─► ended
//! ```
//!
//! The thread is made when a driver first puts the queue to use, and stays.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::thread::JoinHandle;

use croft_isolate::{Role, spawn_sized};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::ActiveQueue;
use super::service::{Next, Queues, Service};
use super::transport::Shared;
use crate::lock;

/// Address space for a worker's stack; it uses a few pages of it.
const STACK: usize = 256 << 10;
/// What an event is about.
const WAKE: u64 = 0;
const SERVICE: u64 = 1;
/// The first queue's; the others follow.
const DOORBELL: u64 = 2;
/// Events taken at once; more wait.
const EVENTS: usize = 8;

/// Queues in use with their numbers, and what serves them.
pub struct InUse {
    pub queues: Vec<(u16, ActiveQueue)>,
    pub service: Box<dyn Service>,
}

/// What worker and transport share.
struct Link {
    /// The first queue.
    index: u16,
    role: Role,
    shared: Arc<Shared>,
    wake: EventFd,
    poll: Epoll,
    stop: AtomicBool,
    /// By queue.
    doorbells: Mutex<Vec<(u16, EventFd)>>,
    /// Held while requests are served.
    slot: Mutex<Option<InUse>>,
}

/// A worker. Its thread has ended when this is dropped.
pub struct Worker {
    link: Arc<Link>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// For queue `index`, the first if there are several; without a thread
    /// yet, which will have this role.
    pub fn new(index: u16, role: Role, shared: Arc<Shared>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let poll = Epoll::new()?;
        watch(&poll, wake.as_raw_fd(), WAKE)?;
        Ok(Worker {
            link: Arc::new(Link {
                index,
                role,
                shared,
                wake,
                poll,
                stop: AtomicBool::new(false),
                doorbells: Mutex::default(),
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

    /// Replaces the doorbell of queue `queue` that the worker hears.
    pub fn set_doorbell(&self, queue: u16, doorbell: Option<EventFd>) {
        let mut doorbells = lock(&self.link.doorbells);
        doorbells.retain(|(of, old)| {
            if *of == queue {
                // It was added, so it can be deleted.
                let event = EpollEvent::default();
                let poll = &self.link.poll;
                let _ = poll.ctl(ControlOperation::Delete, old.as_raw_fd(), event);
            }
            *of != queue
        });
        if let Some(new) = doorbell {
            let token = DOORBELL + u64::from(queue);
            if watch(&self.link.poll, new.as_raw_fd(), token).is_ok() {
                doorbells.push((queue, new));
            }
        }
    }
}

fn watch(poll: &Epoll, descriptor: RawFd, token: u64) -> io::Result<()> {
    let event = EpollEvent::new(EventSet::IN, token);
    poll.ctl(ControlOperation::Add, descriptor, event)
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
        let mut events = [EpollEvent::default(); EVENTS];
        let mut next = Next::default();
        loop {
            match self.poll.wait(timeout(next), &mut events) {
                Ok(count) => events
                    .iter()
                    .take(count)
                    .for_each(|event| self.hear(event.data())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let text = format!("virtqueue {} cannot be waited for: {error}", self.index);
                    self.shared.fail(&text);
                    return;
                }
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            next = self.serve();
        }
    }

    /// Takes a signal back; another thread may have removed the doorbell
    /// meanwhile. The service looks at its descriptor itself.
    fn hear(&self, token: u64) {
        if token == WAKE {
            let _ = self.wake.read();
        } else if let Some(queue) = token.checked_sub(DOORBELL) {
            let doorbells = lock(&self.doorbells);
            let doorbell = doorbells.iter().find(|(of, _)| u64::from(*of) == queue);
            if let Some((_, doorbell)) = doorbell {
                let _ = doorbell.read();
            }
        }
    }

    fn serve(&self) -> Next {
        let shared = &self.shared;
        let mut slot = lock(&self.slot);
        let Some(InUse { queues, service }) = &mut *slot else {
            return Next::default();
        };
        if !shared.live.load(Ordering::SeqCst) {
            return Next::default();
        }
        let interrupt = |queue| shared.interrupts.queue(queue);
        let mut queues = Queues::new(queues, &shared.ram, &shared.live, &interrupt);
        let result = service
            .serve(&mut queues)
            .and_then(|next| self.listen(&**service).map(|()| next).map_err(Into::into));
        result.unwrap_or_else(|error| {
            shared.fail(&format!("virtqueue {}: {error}", self.index));
            Next::default()
        })
    }

    /// Hears of the service's descriptor once more. It is heard of no more
    /// than once each time, so that a device that stands still is left alone.
    fn listen(&self, service: &dyn Service) -> io::Result<()> {
        let Some(descriptor) = service.descriptor() else {
            return Ok(());
        };
        let event = EpollEvent::new(EventSet::IN | EventSet::ONE_SHOT, SERVICE);
        // A service that is new is not known yet; one that is gone has taken
        // its descriptor out of the set by closing it.
        match self.poll.ctl(ControlOperation::Modify, descriptor, event) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.poll.ctl(ControlOperation::Add, descriptor, event)
            }
            result => result,
        }
    }
}

/// How long to wait for an event, in milliseconds; -1 is for ever.
fn timeout(next: Next) -> i32 {
    match next.deadline {
        _ if next.again => 0,
        None => -1,
        Some(at) => {
            let left = at.saturating_duration_since(std::time::Instant::now());
            // Not before it.
            i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
        }
    }
}
