//! The host's side of the device: sockets that come from outside.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::switchboard::{CONNECTIONS_MAX, RX};
use crate::lock;
use crate::virtio::Notifier;

/// Connections that the host asks for and that wait for the device; more are
/// refused.
const CONNECTS_MAX: usize = 128;
/// Answers that wait for the device; there are no more questions.
const ANSWERS_MAX: usize = 2 * CONNECTIONS_MAX;

/// Makes connections to the host. Implemented by whoever can.
pub trait VsockHost: Send + Sync {
    /// The guest wants to be connected to `port` of the host: the answer goes
    /// to [`VsockHandle::answer`], under the same `id`. False refuses at
    /// once. Called on the device's worker; must not block.
    fn requested(&self, id: u64, port: u32) -> bool;
}

/// Hands sockets to the device, from any thread. They are connected streams
/// that nobody else reads or writes. Never blocks.
#[derive(Clone)]
pub struct VsockHandle(Arc<Hub>);

impl VsockHandle {
    /// Connects `socket` to `port` of the guest. When the guest has accepted
    /// the socket gets the line `OK <port of the host>`, and from then on what
    /// the guest sends. It is closed when the guest does not accept, which
    /// includes that no driver is at work.
    pub fn connect(&self, port: u32, socket: OwnedFd) {
        self.0.put(|inbox| {
            if inbox.connects.len() < CONNECTS_MAX {
                inbox.connects.push_back((port, socket));
            }
        });
    }

    /// The answer to [`VsockHost::requested`]: a socket, or nothing, which
    /// refuses. One that comes too late is closed.
    pub fn answer(&self, id: u64, socket: Option<OwnedFd>) {
        self.0.put(|inbox| {
            if inbox.answers.len() < ANSWERS_MAX {
                inbox.answers.push_back((id, socket));
            }
        });
    }
}

impl std::fmt::Debug for VsockHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VsockHandle")
    }
}

/// What came from outside and the device has not taken yet.
#[derive(Default)]
pub struct Inbox {
    /// A driver is at work.
    serving: bool,
    pub connects: VecDeque<(u32, OwnedFd)>,
    pub answers: VecDeque<(u64, Option<OwnedFd>)>,
}

/// What device, service and handle share.
pub struct Hub {
    pub host: Arc<dyn VsockHost>,
    notifier: OnceLock<Notifier>,
    inbox: Mutex<Inbox>,
    /// Numbers connections: no number is used twice in a device's life, so
    /// that an answer never meets another question.
    next: AtomicU64,
}

impl Hub {
    pub fn new(host: Arc<dyn VsockHost>) -> Arc<Self> {
        Arc::new(Hub {
            host,
            notifier: OnceLock::new(),
            inbox: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    pub fn handle(self: &Arc<Self>) -> VsockHandle {
        VsockHandle(self.clone())
    }

    /// How the service is woken.
    pub fn set_notifier(&self, notifier: Notifier) {
        // It comes once.
        let _ = self.notifier.set(notifier);
    }

    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A driver comes or goes; what it leaves behind is closed.
    pub fn set_serving(&self, serving: bool) {
        let inbox = Inbox {
            serving,
            ..Inbox::default()
        };
        let left = std::mem::replace(&mut *lock(&self.inbox), inbox);
        drop(left);
    }

    /// Everything that has come.
    pub fn take(&self) -> Inbox {
        let mut inbox = lock(&self.inbox);
        let serving = inbox.serving;
        std::mem::replace(
            &mut *inbox,
            Inbox {
                serving,
                ..Inbox::default()
            },
        )
    }

    fn put(&self, add: impl FnOnce(&mut Inbox)) {
        {
            let mut inbox = lock(&self.inbox);
            if !inbox.serving {
                return;
            }
            add(&mut inbox);
        }
        if let Some(notifier) = self.notifier.get() {
            notifier.wake(RX);
        }
    }
}
