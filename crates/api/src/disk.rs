//! Disks, in all protocols.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

/// How an image file contains its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's format, version 2 or 3.
    Qcow2,
}

/// What becomes of the host's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// What the guest writes is in the page cache until it flushes.
    #[default]
    Writeback,
    /// It is not used. What the guest writes may be in the disk's own cache
    /// until it flushes.
    None,
    /// What the guest writes is on stable storage when it is told so. Reads
    /// come from the page cache.
    Writethrough,
    /// The same, and the page cache is not used.
    Directsync,
    /// Flushes do nothing: for disks that are thrown away.
    Unsafe,
}

impl CacheMode {
    /// Whether files are opened with `O_DIRECT`.
    pub fn is_direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Whether a write is flushed before the guest is told that it is done.
    pub fn is_synchronous(self) -> bool {
        matches!(self, CacheMode::Writethrough | CacheMode::Directsync)
    }
}

/// What happens when the host fails to read or write a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnIoError {
    /// The machine pauses if the host has no room left; the guest is told of
    /// other failures.
    #[default]
    StopIfFull,
    /// The machine pauses.
    Stop,
    /// The guest is told.
    Report,
}

/// How much of the host a disk may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Requests per second.
    #[serde(default)]
    pub iops: Option<u64>,
    /// Bytes per second.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
}

/// What is not flushed is lost when the machine's process ends, as in a power
/// failure: for tests of durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TestStorage {
    /// Writes reach the file when the guest flushes.
    DropUnflushed,
    /// They never reach it: what a broken flush would do.
    IgnoreFlushes,
}

/// How a disk is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskOptions {
    /// Refuse every change.
    #[serde(default)]
    pub read_only: bool,
    /// See there.
    #[serde(default)]
    pub cache: CacheMode,
    /// See there.
    #[serde(default)]
    pub on_io_error: OnIoError,
    /// See there.
    #[serde(default)]
    pub limits: DiskLimits,
    /// It grows to so many bytes at the start, if it has less.
    #[serde(default)]
    pub at_least: Option<u64>,
    /// For tests.
    #[serde(default)]
    pub test: Option<TestStorage>,
}

/// A disk of a machine, by the paths of its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDisk {
    /// The disk's own file, and what is below it: its backing file, that
    /// one's, and so on. Names in images count for nothing.
    pub layers: Vec<RunLayer>,
    /// Its place: that of `disk<place>`, counted from 0; the first that is
    /// free without.
    #[serde(default)]
    pub index: Option<u8>,
    /// How it is served.
    #[serde(default)]
    pub options: DiskOptions,
}

impl RunDisk {
    /// A disk of one file, by default.
    pub fn new(path: impl Into<OsString>) -> Self {
        RunDisk {
            layers: vec![RunLayer {
                path: path.into(),
                format: None,
            }],
            index: None,
            options: DiskOptions::default(),
        }
    }
}

/// Most disks of a machine.
pub const DISKS_MAX: usize = 16;

/// The name of the disk in this place.
pub fn disk_name(index: u8) -> String {
    format!("disk{index}")
}

/// Gives every disk a place: those that have none get, in their order, the
/// lowest that no disk asks for. Disks that ask for the same keep it, for
/// whoever refuses that.
pub fn place<'a>(places: impl IntoIterator<Item = &'a mut Option<u8>>) {
    let mut places: Vec<&mut Option<u8>> = places.into_iter().collect();
    let mut taken: Vec<u8> = places.iter().filter_map(|place| **place).collect();
    for place in places.iter_mut().filter(|place| place.is_none()) {
        let free = (0..=u8::MAX).find(|index| !taken.contains(index));
        **place = free;
        taken.extend(free);
    }
}

/// A file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLayer {
    /// Path of an image file or block device.
    pub path: OsString,
    /// What it is; guessed from its contents when not said.
    pub format: Option<DiskFormat>,
}

/// A disk that a machine is started with. Each layer comes with a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartDisk {
    /// Its name for messages.
    pub name: String,
    /// Its files, the disk's own first.
    pub layers: Vec<StartLayer>,
    /// Its place, as in [`RunDisk`].
    #[serde(default)]
    pub index: Option<u8>,
    /// How it is served; a read-only disk's files are open for reading only.
    pub options: DiskOptions,
}

/// An open file of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartLayer {
    /// What it is.
    pub format: DiskFormat,
    /// That was guessed from its contents, which must not come to look like
    /// another format.
    pub guessed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_in_order_around_those_that_are_taken() {
        let mut places = [None, Some(1), None, Some(5), None, Some(1)];
        place(&mut places);
        assert_eq!(places, [0, 1, 2, 5, 3, 1].map(Some));
        place(&mut places);
        assert_eq!(places, [0, 1, 2, 5, 3, 1].map(Some));
    }
}
