//! Pages that go to the host and come back (virtio 1.2, 5.5.6).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use croft_memory::{GuestRam, MemoryError, PAGE_SHIFT, PAGE_SIZE, Range};

use super::Balloon;
use crate::lock;
use crate::virtio::{Chain, QueueError, QueueHandler, RateLimitedLog};

/// Most page numbers of one request; Linux sends 256. They bound how long a
/// request takes.
const NUMBERS_MAX: u64 = 64 << 10;
/// Bytes of a page number.
const NUMBER: u64 = 4;

/// Page numbers come in and their pages go.
pub struct Inflate {
    pub log: Arc<RateLimitedLog>,
}

impl QueueHandler for Inflate {
    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> Result<u32, QueueError> {
        let len = chain.readable.len();
        if len > NUMBERS_MAX * NUMBER {
            return Err(QueueError::Request("names more pages than it may"));
        }
        let mut bytes = vec![0; len as usize];
        chain.readable.read(ram, 0, &mut bytes)?;
        let (numbers, _) = bytes.as_chunks::<{ NUMBER as usize }>();
        let mut numbers: Vec<u32> = numbers.iter().map(|n| u32::from_le_bytes(*n)).collect();
        // Neighbours go together.
        numbers.sort_unstable();
        numbers.dedup();
        for run in numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let Some(first) = run.first() else { continue };
            let range = Range {
                start: u64::from(*first) << PAGE_SHIFT,
                len: (run.len() as u64) << PAGE_SHIFT,
            };
            give_back(ram, range, &self.log)?;
        }
        Ok(0)
    }
}

/// Nothing is to be done: a page is there again when it is touched.
pub struct Deflate;

impl QueueHandler for Deflate {
    fn serve(&mut self, _ram: &GuestRam, _chain: &Chain) -> Result<u32, QueueError> {
        Ok(0)
    }
}

/// Free memory, as the buffers of a request (5.5.6.6).
pub struct Reported {
    pub balloon: Arc<Balloon>,
    /// The driver expects free pages to contain what it says.
    pub poison: bool,
    pub log: Arc<RateLimitedLog>,
}

impl QueueHandler for Reported {
    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> Result<u32, QueueError> {
        // What is given back reads as zeros.
        if self.poison && lock(&self.balloon.config).poison() != 0 {
            return Ok(0);
        }
        for (address, len) in chain.writable.pieces() {
            let end = address.saturating_add(u64::from(*len)) & !(PAGE_SIZE - 1);
            let start = address.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
            if start < end {
                let range = Range {
                    start,
                    len: end - start,
                };
                give_back(ram, range, &self.log)?;
                let count = &self.balloon.reported;
                count.fetch_add(range.len, Ordering::Relaxed);
            }
        }
        Ok(0)
    }
}

/// A host that keeps the pages costs memory and nothing else.
fn give_back(ram: &GuestRam, range: Range, log: &RateLimitedLog) -> Result<(), QueueError> {
    match ram.discard(range) {
        Err(MemoryError::NotRam { address, .. }) => Err(QueueError::NotRam {
            address,
            len: range.len,
        }),
        Err(error) => {
            log.log(&error.to_string());
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
