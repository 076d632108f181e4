//! What is the same in taps and streams.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::stream::StreamReceiver;
use crate::tap::TapReceiver;
use crate::{Header, Lost, Offloads, Stream, Tap};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It goes.
    Taken,
    /// It is none that can go, or the interface is down.
    Dropped,
    /// There is no room: again when the descriptor is writable.
    Full,
    /// There is no other end any more.
    Lost,
}

#[derive(Debug)]
enum Kind {
    Tap(Tap),
    Stream(Stream),
}

#[derive(Debug)]
enum Source {
    Tap(TapReceiver),
    Stream(StreamReceiver),
}

/// Carries frames both ways; from any number of threads.
#[derive(Debug)]
pub struct Backend {
    kind: Kind,
    /// One for each descriptor.
    sources: Vec<Mutex<Source>>,
}

impl From<Tap> for Backend {
    fn from(tap: Tap) -> Self {
        let source = || Mutex::new(Source::Tap(TapReceiver::new()));
        Backend {
            sources: tap.queues().iter().map(|_| source()).collect(),
            kind: Kind::Tap(tap),
        }
    }
}

impl From<Stream> for Backend {
    fn from(stream: Stream) -> Self {
        Backend {
            kind: Kind::Stream(stream),
            sources: vec![Mutex::new(Source::Stream(StreamReceiver::new()))],
        }
    }
}

impl Backend {
    /// How many descriptors frames come from.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// One of them, counted from 0.
    pub fn descriptor(&self, source: usize) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Tap(tap) => tap.queues().get(source).map(AsFd::as_fd),
            Kind::Stream(stream) => (source == 0).then(|| stream.socket()),
        }
    }

    /// Which descriptor says when there is room for frames that pair `pair`
    /// of queues sends.
    pub fn sink(&self, pair: usize) -> Option<BorrowedFd<'_>> {
        self.descriptor(pair.checked_rem(self.sources.len())?)
    }

    /// What the guest takes over. On a stream nothing is left to it; but
    /// without the feature it does not hear that checksums are right.
    pub fn set_offloads(&self, offloads: Offloads) -> std::io::Result<()> {
        match &self.kind {
            Kind::Tap(tap) => tap.set_offloads(offloads),
            Kind::Stream(stream) => {
                stream.set_valid(offloads.contains(Offloads::CSUM));
                Ok(())
            }
        }
    }

    /// Shows the other end that the guest's cable is plugged in, or is not. On
    /// a stream nobody can be shown that.
    pub fn set_carrier(&self, carrier: bool) -> std::io::Result<()> {
        match &self.kind {
            Kind::Tap(tap) => tap.set_carrier(carrier),
            Kind::Stream(_) => Ok(()),
        }
    }

    /// For taking frames out of a source.
    pub fn receiver(&self, source: usize) -> Option<Receiver<'_>> {
        let lock = self.sources.get(source)?;
        Some(Receiver {
            backend: self,
            source: lock.lock().unwrap_or_else(PoisonError::into_inner),
            descriptor: self.descriptor(source)?,
        })
    }

    /// Takes a frame of pair `pair` of queues. It may stay here until
    /// [`flush`](Self::flush). `scratch` is for work on it.
    pub fn send<B: BitmapSlice>(
        &self,
        pair: usize,
        header: Header,
        pieces: &[VolatileSlice<'_, B>],
        scratch: &mut Vec<u8>,
    ) -> Sent {
        match &self.kind {
            Kind::Tap(tap) => tap.send(pair, header, pieces, scratch),
            Kind::Stream(stream) => stream.send(header, pieces, scratch),
        }
    }

    /// Hands over what was taken.
    pub fn flush(&self) -> Sent {
        match &self.kind {
            Kind::Tap(_) => Sent::Taken,
            Kind::Stream(stream) => stream.flush(),
        }
    }
}

/// Takes frames out of a source, which no other thread does meanwhile.
#[derive(Debug)]
pub struct Receiver<'a> {
    backend: &'a Backend,
    source: MutexGuard<'a, Source>,
    descriptor: BorrowedFd<'a>,
}

impl Receiver<'_> {
    /// The next frame, which stays until it is [taken](Self::take); `None`
    /// until the descriptor is readable.
    pub fn peek(&mut self) -> Result<Option<(Header, &[u8])>, Lost> {
        match &mut *self.source {
            Source::Tap(source) => source.peek(self.descriptor),
            Source::Stream(source) => {
                let frame = source.peek(self.descriptor)?;
                let header = match &self.backend.kind {
                    Kind::Stream(stream) => stream.header(),
                    Kind::Tap(_) => Header::default(),
                };
                Ok(frame.map(|frame| (header, frame)))
            }
        }
    }

    /// The frame in hand is dealt with.
    pub fn take(&mut self) {
        match &mut *self.source {
            Source::Tap(source) => source.take(),
            Source::Stream(source) => source.take(),
        }
    }
}
