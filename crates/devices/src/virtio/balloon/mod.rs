//! virtio-balloon: memory that the guest gives up (virtio 1.2, 5.5).
//!
//! | queue | request                                                        |
//! |-------|----------------------------------------------------------------|
//! | 0     | inflate: page numbers that the guest does without              |
//! | 1     | deflate: page numbers that it uses again                       |
//! | 2     | statistics, one buffer that goes back and forth                |
//! | 3, 4  | reporting: free memory that the guest does not miss for now    |
//!
//! Memory goes back to the host by two ways. The *balloon* is what an
//! operator asks for ([`BalloonHandle::set_target`]): the guest takes pages
//! out of use until its balloon has that size. *Reporting* is the guest's
//! own: what has been free for a while it tells, and touches again whenever
//! it likes. Either way the pages read as zeros afterwards, and the host
//! backs them when they are next touched.
//!
//! ```text
//! operator ─ set_target ─► num_pages ─ interrupt ─► driver
//!                                                     │ inflate, deflate
//! host ◄── discard ── pages ◄─────────────────────────┤ report
//! operator ◄─ report ── actual ◄── configuration ─────┘
//! ```
//!
//! The statistics buffer stays in its queue until somebody asks
//! ([`BalloonHandle::statistics`]): an idle guest is not woken for them. What
//! lies there may be old, so that it goes back and forth twice.
//!
//! Linux leaves out the numbers of queues that neither side has use for, so
//! that its reporting queue is the fourth; the standard says the fifth. Both
//! report here. Without statistics the third one does as well.
//!
//! What is in the balloon is the driver's affair, so that a saved machine
//! needs no list of it: the pages are zeros, and the driver knows them.

mod config;
mod pages;
mod state;
mod statistics;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use croft_memory::PAGE_SIZE;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::{
    Kind, LogSink, Notifier, QueueHandler, RateLimitedLog, TransportState, VirtioDevice,
    copy_config,
};
use crate::lock;
use crate::saved::{DeviceState, StateError, check_version, damaged};
use config::Config;
use pages::{Deflate, Inflate, Reported};
use state::VERSION;
pub use state::VirtioBalloonState;
pub use statistics::BalloonStatistics;
use statistics::{Exchange, Statistics};

const NAME: &str = "virtio-balloon";
const QUEUE_SIZE: u16 = 128;
const QUEUES: u16 = 5;
/// Bits of the features (5.5.3).
const F_STATISTICS: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_POISON: u64 = 1 << 4;
const F_REPORTING: u64 = 1 << 5;

/// What the device, its handlers and the operator share.
struct Balloon {
    config: Mutex<Config>,
    /// Most pages there can be in it.
    most: u32,
    notifier: OnceLock<Notifier>,
    /// Bytes given back by reporting, all together.
    reported: AtomicU64,
    exchange: Exchange,
}

/// What a balloon is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonReport {
    /// Bytes that the guest was asked to give up.
    pub target: u64,
    /// Bytes that it has given up.
    pub actual: u64,
    /// Bytes of free memory that it has reported since the machine was made.
    /// Memory that was used and freed again counts again.
    pub reported: u64,
}

/// The operator's side of a balloon; clones are of the same one.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Balloon>);

impl BalloonHandle {
    /// Asks the guest to give up `bytes`, rounded down to whole pages and to
    /// what RAM it has. It does so when and as far as it can.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        let changed = lock(&self.0.config).set_target(pages.min(self.0.most));
        if let (true, Some(notifier)) = (changed, self.0.notifier.get()) {
            notifier.config_changed();
        }
    }

    /// What it is doing.
    pub fn report(&self) -> BalloonReport {
        let config = lock(&self.0.config);
        BalloonReport {
            target: u64::from(config.target()) * PAGE_SIZE,
            actual: u64::from(config.actual()) * PAGE_SIZE,
            reported: self.0.reported.load(Ordering::Relaxed),
        }
    }

    /// Asks the guest how it uses its memory; `None` when it does not say
    /// within `patience`.
    pub fn statistics(&self, patience: Duration) -> Option<BalloonStatistics> {
        let notifier = self.0.notifier.get()?;
        self.0.exchange.ask(patience, || notifier.wake(STATISTICS))
    }
}

impl std::fmt::Debug for BalloonHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BalloonHandle({:?})", self.report())
    }
}

/// The statistics queue, where it is negotiated.
const STATISTICS: u16 = 2;

/// The device.
pub struct VirtioBalloon {
    balloon: Arc<Balloon>,
    log: Arc<RateLimitedLog>,
}

impl VirtioBalloon {
    /// For a guest with `memory` bytes of RAM. What the host refuses is
    /// logged under `name`.
    pub fn new(memory: u64, name: &str, log: Arc<dyn LogSink>) -> Self {
        VirtioBalloon {
            balloon: Arc::new(Balloon {
                config: Mutex::default(),
                most: u32::try_from(memory / PAGE_SIZE).unwrap_or(u32::MAX),
                notifier: OnceLock::new(),
                reported: AtomicU64::new(0),
                exchange: Exchange::default(),
            }),
            log: Arc::new(RateLimitedLog::new(name.to_owned(), log)),
        }
    }

    /// For the operator.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(self.balloon.clone())
    }
}

impl VirtioDevice for VirtioBalloon {
    const KIND: Kind = Kind {
        name: NAME,
        id: VIRTIO_ID_BALLOON as u16,
        // Of no class that there is.
        class: 0x00_FF_00,
    };

    fn features(&self) -> u64 {
        F_STATISTICS | F_DEFLATE_ON_OOM | F_PAGE_POISON | F_REPORTING
    }

    fn queues(&self) -> u16 {
        QUEUES
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn config_len(&self) -> usize {
        config::LEN
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&lock(&self.balloon.config).bytes(), offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        lock(&self.balloon.config).write(offset, data);
    }

    fn connect(&mut self, notifier: Notifier) {
        // Only the first call counts, and there is no other.
        let _ = self.balloon.notifier.set(notifier);
    }

    fn handler(&self, queue: u16, features: u64) -> Box<dyn QueueHandler> {
        let log = self.log.clone();
        match queue {
            0 => Box::new(Inflate { log }),
            1 => Box::new(Deflate),
            STATISTICS if features & F_STATISTICS != 0 => {
                Box::new(Statistics(self.balloon.clone()))
            }
            _ => Box::new(Reported {
                balloon: self.balloon.clone(),
                poison: features & F_PAGE_POISON != 0,
                log,
            }),
        }
    }

    fn reset(&mut self) {
        lock(&self.balloon.config).reset();
    }

    fn save(&self, transport: TransportState) -> DeviceState {
        let config = lock(&self.balloon.config);
        DeviceState::VirtioBalloon(VirtioBalloonState {
            version: VERSION,
            target: config.target(),
            actual: config.actual(),
            poison: config.poison(),
            transport,
        })
    }

    fn check<'a>(&self, state: &'a DeviceState) -> Result<&'a TransportState, StateError> {
        let DeviceState::VirtioBalloon(state) = state else {
            return Err(StateError::WrongDevice {
                device: NAME,
                found: state.kind(),
            });
        };
        check_version(NAME, state.version, VERSION)?;
        if state.target > self.balloon.most {
            return Err(damaged(NAME, "it is larger than the machine's memory"));
        }
        Ok(&state.transport)
    }

    fn restore(&mut self, state: &DeviceState) {
        if let DeviceState::VirtioBalloon(state) = state {
            *lock(&self.balloon.config) = Config::new(state.target, state.actual, state.poison);
        }
    }
}
