//! Storage that loses what was not flushed when its process ends, however
//! that ends: for tests of durability, in place of a failure of the power.
//!
//! ```text
//! write, zero ──► memory ──flush──► the storage below, and its flush
//!                   │
//!                   └─ the process ends: gone
//! ```
//!
//! As the control of such a test it can also ignore flushes: then nothing
//! ever reaches the storage below, as with a disk that lies.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::{IoMemory, total};
use crate::storage::{Storage, write_zeros};

/// Bytes that are kept together.
const PAGE: u64 = 4096;

/// What became of a page since the last flush.
#[derive(Debug)]
enum Page {
    Zeros,
    Bytes(Box<[u8; PAGE as usize]>),
}

#[derive(Debug)]
struct State {
    pages: BTreeMap<u64, Page>,
    len: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct VolatileStorage {
    below: Arc<dyn Storage>,
    flushes: bool,
    state: Mutex<State>,
}

impl VolatileStorage {
    /// Over `below`, which changes at a flush only, or without `flushes`
    /// never.
    pub fn new(below: Arc<dyn Storage>, flushes: bool) -> io::Result<Self> {
        let len = below.size()?;
        Ok(VolatileStorage {
            below,
            flushes,
            state: Mutex::new(State {
                pages: BTreeMap::new(),
                len,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes `within..` of a page as they are now.
    fn read_page(
        &self,
        state: &State,
        page: u64,
        within: usize,
        bytes: &mut [u8],
    ) -> io::Result<()> {
        match state.pages.get(&page) {
            Some(Page::Zeros) => bytes.fill(0),
            Some(Page::Bytes(page)) => {
                let rest = page.get(within..).unwrap_or_default();
                bytes
                    .iter_mut()
                    .zip(rest)
                    .for_each(|(to, from)| *to = *from);
            }
            None => {
                bytes.fill(0);
                let offset = page * PAGE + within as u64;
                self.below.read(&[IoMemory::of_bytes(bytes)], offset)?;
            }
        }
        Ok(())
    }

    /// Calls `visit` with each page of a range: its number, and the place and
    /// length of the range in it.
    fn pages(
        offset: u64,
        len: u64,
        mut visit: impl FnMut(u64, usize, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let within = at % PAGE;
            let count = (PAGE - within).min(end - at);
            visit(at / PAGE, within as usize, count as usize)?;
            at += count;
        }
        Ok(())
    }

    fn change(
        &self,
        state: &mut State,
        offset: u64,
        bytes: Option<&[u8]>,
        len: u64,
    ) -> io::Result<()> {
        let mut done = 0;
        VolatileStorage::pages(offset, len, |number, within, count| {
            let from = bytes.map(|bytes| bytes.get(done..done + count).unwrap_or_default());
            done += count;
            if from.is_none() && count as u64 == PAGE {
                state.pages.insert(number, Page::Zeros);
                return Ok(());
            }
            let mut page = Box::new([0; PAGE as usize]);
            self.read_page(state, number, 0, &mut *page)?;
            let place = page.get_mut(within..within + count).unwrap_or_default();
            match from {
                Some(from) => place.copy_from_slice(from),
                None => place.fill(0),
            }
            state.pages.insert(number, Page::Bytes(page));
            Ok(())
        })
    }
}

impl Storage for VolatileStorage {
    fn size(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<u64> {
        let state = self.state();
        let count = total(buffers).min(state.len.saturating_sub(offset));
        let mut bytes = vec![0; count as usize];
        let mut done = 0;
        VolatileStorage::pages(offset, count, |page, within, count| {
            let place = bytes.get_mut(done..done + count).unwrap_or_default();
            done += count;
            self.read_page(&state, page, within, place)
        })?;
        let mut rest = &*bytes;
        for buffer in buffers {
            let filled = buffer.fill_from(rest);
            rest = rest.get(filled..).unwrap_or_default();
        }
        Ok(count)
    }

    fn write(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<()> {
        let len = total(buffers);
        let mut bytes = vec![0; len as usize];
        let mut done = 0;
        for buffer in buffers {
            done += buffer.copy_to(bytes.get_mut(done..).unwrap_or_default());
        }
        let mut state = self.state();
        self.change(&mut state, offset, Some(&bytes), len)?;
        state.len = state.len.max(offset.saturating_add(len));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if !self.flushes {
            return Ok(());
        }
        let mut state = self.state();
        if self.below.size()? != state.len {
            self.below.set_len(state.len)?;
        }
        for (number, page) in &state.pages {
            let offset = number * PAGE;
            let len = PAGE.min(state.len.saturating_sub(offset));
            match page {
                Page::Zeros => write_zeros(&*self.below, offset, len, true)?,
                Page::Bytes(bytes) => {
                    let bytes = bytes.get(..len as usize).unwrap_or_default();
                    self.below.write(&[IoMemory::of_shared(bytes)], offset)?;
                }
            }
        }
        self.below.flush()?;
        state.pages.clear();
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.zero(offset, len)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut state = self.state();
        let len = len.min(state.len.saturating_sub(offset));
        self.change(&mut state, offset, None, len)?;
        Ok(true)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len < state.len {
            let cut = state.len - len;
            self.change(&mut state, len, None, cut)?;
        }
        state.len = len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryStorage;

    fn write(storage: &dyn Storage, offset: u64, bytes: &[u8]) {
        storage
            .write(&[IoMemory::of_shared(bytes)], offset)
            .unwrap();
    }

    fn all(storage: &dyn Storage) -> Vec<u8> {
        let mut bytes = vec![0xEE; storage.size().unwrap() as usize];
        storage.read(&[IoMemory::of_bytes(&mut bytes)], 0).unwrap();
        bytes
    }

    #[test]
    fn only_a_flush_reaches_the_storage() {
        for flushes in [true, false] {
            let below = MemoryStorage::new(&[1; 20_000]);
            let storage = VolatileStorage::new(below.clone(), flushes).unwrap();
            let mut model = vec![1; 20_000];
            write(&storage, 4000, &[2; 5000]);
            model[4000..9000].fill(2);
            storage.zero(8000, 10_000).unwrap();
            model[8000..18_000].fill(0);
            write(&storage, 19_999, &[3; 600]);
            model.resize(20_599, 3);
            model[19_999] = 3;
            assert_eq!(all(&storage), model);
            assert_eq!(below.contents(), [1; 20_000]);
            storage.flush().unwrap();
            let expected = if flushes {
                model.clone()
            } else {
                vec![1; 20_000]
            };
            assert_eq!(below.contents(), expected);
            assert_eq!(all(&storage), model);
            storage.set_len(5000).unwrap();
            storage.set_len(6000).unwrap();
            model.truncate(5000);
            model.resize(6000, 0);
            assert_eq!(all(&storage), model);
        }
    }
}
