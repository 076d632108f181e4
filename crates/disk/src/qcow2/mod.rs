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
//!   is not used for other data, nor for a table, before that is lasting: else,
//!   after a failure of the host's, its former place in the disk could show
//!   them. So is what was compressed and is written over.
#![allow(unsafe_code)]

mod check;
mod header;
mod image;
mod order;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LockResult, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

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
    /// L2 tables, by their number, that are surely there.
    tables: Mutex<HashSet<u64>>,
}

/// What is done to a range's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Its clusters are zeros, and keep their places.
    Zero,
    /// Its clusters are zeros, and have no places.
    Free,
    /// As [`Change::Free`], of what is whole clusters; the rest stays.
    Discard,
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
            tables: Mutex::default(),
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

    /// Writes `left` bytes from byte `done` of `buffers` on, or fewer; returns
    /// how many. All of them are mapped in one way, as `unmixed` tells.
    fn write_some(
        &self,
        buffers: &[IoMemory<'_>],
        offset: u64,
        done: u64,
        left: u64,
    ) -> io::Result<u64> {
        let len = total(buffers);
        let mapping = self.image.prepare_data_mapping(offset + done, left, true)?;
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
        Ok(count)
    }

    fn write(&self, buffers: &[IoMemory<'_>], offset: u64) -> io::Result<()> {
        let len = total(buffers);
        let mut done = 0;
        while done < len {
            let places = self.settled(RwLock::read)?;
            let (compressed, left) = self.unmixed(offset + done, len - done)?;
            if !compressed {
                done += self.write_some(buffers, offset, done, left)?;
                continue;
            }
            drop(places);
            // A compressed cluster becomes free when it is written to.
            let _alone = self.settled(RwLock::write)?;
            let (_, left) = self.unmixed(offset + done, len - done)?;
            self.freed.fetch_add(1, Ordering::SeqCst);
            done += self.write_some(buffers, offset, done, left)?;
        }
        Ok(())
    }

    /// How many bytes are mapped as the first one is, and whether compressed.
    fn unmixed(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        let (mapping, count) = self.image.get_shallow_mapping(offset, len)?;
        let compressed = matches!(mapping, ShallowMapping::Special { .. });
        Ok((compressed, if count == 0 { len } else { count.min(len) }))
    }

    /// Locks the places of data once the release of clusters is lasting: new
    /// data, and tables, can come into them.
    fn settled<'a, G>(&'a self, lock: impl Fn(&'a RwLock<()>) -> LockResult<G>) -> io::Result<G> {
        loop {
            let places = lock(&self.places).unwrap_or_else(PoisonError::into_inner);
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

    /// Discards, after which the data are zeros or what they were.
    fn release(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.has_zeroes {
            return self.change_tables(offset, len, Change::Discard);
        }
        // The clusters stay, as holes.
        let _alone = self.places.write().unwrap_or_else(PoisonError::into_inner);
        self.punch(offset, len)
    }

    /// Makes zeros: of clusters by their tables, of parts of clusters as data,
    /// which the library would write into clusters that it has just freed.
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let cluster = 1u64 << self.cluster_bits;
        let end = offset + len;
        let first = offset.next_multiple_of(cluster).min(end);
        let last = match end == self.size() {
            // What is behind the end of the disk is nobody's.
            true => end,
            false => end - end % cluster,
        };
        if !self.has_zeroes || first >= last {
            return self.write_zeros(offset, len);
        }
        self.write_zeros(offset, first - offset)?;
        self.write_zeros(last, end - last)?;
        let change = if unmap { Change::Free } else { Change::Zero };
        self.change_tables(first, last - first, change)
    }

    /// Changes what a range's tables say. What they free is not used for a
    /// table that they do not have yet.
    fn change_tables(&self, offset: u64, len: u64, change: Change) -> io::Result<()> {
        // Of 8 bytes for each cluster (qcow2.txt, "L2 table entry").
        let reach = 1u64 << (2 * self.cluster_bits - 3);
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let table = at / reach;
            let count = (len - done).min(reach - at % reach);
            let known = lock_tables(&self.tables).contains(&table);
            let _alone = match known {
                true => self.places.write().unwrap_or_else(PoisonError::into_inner),
                false => self.settled(RwLock::write)?,
            };
            if change != Change::Zero {
                self.punch(at, count)?;
            }
            if change != Change::Zero || self.has_compressed(at, count)? {
                self.freed.fetch_add(1, Ordering::SeqCst);
            }
            match change {
                Change::Zero => self.image.write_zeroes(at, count)?,
                // SAFETY: nobody holds a place in the file, as `places` is
                // locked for writing.
                Change::Free => unsafe { self.image.discard_to_zero_unsafe(at, count)? },
                // SAFETY: as above.
                Change::Discard => unsafe { self.image.discard_to_any_unsafe(at, count)? },
            }
            lock_tables(&self.tables).insert(table);
            done += count;
        }
        Ok(())
    }

    fn has_compressed(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut done = 0;
        while done < len {
            let (compressed, count) = self.unmixed(offset + done, len - done)?;
            if compressed {
                return Ok(true);
            }
            done += count;
        }
        Ok(false)
    }

    /// Writes zeros where there are others.
    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; ZEROS.min(len) as usize];
        let mut done = 0;
        while done < len {
            let (is_zero, count) = {
                let _places = self.places.read().unwrap_or_else(PoisonError::into_inner);
                let (mapping, count) = self.image.get_mapping(offset + done, len - done)?;
                (matches!(mapping, Mapping::Zero { .. }), count)
            };
            let mut count = count.clamp(1, len - done);
            if !is_zero {
                count = count.min(ZEROS);
                let piece = zeros.get(..count as usize).unwrap_or_default();
                self.write(&[IoMemory::of_shared(piece)], offset + done)?;
            }
            done += count;
        }
        Ok(())
    }

    fn grow(&self, size: u64) -> io::Result<()> {
        let mut alone = self.settled(RwLock::write)?;
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

fn lock_tables(tables: &Mutex<HashSet<u64>>) -> MutexGuard<'_, HashSet<u64>> {
    tables.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.release(offset, len)
            .map_err(failed("discard", offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        self.zero(offset, len, unmap)
            .map_err(failed("write zeros to", offset, len))
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
