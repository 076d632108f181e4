//! File systems: opening those that can be read, naming the others.

use crate::error::BootError;
use crate::ext4::Ext4Volume;
use crate::source::Source;

/// Most names taken from a directory.
pub const NAMES_MAX: usize = 4096;

/// A file system, as far as booting needs it. Paths are absolute and follow
/// symbolic links within it.
pub trait FileSystem {
    /// Whether there is something at `path`.
    fn exists(&self, path: &str) -> Result<bool, BootError>;

    /// The regular file at `path` with at most `limit` bytes; nothing if
    /// there is none.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, BootError>;

    /// The names in the directory at `path`, as far as they are UTF-8 and at
    /// most [`NAMES_MAX`]; none if there is no directory.
    fn list(&self, path: &str) -> Result<Vec<String>, BootError>;

    /// The text file at `path`; what is too large for a configuration or not
    /// UTF-8 is none.
    fn text(&self, path: &str) -> Result<Option<String>, BootError> {
        match self.read(path, TEXT_MAX) {
            Ok(bytes) => Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok())),
            Err(BootError::TooLarge { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Largest configuration file in bytes.
const TEXT_MAX: u64 = 1 << 20;

/// What a volume has in it.
pub enum Contents {
    /// A file system that can be read.
    Readable(Box<dyn FileSystem>),
    /// Something else: what.
    Other(&'static str),
}

/// Marks by which file systems and the like are known: offset, bytes, name.
const MARKS: [(u64, &[u8], &str); 15] = [
    (0, b"QFI\xfb", "a qcow2 image within the disk"),
    (0, b"XFSB", "an XFS file system"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (3, b"-FVE-FS-", "an encrypted volume (BitLocker)"),
    (3, b"NTFS    ", "an NTFS file system"),
    (0, b"hsqs", "a squashfs file system"),
    (54, b"FAT1", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (512, b"LABELONE", "a volume of LVM"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4096, b"\xfc\x4e\x2b\xa9", "a part of a software RAID"),
    (32769, b"CD001", "a CD image (ISO 9660)"),
    (
        65600,
        b"_BHRfS_M",
        "a btrfs file system, which cannot be read yet",
    ),
];

/// Whether a file system begins where the disk does.
pub fn whole_disk(disk: &Source) -> Result<bool, BootError> {
    if Ext4Volume::is(disk)? {
        return Ok(true);
    }
    let found = mark(disk)?;
    // A FAT file system's first sector looks like an MBR; a CD image may have
    // one.
    Ok(found.is_some())
}

fn mark(source: &Source) -> Result<Option<&'static str>, BootError> {
    for (offset, bytes, name) in MARKS {
        let mut there = vec![0; bytes.len()];
        if source.read(offset, &mut there)? && there == bytes {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Opens what is in `source`, or says what it is. `None`: nothing known.
pub fn open(source: &Source) -> Result<Option<Contents>, BootError> {
    if Ext4Volume::is(source)? {
        let volume = Ext4Volume::open(source)?;
        return Ok(Some(Contents::Readable(Box::new(volume))));
    }
    Ok(mark(source)?.map(Contents::Other))
}
