//! qcow2 images, by the library imago over our own storage.
//!
//! ```text
//! Qcow2Disk ── where is this? ──► imago: L1, L2, refcounts, copy on write
//!     │                              │ metadata, in the order of `order`
//!     │ data of the guest's          ▼
//!     └──────────────────────────► ImageFile ──► Storage
//! ```
//!
//! * Layers below the top one are given, each with its format; names in
//!   headers are never followed. A chain is a list, so that it cannot loop.
//! * `header` refuses what is not supported, and sizes that would cost memory.
//! * Data go between guest memory and file directly, at the place that the
//!   library names.
//! * A flush writes the library's caches and then asks the storage; `order`
//!   has what must be lasting before what.
//! * A discarded cluster is a hole at once, and leaves the image's tables. It
//!   is not used for other data before that is lasting: else, after a failure
//!   of the host's, its former place in the disk could show them.
#![allow(unsafe_code)]

mod check;
mod header;
mod image;
mod order;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::PreallocateMode;
use imago::qcow2::{Qcow2, Qcow2CreateBuilder};
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping,
    ShallowMapping,
};

use crate::disk::{Disk, DiskError};
use crate::file::{OpenError, Qcow2Error, check_size};
use crate::memory::{IoMemory, part, total, zero_from};
use crate::probe::Format;
use crate::raw::{check_growth, host};
use crate::storage::Storage;
use header::Header;
use image::ImageFile;
use order::Order;

/// Bytes decompressed at once: no cluster is larger.
const BOUNCE: u64 = 2 << 20;
/// Log2 of the cluster size of images made here: QEMU's own choice.
const CLUSTER_BITS: u32 = 16;
/// Zeros written at once where the image cannot say that there are some.
const ZEROS: u64 = 64 << 10;

/// A qcow2 image and what is below it.
pub struct Qcow2Disk {
    image: FormatAccess<ImageFile>,
    file: ImageFile,
    size: AtomicU64,
    /// Size of the layer below.
    below: u64,
    cluster_bits: u32,
    read_only: bool,
    /// Version 2 has no zeroed clusters.
    has_zeroes: bool,
    /// Held for writing while places of data in the file end.
    places: RwLock<()>,
    /// How often clusters became free, and how many of these times are
    /// lasting.
    freed: AtomicU64,
    settled: AtomicU64,
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Qcow2Disk({} bytes)", self.size())
    }
}

/// A layer below the top one.
fn below(
    layers: &[(Arc<dyn Storage>, Format)],
    number: usize,
) -> Result<Option<FormatAccess<ImageFile>>, OpenError> {
    let Some(((storage, format), rest)) = layers.split_first() else {
        return Ok(None);
    };
    let within = |source: OpenError| OpenError::Backing {
        number,
        source: Box::new(source),
    };
    let layer = match format {
        Format::Raw if !rest.is_empty() => return Err(within(OpenError::RawBacking)),
        Format::Raw => {
            let size = storage.size().map_err(|error| within(error.into()))?;
            check_size(size).map_err(within)?;
            let file = ImageFile::new(storage.clone(), None);
            let raw = file.and_then(|file| Raw::open_image(file, false));
            FormatAccess::new(raw.map_err(|error| within(error.into()))?)
        }
        Format::Qcow2 => {
            let opened = open_layer(storage, rest, true, number).map_err(within)?;
            opened.image
        }
    };
    Ok(Some(layer))
}

/// An image with the layers below it.
struct Opened {
    image: FormatAccess<ImageFile>,
    file: ImageFile,
    header: Header,
    /// Size of the layer below.
    below: u64,
}

fn open_layer(
    storage: &Arc<dyn Storage>,
    rest: &[(Arc<dyn Storage>, Format)],
    read_only: bool,
    number: usize,
) -> Result<Opened, OpenError> {
    let header = Header::read(&**storage)?;
    match (&header.backing, rest.is_empty()) {
        (Some(name), true) => {
            return Err(Qcow2Error::BackingMissing(name.clone()).into());
        }
        (None, false) => return Err(Qcow2Error::NoBacking.into()),
        _ => {}
    }
    let backing = below(rest, number + 1)?;
    let below_size = backing.as_ref().map_or(0, FormatAccess::size);
    let order = match read_only {
        true => None,
        false if header.snapshots => return Err(Qcow2Error::Snapshots.into()),
        false => Some(Order::new(&**storage, &header)?),
    };
    let file = ImageFile::new(storage.clone(), order)?;
    let image: Qcow2<ImageFile> = Qcow2::builder(file.clone())
        .write(!read_only)
        .backing(backing)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())
        .map_err(Qcow2Error::Refused)?;
    Ok(Opened {
        image: FormatAccess::new(image),
        file,
        header,
        below: below_size,
    })
}

