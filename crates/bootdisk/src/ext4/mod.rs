//! ext4 (and ext2, ext3), by the crate `ext4-view`.
//!
//! That crate is given a file system that looks cleanly unmounted: what is in
//! the journal is laid over the disk's blocks ([`journal`]), and the flag that
//! asks for recovery is taken away. Its own replay neither follows the journal
//! around its end nor keeps revoked blocks of earlier transactions back.

mod checksum;
mod journal;
mod superblock;
#[cfg(test)]
mod tests;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use crate::error::BootError;
use crate::filesystem::{FileSystem, NAMES_MAX};
use crate::source::Source;

use journal::Overlay;
use superblock::{SUPERBLOCK, SUPERBLOCK_AT, Superblock};

/// An ext4 file system.
pub struct Ext4Volume {
    inner: Ext4,
}

impl Ext4Volume {
    /// Whether `source` looks like one.
    pub fn is(source: &Source) -> Result<bool, BootError> {
        Ok(superblock::raw(source)?.is_some())
    }

    /// Opens it.
    pub fn open(source: &Source) -> Result<Self, BootError> {
        let superblock = Superblock::read(source)?;
        let overlay = match superblock.needs_recovery() {
            true => journal::read(source, &superblock)?,
            false => Overlay::default(),
        };
        let reader = Reader {
            source: source.clone(),
            block: superblock.block,
            overlay,
        };
        let inner = Ext4::load(Box::new(reader)).map_err(failed)?;
        Ok(Ext4Volume { inner })
    }
}

/// Why an operation failed: a limit of ours, or the file system.
fn failed(error: Ext4Error) -> BootError {
    match error {
        Ext4Error::Io(inner) => match inner.downcast::<BootError>() {
            Ok(ours) => *ours,
            Err(other) => BootError::FileSystem(format!("its ext4 file system: {other}")),
        },
        other => BootError::FileSystem(format!("its ext4 file system: {other}")),
    }
}

/// True for what a path that leads nowhere brings about.
fn is_absence(error: &Ext4Error) -> bool {
    matches!(
        error,
        Ext4Error::NotFound
            | Ext4Error::NotADirectory
            | Ext4Error::IsADirectory
            | Ext4Error::IsASpecialFile
            | Ext4Error::TooManySymlinks
            | Ext4Error::PathTooLong
            | Ext4Error::MalformedPath
            | Ext4Error::NotAbsolute
            | Ext4Error::Encrypted
    )
}

/// What is there, or nothing.
fn present<T>(result: Result<T, Ext4Error>) -> Result<Option<T>, BootError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

impl FileSystem for Ext4Volume {
    fn exists(&self, path: &str) -> Result<bool, BootError> {
        Ok(present(self.inner.metadata(path))?.is_some())
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, BootError> {
        let Some(mut file) = present(self.inner.open(path))? else {
            return Ok(None);
        };
        let len = file.metadata().len();
        if len > limit {
            return Err(BootError::TooLarge {
                path: path.to_owned(),
                len,
                limit,
            });
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_bytes(rest).map_err(failed)? {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        Ok(Some(bytes))
    }

    fn list(&self, path: &str) -> Result<Vec<String>, BootError> {
        let Some(entries) = present(self.inner.read_dir(path))? else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in entries.take(NAMES_MAX) {
            let entry = entry.map_err(failed)?;
            if let Ok(name) = entry.file_name().as_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// The file system as it would be after recovery.
struct Reader {
    source: Source,
    /// Bytes of a block.
    block: u64,
    overlay: Overlay,
}

impl Reader {
    /// Fills `bytes`, which lie in the block `number`, from `within` on.
    fn read_block(&self, number: u64, within: u64, bytes: &mut [u8]) -> Result<(), BootError> {
        let (place, escaped) = match self.overlay.get(number) {
            Some(copy) => (copy.place, copy.escaped),
            None => (number, false),
        };
        let at = place
            .checked_mul(self.block)
            .and_then(|at| at.checked_add(within));
        if !at.map_or(Ok(false), |at| self.source.read(at, bytes))? {
            return Err(BootError::FileSystem(
                "its ext4 file system is cut off".to_owned(),
            ));
        }
        if escaped {
            journal::unescape(within, bytes);
        }
        Ok(())
    }
}

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        let len = bytes.len() as u64;
        let mut done = 0;
        let mut rest = &mut *bytes;
        while !rest.is_empty() {
            let at = start.saturating_add(done);
            let within = at % self.block;
            let count = (self.block - within).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(count as usize);
            self.read_block(at / self.block, within, now)?;
            rest = later;
            done += count;
        }
        if start <= SUPERBLOCK_AT
            && let Some(copy) = SUPERBLOCK_AT
                .checked_sub(start)
                .filter(|from| from + SUPERBLOCK as u64 <= len)
                .and_then(|from| bytes.get_mut(from as usize..))
                .and_then(|bytes| bytes.first_chunk_mut::<SUPERBLOCK>())
        {
            // The journal may have brought another one.
            Superblock::parse(copy)?;
            superblock::mark_clean(copy);
        }
        Ok(())
    }
}
