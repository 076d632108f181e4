//! Opening and making disks.

use std::fs::File;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::direct::{BLOCK, DirectStorage};
use crate::disk::{Disk, SECTOR};
use crate::file::{LAYERS_MAX, OpenError, check_kind};
use crate::probe::Format;
use crate::qcow2::{self, Qcow2Disk};
use crate::raw::RawDisk;
use crate::storage::{FileStorage, Storage};
use crate::volatile::VolatileStorage;

/// One file of a disk.
#[derive(Debug)]
pub struct Layer {
    /// Open for reading and, if it is the top layer of a disk that is
    /// written, for writing; locked by whoever opened it.
    pub file: File,
    /// What it is.
    pub format: Format,
    /// The format was [`probe`](crate::probe)d: a guest must not be able to
    /// make the file look like another one.
    pub guessed: bool,
}

impl Layer {
    /// A raw image.
    pub fn raw(file: File) -> Self {
        Layer {
            file,
            format: Format::Raw,
            guessed: false,
        }
    }
}

/// What becomes of the host's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// Writes are in the page cache until the guest flushes them.
    #[default]
    Writeback,
    /// The page cache is not used: files come with `O_DIRECT`. Writes may be
    /// in the disk's own cache until the guest flushes them.
    None,
    /// Flushes do nothing: for disks that are thrown away.
    Unsafe,
}

/// Storage for tests of durability: see `VolatileStorage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestStorage {
    /// What was not flushed is lost when the process ends.
    DropUnflushed,
    /// So is what was flushed.
    IgnoreFlushes,
}

/// How a disk is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Every change is refused.
    pub read_only: bool,
    /// See there.
    pub cache: Cache,
    /// It grows to so many bytes if it has less.
    pub at_least: Option<u64>,
    /// For tests.
    pub test: Option<TestStorage>,
}

/// Opens the disk that is in the first of `layers`, the others below it: its
/// backing file, that one's, and so on. No other file is looked at, whatever
/// the images say.
pub fn open(layers: Vec<Layer>, options: OpenOptions) -> Result<Arc<dyn Disk>, OpenError> {
    if layers.len() > LAYERS_MAX {
        return Err(OpenError::Layers(layers.len()));
    }
    let guessed = layers.first().is_some_and(|layer| layer.guessed);
    let storage = layers.into_iter().enumerate().map(|(number, layer)| {
        check_kind(&layer.file).map_err(|source| match number {
            0 => source,
            number => OpenError::Backing {
                number,
                source: Box::new(source),
            },
        })?;
        let storage: Arc<dyn Storage> = match options.cache {
            Cache::None => Arc::new(DirectStorage::new(layer.file)),
            cache => Arc::new(FileStorage::new(layer.file, cache != Cache::Unsafe)),
        };
        let written = number == 0 && !options.read_only && layer.format == Format::Raw;
        if options.cache == Cache::None && written && !storage.size()?.is_multiple_of(BLOCK) {
            return Err(OpenError::Direct(storage.size()?));
        }
        Ok((storage, layer.format))
    });
    let mut storage = storage.collect::<Result<Vec<_>, OpenError>>()?;
    if let (Some(test), Some((top, _))) = (options.test, storage.first_mut()) {
        let flushes = test == TestStorage::DropUnflushed;
        *top = Arc::new(VolatileStorage::new(top.clone(), flushes)?);
    }
    let disk = open_storage(&storage, options.read_only, guessed)?;
    if let Some(size) = options.at_least.filter(|size| *size > disk.size()) {
        disk.resize(size).map_err(OpenError::Grow)?;
    }
    Ok(disk)
}

/// As [`open`], over storage.
pub fn open_storage(
    layers: &[(Arc<dyn Storage>, Format)],
    read_only: bool,
    guessed: bool,
) -> Result<Arc<dyn Disk>, OpenError> {
    match layers {
        [] => Err(OpenError::NoLayers),
        [(storage, Format::Raw)] => {
            let disk = RawDisk::over(storage.clone(), read_only)?;
            Ok(Arc::new(if guessed { disk.guessed() } else { disk }))
        }
        [(_, Format::Raw), _, ..] => Err(OpenError::RawBacking),
        [(_, Format::Qcow2), ..] => Ok(Arc::new(Qcow2Disk::open(layers, read_only)?)),
    }
}

/// Makes an empty disk of `size` bytes in `file`, whose contents are lost.
/// It takes space only as it is written.
pub fn create(file: File, format: Format, size: u64) -> Result<(), OpenError> {
    make(file, format, size, None)
}

/// Makes a qcow2 overlay of `size` bytes in `file`, which contains what
/// differs from its backing file. The backing file's name goes into the
/// header for QEMU's tools; Croft does not look at it.
pub fn create_overlay(
    file: File,
    size: u64,
    backing: &str,
    format: Format,
) -> Result<(), OpenError> {
    let backing = (backing.to_owned(), format);
    make(file, Format::Qcow2, size, Some(backing))
}

fn make(
    file: File,
    format: Format,
    size: u64,
    backing: Option<(String, Format)>,
) -> Result<(), OpenError> {
    check_kind(&file)?;
    if size == 0 || !size.is_multiple_of(SECTOR) {
        let text = format!("{size} bytes cannot be a disk's size, a multiple of {SECTOR} can");
        return Err(OpenError::Create(std::io::Error::other(text)));
    }
    let storage = Arc::new(FileStorage::new(file, true));
    match format {
        Format::Raw => storage
            .set_len(0)
            .and_then(|()| storage.set_len(size))
            .and_then(|()| storage.flush()),
        Format::Qcow2 => qcow2::create(storage, size, backing),
    }
    .map_err(OpenError::Create)
}