impl Qcow2Disk {
    /// The image in the first of `layers`, over the others.
    pub fn open(layers: &[(Arc<dyn Storage>, Format)], read_only: bool) -> Result<Self, OpenError> {
        let ((storage, _), rest) = layers.split_first().ok_or(OpenError::NoLayers)?;
        let opened = open_layer(storage, rest, read_only, 0)?;
        Ok(Qcow2Disk {
            size: AtomicU64::new(opened.header.size),
            below: opened.below,
            cluster_bits: opened.header.cluster_bits,
            has_zeroes: opened.header.version > 2,
            image: opened.image,
            file: opened.file,
            read_only,
            places: RwLock::new(()),
            freed: AtomicU64::new(0),
            settled: AtomicU64::new(0),
        })
    }

    fn read(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<()> {
        let len = total(buffers);
        let mut done = 0;
        while done < len {
            let (mapping, count) = self.image.get_mapping(offset + done, len - done)?;
            let count = count.min(len - done);
            if count == 0 {
                zero_from(buffers, done);
                break;
            }
            match mapping {
                Mapping::Raw {
                    storage, offset, ..
                } if count == len => {
                    storage.read_data(buffers, offset)?;
                }
                Mapping::Raw {
                    storage, offset, ..
                } => {
                    storage.read_data(&part(buffers, done, count), offset)?;
                }
                Mapping::Special { layer, offset, .. } => {
                    let count = count.min(BOUNCE);
                    let mut bounce = vec![0; count as usize];
                    layer.read(&mut bounce[..], offset)?;
                    let mut rest = &bounce[..];
                    for piece in part(buffers, done, count) {
                        let filled = piece.fill_from(rest);
                        rest = rest.get(filled..).unwrap_or_default();
                    }
                    done += count;
                    continue;
                }
                _ => part(buffers, done, count).iter().for_each(IoMemory::zero),
            }
            done += count;
        }
        Ok(())
    }

    /// Writes from byte `done` of `buffers` on; returns how many bytes.
    fn write_some(&self, buffers: &[IoMemory<'_>], offset: u64, done: u64) -> io::Result<u64> {
        let len = total(buffers);
        let (at, left) = (offset + done, len - done);
        // A compressed cluster becomes free when it is written to.
        let (before, covered) = self.image.get_shallow_mapping(at, left)?;
        let compressed = matches!(before, ShallowMapping::Special { .. });
        let left = if compressed { left.min(covered) } else { left };
        let mapping = self.image.prepare_data_mapping(at, left, true)?;
        let count = mapping.length().min(left);
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let new = !mapping.is_nonblocking();
        let (file, place) = (mapping.storage(), mapping.offset());
        if count == len {
            file.write_data(buffers, place, new)?;
        } else {
            file.write_data(&part(buffers, done, count), place, new)?;
        }
        self.image.commit_data_mapping(mapping)?;
        if compressed {
            self.freed.fetch_add(1, Ordering::SeqCst);
        }
        Ok(count)
    }

    fn write(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<()> {
        let len = total(buffers);
        let mut done = 0;
        while done < len {
            let _places = self.settled_places()?;
            done += self.write_some(buffers, offset, done)?;
        }
        Ok(())
    }

    /// Keeps the places of data as they are, once the release of clusters is
    /// lasting: new data can come into them.
    fn settled_places(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        loop {
            let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
            if self.freed.load(Ordering::SeqCst) == self.settled.load(Ordering::SeqCst) {
                return Ok(places);
            }
            drop(places);
            self.sync()?;
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let (mark, freed) = self.write_caches(&mut places)?;
        drop(places);
        self.file.flush(mark)?;
        self.settled.fetch_max(freed, Ordering::SeqCst);
        Ok(())
    }

    /// Lets the library write its caches while nobody else changes anything.
    fn write_caches(&self, _alone: &mut RwLockWriteGuard<'_, ()>) -> io::Result<(u64, u64)> {
        let freed = self.freed.load(Ordering::SeqCst);
        self.image.flush()?;
        Ok((self.file.mark(), freed))
    }

    /// Punches holes where data of the range are in the file, wherever that
    /// is the only use of them. Nothing may hold a place meanwhile.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let (mapping, count) = self.image.get_shallow_mapping(offset + done, len - done)?;
            let count = count.min(len - done);
            if let ShallowMapping::Raw {
                storage,
                offset,
                writable: true,
                ..
            } = mapping
            {
                storage.punch(offset, count)?;
            }
            if count == 0 {
                break;
            }
            done += count;
        }
        Ok(())
    }

    fn release(&self, offset: u64, len: u64, zero: bool) -> io::Result<()> {
        let _alone = self.places.write().unwrap_or_else(PoisonError::into_inner);
        if zero && !self.has_zeroes {
            return self.write_zeros_by_hand(offset, len);
        }
        self.punch(offset, len)?;
        if !self.has_zeroes {
            // The clusters stay, as holes.
            return Ok(());
        }
        self.freed.fetch_add(1, Ordering::SeqCst);
        // SAFETY: nobody holds a place in the file, as `places` is locked.
        unsafe {
            if zero {
                self.image.discard_to_zero_unsafe(offset, len)
            } else {
                self.image.discard_to_any_unsafe(offset, len)
            }
        }
    }

    fn write_zeros_by_hand(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; ZEROS.min(len) as usize];
        let mut done = 0;
        while done < len {
            let count = (len - done).min(ZEROS);
            let piece = zeros.get(..count as usize).unwrap_or_default();
            done += self.write_some(&[IoMemory::of_shared(piece)], offset + done, 0)?;
        }
        Ok(())
    }

    fn grow(&self, size: u64) -> io::Result<()> {
        let mut alone = self.places.write().unwrap_or_else(PoisonError::into_inner);
        // What a longer backing file has there is not the guest's.
        let mode = if self.below > self.size() {
            PreallocateMode::Zero
        } else {
            PreallocateMode::None
        };
        self.image.resize_grow(size, mode)?;
        let (mark, _) = self.write_caches(&mut alone)?;
        self.file.flush(mark)
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        if !self.read_only {
            // Nobody is left who could be told: what was flushed is there.
            let _ = self.sync();
        }
    }
}

/// An error of the library's or the host's with what was attempted.
fn failed(what: &'static str, offset: u64, len: u64) -> impl FnOnce(io::Error) -> DiskError {
    move |error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            DiskError::Damaged(error.to_string())
        }
        _ => host(what, offset, len)(error),
    }
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError> {
        let len = total(buffers);
        self.check(offset, len)?;
        let _places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        self.read(buffers, offset)
            .map_err(failed("read", offset, len))
    }

    fn write_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError> {
        let len = total(buffers);
        self.check_change(offset, len)?;
        self.write(buffers, offset)
            .map_err(failed("write", offset, len))
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        self.sync().map_err(failed("flush", 0, self.size()))
    }

    fn resize(&self, size: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        check_growth(self.size(), size)?;
        if header::l1_bytes(size, self.cluster_bits).is_none() {
            return Err(DiskError::Resize {
                wanted: size,
                why: "the image's clusters are too small for it".to_owned(),
            });
        }
        self.grow(size).map_err(|error| DiskError::Resize {
            wanted: size,
            why: error.to_string(),
        })?;
        self.size.fetch_max(size, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        self.release(offset, len, false)
            .map_err(failed("discard", offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        let done = if unmap {
            self.release(offset, len, true)
        } else {
            let _alone = self.places.write().unwrap_or_else(PoisonError::into_inner);
            match self.has_zeroes {
                true => self.image.write_zeroes(offset, len),
                false => self.write_zeros_by_hand(offset, len),
            }
        };
        done.map_err(failed("write zeros to", offset, len))
    }
}

/// Makes an image of `size` bytes in `storage`, which has the name of a
/// backing file in its header if there is one: name and format.
pub fn create(
    storage: Arc<dyn Storage>,
    size: u64,
    backing: Option<(String, Format)>,
) -> io::Result<()> {
    storage.set_len(0)?;
    let file = ImageFile::new(storage, Some(Order::empty(CLUSTER_BITS)))?;
    let mut builder: Qcow2CreateBuilder<ImageFile> = Qcow2::create_builder(file.clone())
        .cluster_size(1 << CLUSTER_BITS)
        .size(size);
    if let Some((name, format)) = backing {
        let format = match format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        builder = builder.backing(name, format.to_owned());
    }
    builder.create()?;
    file.flush(file.mark())
}
