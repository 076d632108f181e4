//! A service's hold on what is behind its NIC.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use croft_net::Backend;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Events taken at once; more wait.
const EVENTS: usize = 8;

/// Some of a backend's descriptors, each with what was heard of it.
pub struct Port {
    /// `None` when the host has no room for one more: nothing is heard then.
    poll: Option<Epoll>,
    changes: EventSet,
    backend: Option<Arc<Backend>>,
    /// Which sources are watched, and whether there may be something to do
    /// at them.
    ready: Vec<(usize, bool)>,
}

impl Port {
    /// Hears of `changes`.
    pub fn new(changes: EventSet) -> Self {
        Port {
            poll: Epoll::new().ok(),
            changes: changes | EventSet::EDGE_TRIGGERED,
            backend: None,
            ready: Vec::new(),
        }
    }

    /// Readable when something was heard.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.poll.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// What it holds.
    pub fn backend(&self) -> Option<&Arc<Backend>> {
        self.backend.as_ref()
    }

    /// Holds `backend` from now on, and watches `sources` of it. True if that
    /// is a change.
    pub fn hold(
        &mut self,
        backend: Option<Arc<Backend>>,
        sources: impl Fn(&Backend) -> Vec<usize>,
    ) -> bool {
        let wanted = backend.as_deref().map(&sources).unwrap_or_default();
        let same = match (&self.backend, &backend) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        let watched = || self.ready.iter().map(|(source, _)| *source);
        if same && watched().eq(wanted.iter().copied()) {
            return false;
        }
        for source in watched() {
            self.watch(ControlOperation::Delete, source);
        }
        self.backend = backend;
        // A descriptor that is ready now says so at once.
        for source in &wanted {
            self.watch(ControlOperation::Add, *source);
        }
        self.ready = wanted.into_iter().map(|source| (source, true)).collect();
        true
    }

    fn watch(&self, operation: ControlOperation, source: usize) {
        let descriptor: Option<BorrowedFd<'_>> = self
            .backend
            .as_ref()
            .and_then(|backend| backend.descriptor(source));
        if let (Some(poll), Some(descriptor)) = (&self.poll, descriptor) {
            let event = EpollEvent::new(self.changes, source as u64);
            // One that cannot be watched is served whenever the driver calls.
            let _ = poll.ctl(operation, descriptor.as_raw_fd(), event);
        }
    }

    /// Takes what was heard.
    pub fn hear(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        let Some(poll) = &self.poll else { return };
        let count = loop {
            match poll.wait(0, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.unwrap_or(0),
            }
        };
        for event in events.iter().take(count) {
            let of = self.ready.iter_mut();
            let heard = of.filter(|(source, _)| *source as u64 == event.data());
            heard.for_each(|(_, ready)| *ready = true);
        }
    }

    /// A source at which there may be something to do, from `place` on.
    pub fn next(&self, place: usize) -> Option<usize> {
        let rest = self.ready.get(place..).unwrap_or_default();
        rest.iter().position(|(_, ready)| *ready).map(|n| place + n)
    }

    /// Number of the source at `place`.
    pub fn source(&self, place: usize) -> Option<usize> {
        self.ready.get(place).map(|(source, _)| *source)
    }

    /// Nothing can be done at the source at `place` until something is heard
    /// of it.
    pub fn rest(&mut self, place: usize) {
        if let Some((_, ready)) = self.ready.get_mut(place) {
            // Where nothing is heard it is looked at whenever the driver
            // calls.
            *ready = self.poll.is_none();
        }
    }
}
