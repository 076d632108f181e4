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
    /// Heard of a source that is at rest, and of the others.
    resting: EventSet,
    working: EventSet,
    backend: Option<Arc<Backend>>,
    /// Which sources are watched, and whether there may be something to do
    /// at them.
    ready: Vec<(usize, bool)>,
}

impl Port {
    /// Hears of frames.
    pub fn for_reading() -> Self {
        let frames = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        Self::new(frames, frames)
    }

    /// Hears of room for frames, where there was none: a socket whose other end
    /// reads would tell of room each time, and there nearly always is.
    pub fn for_writing() -> Self {
        Self::new(EventSet::OUT | EventSet::ONE_SHOT, EventSet::EDGE_TRIGGERED)
    }

    fn new(resting: EventSet, working: EventSet) -> Self {
        Port {
            poll: Epoll::new().ok(),
            resting,
            working,
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
            self.watch(ControlOperation::Delete, source, self.working);
        }
        self.backend = backend;
        // A descriptor that is ready now says so at once.
        for source in &wanted {
            self.watch(ControlOperation::Add, *source, self.working);
        }
        self.ready = wanted.into_iter().map(|source| (source, true)).collect();
        true
    }

    /// Whether it is heard of from now on.
    fn watch(&self, operation: ControlOperation, source: usize, changes: EventSet) -> bool {
        let descriptor: Option<BorrowedFd<'_>> = self
            .backend
            .as_ref()
            .and_then(|backend| backend.descriptor(source));
        let (Some(poll), Some(descriptor)) = (&self.poll, descriptor) else {
            return false;
        };
        let event = EpollEvent::new(changes, source as u64);
        poll.ctl(operation, descriptor.as_raw_fd(), event).is_ok()
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
        let Some(source) = self.source(place) else {
            return;
        };
        // If it is not at rest any more that is heard at once.
        let heard = self.poll.is_some()
            && (self.resting == self.working
                || self.watch(ControlOperation::Modify, source, self.resting));
        if let Some((_, ready)) = self.ready.get_mut(place) {
            // Where nothing is heard it is looked at whenever the driver
            // calls.
            *ready = !heard;
        }
    }
}
