//! How the guest uses its memory (virtio 1.2, 5.5.6.3).
//!
//! ```text
//!          ask              buffer            buffer
//! idle ──────────► asked ──────────► refilled ──────► idle, and an answer
//!                    (what lay there    (what the driver
//!                     goes back)         has just written)
//! ```

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use croft_memory::GuestRam;

use super::Balloon;
use crate::lock;
use crate::virtio::{Chain, QueueError, QueueHandler};

/// Bytes of one entry: a tag of 2 and a value of 8.
const ENTRY: usize = 10;
/// Entries looked at; there are 16 kinds.
const ENTRIES_MAX: usize = 64;
/// How often the buffer comes before its contents count.
const ROUNDS: u8 = 2;

macro_rules! statistics {
    ($($(#[$doc:meta])* $name:ident = $tag:literal;)*) => {
        /// What a guest says of its memory; what it does not say is `None`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct BalloonStatistics {
            $($(#[$doc])* pub $name: Option<u64>,)*
        }

        impl BalloonStatistics {
            fn set(&mut self, tag: u16, value: u64) {
                match tag {
                    $($tag => self.$name = Some(value),)*
                    // Of a later standard.
                    _ => {}
                }
            }
        }
    };
}

statistics! {
    /// Bytes swapped in.
    swapped_in = 0;
    /// Bytes swapped out.
    swapped_out = 1;
    /// Page faults that needed a disk.
    major_faults = 2;
    /// Page faults that did not.
    minor_faults = 3;
    /// Bytes not used for anything.
    free = 4;
    /// Bytes there are.
    total = 5;
    /// Bytes that could be used without swapping.
    available = 6;
    /// Bytes of caches that could be dropped.
    caches = 7;
    /// Huge pages handed out.
    huge_pages = 8;
    /// Huge pages that could not be handed out.
    huge_pages_failed = 9;
    /// Processes killed for want of memory.
    killed = 10;
}

impl BalloonStatistics {
    /// From a buffer, of which the driver may have made anything.
    fn parse(bytes: &[u8]) -> Self {
        let mut statistics = BalloonStatistics::default();
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        for [t0, t1, value @ ..] in entries {
            statistics.set(u16::from_le_bytes([*t0, *t1]), u64::from_le_bytes(*value));
        }
        statistics
    }
}

#[derive(Default)]
struct State {
    /// The buffer is wanted this often.
    rounds: u8,
    /// Moves with every answer.
    answers: u64,
    latest: BalloonStatistics,
}

/// Between who asks and the queue's worker.
#[derive(Default)]
pub struct Exchange {
    state: Mutex<State>,
    answered: Condvar,
}

impl Exchange {
    /// Wakes the worker and waits for an answer.
    pub fn ask(&self, patience: Duration, wake: impl FnOnce()) -> Option<BalloonStatistics> {
        let mut state = lock(&self.state);
        if state.rounds == 0 {
            state.rounds = ROUNDS;
        }
        let before = state.answers;
        wake();
        let waited = self
            .answered
            .wait_timeout_while(state, patience, |state| state.answers == before);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (state.answers != before).then_some(state.latest)
    }

    fn wanted(&self) -> bool {
        lock(&self.state).rounds > 0
    }

    fn arrived(&self, statistics: BalloonStatistics) {
        let mut state = lock(&self.state);
        state.rounds = state.rounds.saturating_sub(1);
        if state.rounds == 0 {
            state.latest = statistics;
            state.answers += 1;
            self.answered.notify_all();
        }
    }
}

/// The queue's handler.
pub struct Statistics(pub Arc<Balloon>);

impl QueueHandler for Statistics {
    fn ready(&mut self) -> bool {
        self.0.exchange.wanted()
    }

    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> Result<u32, QueueError> {
        let mut bytes = [0; ENTRY * ENTRIES_MAX];
        let len = chain.readable.read(ram, 0, &mut bytes)?;
        let given = bytes.get(..len).unwrap_or_default();
        self.0.exchange.arrived(BalloonStatistics::parse(given));
        Ok(0)
    }
}
