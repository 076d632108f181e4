//! The superblock, as far as we need it ourselves: what the library takes on
//! trust is checked here, and where the journal is.
//!
//! Linux, Documentation/filesystems/ext4/super.rst.

use crate::error::BootError;
use crate::source::{Source, le16, le32};

use super::checksum::{SEED, crc32c};

/// Where it is, and its size, in bytes.
pub const SUPERBLOCK_AT: u64 = 1024;
/// See [`SUPERBLOCK_AT`].
pub const SUPERBLOCK: usize = 1024;

/// `s_feature_incompat`.
const INCOMPAT: usize = 0x60;
/// In it: the journal has something to recover.
const RECOVER: u32 = 0x4;
/// In it: group descriptors of 64 bytes, block numbers of 64 bits.
const WIDE: u32 = 0x80;
/// `s_feature_ro_compat`.
const RO_COMPAT: usize = 0x64;
/// In it: checksums of all metadata.
const METADATA_CSUM: u32 = 0x400;
/// `s_checksum`, of everything before it.
const CHECKSUM: usize = 0x3FC;
/// Fewest blocks in a group: mke2fs makes no fewer.
const GROUP_MIN: u32 = 256;
/// Most groups: 128 TiB in groups of 128 MiB.
const GROUPS_MAX: u64 = 1 << 20;

/// What is needed of it.
#[derive(Debug)]
pub struct Superblock {
    /// Bytes of a block.
    pub block: u64,
    /// The first block that belongs to a group.
    first_data_block: u64,
    inodes_per_group: u32,
    inode_size: u64,
    descriptor_size: u64,
    incompat: u32,
    journal_inode: u32,
}

/// Its bytes, if there is one.
pub fn raw(source: &Source) -> Result<Option<[u8; SUPERBLOCK]>, BootError> {
    let bytes = source.array::<SUPERBLOCK>(SUPERBLOCK_AT)?;
    Ok(bytes.filter(|bytes| le16(bytes, 0x38) == 0xEF53))
}

/// Makes a copy look like one of a file system that was unmounted.
pub fn mark_clean(copy: &mut [u8; SUPERBLOCK]) {
    let incompat = le32(copy, INCOMPAT);
    if incompat & RECOVER == 0 {
        return;
    }
    copy[INCOMPAT..INCOMPAT + 4].copy_from_slice(&(incompat & !RECOVER).to_le_bytes());
    if le32(copy, RO_COMPAT) & METADATA_CSUM != 0 {
        let sum = crc32c(SEED, &copy[..CHECKSUM]);
        copy[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
    }
}

fn damaged(what: &str) -> BootError {
    BootError::FileSystem(format!("its ext4 file system has {what}"))
}

impl Superblock {
    /// Reads and checks it.
    pub fn read(source: &Source) -> Result<Self, BootError> {
        let bytes = raw(source)?.ok_or_else(|| damaged("no superblock"))?;
        Self::parse(&bytes)
    }

    /// Checks what is in it.
    pub fn parse(bytes: &[u8; SUPERBLOCK]) -> Result<Self, BootError> {
        let incompat = le32(bytes, INCOMPAT);
        let wide = incompat & WIDE != 0;
        let shift = le32(bytes, 0x18);
        if shift > 6 {
            return Err(damaged("blocks of a size that there is none of"));
        }
        let block = 1024u64 << shift;
        let high = if wide { le32(bytes, 0x150) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(le32(bytes, 0x04));
        let per_group = le32(bytes, 0x20);
        let first_data_block = u64::from(le32(bytes, 0x14));
        // The library reads all group descriptors at once.
        if per_group < GROUP_MIN || blocks / u64::from(per_group) > GROUPS_MAX {
            return Err(damaged("groups of a size that there is none of"));
        }
        if first_data_block > 1 {
            return Err(damaged("a first block that is none"));
        }
        let inode_size = match le32(bytes, 0x4C) {
            0 => 128,
            _ => u64::from(le16(bytes, 0x58)),
        };
        if !(128..=block).contains(&inode_size) {
            return Err(damaged("inodes of a size that there is none of"));
        }
        let descriptor_size = match wide {
            true => u64::from(le16(bytes, 0xFE)),
            false => 32,
        };
        if !(32..=block).contains(&descriptor_size) {
            return Err(damaged("group descriptors of a size that there is none of"));
        }
        Ok(Superblock {
            block,
            first_data_block,
            inodes_per_group: le32(bytes, 0x28),
            inode_size,
            descriptor_size,
            incompat,
            journal_inode: le32(bytes, 0xE0),
        })
    }

    /// Whether it was not unmounted.
    pub fn needs_recovery(&self) -> bool {
        self.incompat & RECOVER != 0
    }

    /// The journal's inode: its first 128 bytes.
    pub fn journal_inode(&self, source: &Source) -> Result<[u8; 128], BootError> {
        let missing = || damaged("a journal that cannot be found");
        let index = self.journal_inode.checked_sub(1).ok_or_else(missing)?;
        let group = u64::from(
            index
                .checked_div(self.inodes_per_group)
                .ok_or_else(missing)?,
        );
        let within = u64::from(
            index
                .checked_rem(self.inodes_per_group)
                .ok_or_else(missing)?,
        );
        let place = (self.first_data_block + 1) * self.block + group * self.descriptor_size;
        let mut descriptor = vec![0; self.descriptor_size as usize];
        if !source.read(place, &mut descriptor)? {
            return Err(missing());
        }
        // Past the end of a descriptor of 32 bytes this is zero.
        let high = u64::from(le32(&descriptor, 0x28));
        let table = high << 32 | u64::from(le32(&descriptor, 0x08));
        let place = table
            .checked_mul(self.block)
            .and_then(|table| table.checked_add(within * self.inode_size))
            .ok_or_else(missing)?;
        source.array(place)?.ok_or_else(missing)
    }
}
