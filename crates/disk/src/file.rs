//! Whether an open file can be a disk, and how large it is.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;

use thiserror::Error;

use crate::disk::{DiskError, SECTOR};

/// Why an open file, or a chain of them, cannot be a disk.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It is a directory, a pipe, a socket or a terminal.
    #[error("is {0}; name a regular file or a block device")]
    Kind(&'static str),
    /// It has no bytes.
    #[error("is empty; make it as large as the disk shall be (truncate -s 1G FILE)")]
    Empty,
    /// It ends within a sector.
    #[error("has {0} bytes, not a multiple of 512; it is not a raw disk image, or was cut short")]
    Uneven(u64),
    /// Without the page cache, parts of its last block cannot be written.
    #[error(
        "has {0} bytes, not a multiple of 4096, which cache=none takes; make it larger (truncate -s %4096 FILE), or use cache=writeback"
    )]
    Direct(u64),
    /// Its size cannot be found.
    #[error("its size cannot be found: {0}")]
    Host(#[from] io::Error),
    /// An image of a format that is not one of ours.
    #[error("looks like {0}; convert it with `qemu-img convert -O qcow2`, or say format=raw")]
    Foreign(&'static str),
    /// A qcow2 image that is not opened.
    #[error("is a qcow2 image that cannot be used: {0}")]
    Qcow2(#[from] Qcow2Error),
    /// Something is wrong with a layer below.
    #[error("has a backing file (number {number}) that {source}")]
    Backing {
        /// 1 for the one below the disk itself.
        number: usize,
        /// What is wrong with it.
        source: Box<OpenError>,
    },
    /// Raw images have no layers below.
    #[error("is raw and cannot have a backing file; only a qcow2 image can")]
    RawBacking,
    /// There is nothing to open.
    #[error("has no file")]
    NoLayers,
    /// So many layers are a mistake.
    #[error(
        "has {0} layers, at most {LAYERS_MAX} are possible; merge some with `qemu-img convert`"
    )]
    Layers(usize),
    /// It could not become as large as it shall be.
    #[error("cannot grow: {0}")]
    Grow(#[source] DiskError),
    /// It could not be made.
    #[error("cannot be made: {0}")]
    Create(io::Error),
}

/// What is wrong with a qcow2 image.
#[derive(Debug, Error)]
pub enum Qcow2Error {
    /// Without the magic number.
    #[error("it does not begin as one")]
    Magic,
    /// A version from the future, or the first.
    #[error("it is of version {0}, versions 2 and 3 are possible")]
    Version(u32),
    /// It ends too early.
    #[error("it ends within its {0}; it was cut short")]
    Short(&'static str),
    /// A field that cannot be.
    #[error("its {0} cannot be")]
    Field(&'static str),
    /// It is encrypted.
    #[error("it is encrypted; decrypt it with `qemu-img convert`")]
    Encrypted,
    /// Its data are elsewhere.
    #[error("its data are in another file; merge them with `qemu-img convert`")]
    DataFile,
    /// It was not closed.
    #[error("it was not closed by whoever wrote it last; repair it with `qemu-img check -r all`")]
    Dirty,
    /// It was found to be damaged before.
    #[error("it is marked as damaged; repair it with `qemu-img check -r all`")]
    Corrupt,
    /// Compression other than deflate.
    #[error("its clusters are compressed with zstd; convert it with `qemu-img convert`")]
    Compression,
    /// Extended L2 entries.
    #[error("it has subclusters; convert it with `qemu-img convert -o extended_l2=off`")]
    Subclusters,
    /// Something new.
    #[error("it has features that are not known (bits {0:#x}); convert it with `qemu-img convert`")]
    Features(u64),
    /// Its tables contradict each other.
    #[error("its {0}; repair it with `qemu-img check -r all`")]
    Damaged(&'static str),
    /// It would have to share its tables.
    #[error(
        "it has internal snapshots and can only be read; remove them with `qemu-img snapshot -d`, \
         or make it read-only or a backing file"
    )]
    Snapshots,
    /// The chain that was given is too short.
    #[error("its header names the backing file '{0}'; give that with ',backing=FILE'")]
    BackingMissing(String),
    /// The chain that was given is too long.
    #[error("it has no backing file, but one was given; leave out ',backing='")]
    NoBacking,
    /// The library refused.
    #[error("{0}")]
    Refused(io::Error),
}

/// Most layers of a disk.
pub const LAYERS_MAX: usize = 32;

/// Bytes up to the end of a file or block device.
pub(crate) fn len(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        // A device's end is where seeking to it leads.
        let mut file = file;
        file.seek(SeekFrom::End(0))
    } else {
        Ok(metadata.len())
    }
}

/// Refuses what is neither a regular file nor a block device.
pub fn check_kind(file: &File) -> Result<(), OpenError> {
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(OpenError::Kind(if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "a pipe or socket"
    }))
}

/// Size in bytes of the raw disk that `file`, a regular file or block device,
/// would be.
pub fn check(file: &File) -> Result<u64, OpenError> {
    check_kind(file)?;
    check_size(len(file)?)
}

/// Refuses sizes that a raw disk cannot have.
pub(crate) fn check_size(size: u64) -> Result<u64, OpenError> {
    match size {
        0 => Err(OpenError::Empty),
        size if !size.is_multiple_of(SECTOR) => Err(OpenError::Uneven(size)),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_disk_is_named() {
        let error = |file: &File| check(file).unwrap_err().to_string();
        let directory = File::open("/").unwrap();
        assert!(error(&directory).contains("a directory"));
        let device = File::open("/dev/null").unwrap();
        assert!(error(&device).contains("character device"));
        let file = tempfile::tempfile().unwrap();
        assert!(error(&file).contains("empty"));
        file.set_len(513).unwrap();
        assert!(error(&file).contains("513 bytes"));
        file.set_len(1024).unwrap();
        assert_eq!(check(&file).unwrap(), 1024);
    }
}
