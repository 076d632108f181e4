//! An image file as the library below sees it.
//!
//! Guest data do not come this way: they are transferred between guest memory
//! and file by [`ImageFile::read_data`] and [`ImageFile::write_data`], at the
//! places that the library names.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

use super::order::{Entries, Order, Part};
use crate::memory::{IoMemory, total, zero_from};
use crate::storage::{Storage, write_zeros};

/// A layer's file. Clones are the same file.
#[derive(Clone, Debug)]
pub struct ImageFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    storage: Arc<dyn Storage>,
    /// What lies before this was there once.
    end: AtomicU64,
    /// Of an image that is written.
    order: Option<Mutex<Order>>,
    helper: CommonStorageHelper,
}

impl ImageFile {
    /// Over `storage`; with the order of its parts if it is written.
    pub fn new(storage: Arc<dyn Storage>, order: Option<Order>) -> io::Result<Self> {
        Ok(ImageFile(Arc::new(Inner {
            end: AtomicU64::new(storage.size()?),
            storage,
            order: order.map(Mutex::new),
            helper: CommonStorageHelper::default(),
        })))
    }

    /// Reads data of the guest's. What is beyond the end of the file are
    /// zeros, unless the file was longer once.
    pub fn read_data(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<()> {
        let got = self.0.storage.read(buffers, offset)?;
        let len = total(buffers);
        if got == len {
            return Ok(());
        }
        let known = self.0.end.load(Ordering::SeqCst);
        let wanted = offset.saturating_add(len).min(known);
        if offset + got < wanted {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "the image file ends at byte {}, it was made shorter meanwhile",
                    offset + got
                ),
            ));
        }
        zero_from(buffers, got);
        Ok(())
    }

    /// Writes data of the guest's, to a `new` place or over others.
    pub fn write_data(&self, buffers: &[IoMemory<'_>], offset: u64, new: bool) -> io::Result<()> {
        self.0.storage.write(buffers, offset)?;
        self.0.longer(offset, total(buffers));
        if new {
            self.0.wrote(Part::New);
        }
        Ok(())
    }

    /// Gives the space of data back that have no meaning any more.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.0.storage.punch(offset, len)
    }

    /// What [`flush`](Self::flush) is told after the library has written its
    /// caches.
    pub fn mark(&self) -> u64 {
        match &self.0.order {
            Some(order) => lock(order).mark(),
            None => 0,
        }
    }

    /// Brings everything to stable storage, and enters the tables that were
    /// made before `mark`.
    pub fn flush(&self, mark: u64) -> io::Result<()> {
        let storage = &self.0.storage;
        let Some(order) = &self.0.order else {
            return storage.flush();
        };
        // Held, so that what is written meanwhile is not taken for lasting.
        let mut order = lock(order);
        storage.flush()?;
        order.flushed();
        self.0.enter(&mut order, |order| order.due(mark))?;
        if order.is_unflushed() {
            storage.flush()?;
            order.flushed();
        }
        Ok(())
    }
}

fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    order.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn wrote(&self, part: Part) {
        if let Some(order) = &self.order {
            lock(order).wrote(part);
        }
    }

    fn longer(&self, offset: u64, len: u64) {
        self.end
            .fetch_max(offset.saturating_add(len), Ordering::SeqCst);
    }

    /// Writes entries that were put off, each of which `next` tells.
    fn enter(
        &self,
        order: &mut Order,
        next: impl Fn(&Order) -> Option<(u64, &Entries)>,
    ) -> io::Result<()> {
        while let Some((offset, entries)) = next(order) {
            if order.needs_flush(Part::Root) {
                self.storage.flush()?;
                order.flushed();
                continue;
            }
            let bytes = [IoMemory::of_shared(&entries.bytes)];
            self.storage.write(&bytes, offset)?;
            order.entered(offset);
        }
        Ok(())
    }

    /// Writes what the library writes, in the order that lasts.
    fn write(&self, pieces: &[IoMemory<'_>], offset: u64) -> io::Result<()> {
        let Some(order) = &self.order else {
            return Err(io::ErrorKind::PermissionDenied.into());
        };
        let mut order = lock(order);
        let part = order.part(offset);
        let len = total(pieces);
        if part == Part::New {
            order.wrote(part);
            drop(order);
            self.storage.write(pieces, offset)?;
            self.longer(offset, len);
            return Ok(());
        }
        if part == Part::Root {
            let mut bytes = vec![0; len as usize];
            let mut at = 0;
            for piece in pieces {
                at += piece.copy_to(bytes.get_mut(at..).unwrap_or_default());
            }
            order.learn(offset, &bytes);
            if order.put_off(offset, &bytes) {
                return Ok(());
            }
        }
        if part == Part::L2 {
            self.enter(&mut order, Order::due_refcounts)?;
        }
        if order.needs_flush(part) {
            self.storage.flush()?;
            order.flushed();
        }
        order.wrote(part);
        self.storage.write(pieces, offset)?;
        self.longer(offset, len);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if self.order.is_none() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.wrote(Part::New);
        write_zeros(&*self.storage, offset, len, unmap)
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("image file")
    }
}

impl imago::Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        self.0.storage.size()
    }

    // SAFETY: of this and the following: the trait's demands are those of
    // alignment, which is 1 here, and of callers.
    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut slices = buffers.into_inner();
        let pieces: Vec<_> = slices
            .iter_mut()
            .map(|slice| IoMemory::of_bytes(slice))
            .collect();
        self.read_data(&pieces, offset)
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, offset: u64) -> io::Result<()> {
        let slices = buffers.into_inner();
        let pieces: Vec<_> = slices
            .iter()
            .map(|slice| IoMemory::of_shared(slice))
            .collect();
        self.0.write(&pieces, offset)
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zero(offset, len, true)
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zero(offset, len, false)
    }

    unsafe fn pure_discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.storage.punch(offset, len).map(drop)
    }

    /// There are no buffers here; what lasts is [`ImageFile::flush`]'s.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.storage.flush()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.0.helper
    }

    fn resize(&self, size: u64, _mode: PreallocateMode) -> io::Result<()> {
        self.0.storage.set_len(size)
    }
}
