//! The journal of a file system that was not unmounted.
//!
//! Whatever a transaction that was committed contains is read in place of the
//! blocks that it is for, so that files are what they are after recovery by
//! the kernel. Nothing is written.
//!
//! ```text
//! superblock │ … │ descriptor, blocks…, revocations, commit │ … (a ring)
//!                  └ one transaction, from s_start on ────┘
//! ```
//!
//! Linux, Documentation/filesystems/ext4/journal.rst; what the journal has is
//! big-endian. As in recovery by the kernel, the log ends where no block with
//! the next sequence number is; and a block revoked by a transaction is not
//! taken from it or from earlier ones.

use std::collections::HashMap;

use crate::error::BootError;
use crate::source::{Source, be16, be32, le16, le32};

use super::checksum::{SEED, crc32c};
use super::superblock::Superblock;

/// What each block of the journal's own begins with.
const MAGIC: [u8; 4] = 0xC03B_3998u32.to_be_bytes();
/// Bytes of a header: magic, type, sequence.
const HEADER: usize = 12;

/// Types of blocks.
mod kind {
    pub const DESCRIPTOR: u32 = 1;
    pub const COMMIT: u32 = 2;
    pub const SUPERBLOCK: [u32; 2] = [3, 4];
    pub const REVOKE: u32 = 5;
}

/// `s_feature_incompat` of the journal.
mod feature {
    pub const REVOKE: u32 = 0x01;
    pub const WIDE: u32 = 0x02;
    pub const ASYNC_COMMIT: u32 = 0x04;
    pub const CSUM_V2: u32 = 0x08;
    pub const CSUM_V3: u32 = 0x10;
    pub const FAST_COMMIT: u32 = 0x20;
    pub const KNOWN: u32 = REVOKE | WIDE | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
}

/// Flags of a descriptor's tag.
mod tag {
    pub const ESCAPED: u32 = 1;
    pub const SAME_UUID: u32 = 2;
    pub const LAST: u32 = 8;
}

/// `i_flags`: blocks are found by extents.
const EXTENTS: u32 = 0x8_0000;
/// Most extents of a journal, and most nodes of their tree.
const EXTENTS_MAX: usize = 1 << 16;
/// Largest journal, in blocks.
const BLOCKS_MAX: u32 = 1 << 22;
/// Blocks at the end for fast commits where the superblock does not say.
const FAST_COMMIT_BLOCKS: u32 = 256;
/// What a fast commit begins with (`EXT4_FC_TAG_HEAD`, little-endian).
const FAST_COMMIT_HEAD: u16 = 0x0008;

/// Blocks of the file system that are read from the journal.
#[derive(Debug, Default)]
pub struct Overlay {
    blocks: HashMap<u64, Copy>,
}

/// A block's copy in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Number of the file system's block where it is.
    pub place: u64,
    /// It begins with the journal's magic, which was taken away.
    pub escaped: bool,
}

impl Overlay {
    /// The copy of block `number`.
    pub fn get(&self, number: u64) -> Option<Copy> {
        self.blocks.get(&number).copied()
    }
}

/// Gives `bytes`, from `within` on in a block that was escaped, the magic
/// back that the block begins with.
pub fn unescape(within: u64, bytes: &mut [u8]) {
    let within = usize::try_from(within).unwrap_or(usize::MAX);
    let missing = MAGIC.get(within..).unwrap_or_default();
    for (byte, magic) in bytes.iter_mut().zip(missing) {
        *byte = *magic;
    }
}

/// Reads the journal of the file system in `source`.
pub fn read(source: &Source, superblock: &Superblock) -> Result<Overlay, BootError> {
    let inode = superblock.journal_inode(source)?;
    let map = Map::read(source, superblock, &inode)?;
    let Some(log) = Log::open(source, superblock, map)? else {
        return Ok(Overlay::default());
    };
    log.replay()
}

fn damaged(what: &str) -> BootError {
    BootError::FileSystem(format!(
        "its ext4 file system was not unmounted, and its journal {what}"
    ))
}

/// Where the journal's blocks are.
struct Map {
    /// First block within the journal, number of blocks, place.
    extents: Vec<(u64, u64, u64)>,
}

impl Map {
    /// From the journal's inode.
    fn read(
        source: &Source,
        superblock: &Superblock,
        inode: &[u8; 128],
    ) -> Result<Self, BootError> {
        if le32(inode, 0x20) & EXTENTS == 0 {
            return Err(damaged("has the format of ext3, which cannot be read yet"));
        }
        let mut extents = Vec::new();
        let mut nodes = vec![(inode[0x28..0x28 + 60].to_vec(), None)];
        let mut seen = 0;
        while let Some((node, depth)) = nodes.pop() {
            seen += 1;
            let (entries, own) = (usize::from(le16(&node, 2)), le16(&node, 6));
            let fits = le16(&node, 0) == 0xF30A && own <= 5 && depth.is_none_or(|d| d == own);
            if !fits || seen > EXTENTS_MAX || extents.len() > EXTENTS_MAX {
                return Err(damaged("is damaged: its extents are none"));
            }
            for entry in node.chunks_exact(12).skip(1).take(entries) {
                if own == 0 {
                    let (len, high) = (u64::from(le16(entry, 4)), u64::from(le16(entry, 6)));
                    let place = high << 32 | u64::from(le32(entry, 8));
                    extents.push((u64::from(le32(entry, 0)), len, place));
                    continue;
                }
                let place = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
                let mut child = vec![0; superblock.block as usize];
                let at = place.saturating_mul(superblock.block);
                if !source.read(at, &mut child)? {
                    return Err(damaged("is damaged: its extents lie outside"));
                }
                nodes.push((child, Some(own - 1)));
            }
        }
        extents.sort_unstable();
        Ok(Map { extents })
    }

    /// Where the journal's block `number` is.
    fn place(&self, number: u32) -> Option<u64> {
        let number = u64::from(number);
        let after = self.extents.partition_point(|(first, ..)| *first <= number);
        let (first, len, place) = self.extents.get(after.checked_sub(1)?)?;
        let within = number - first;
        (within < *len).then(|| place.checked_add(within))?
    }
}

/// A journal that has something in it.
struct Log<'a> {
    source: &'a Source,
    map: Map,
    block: usize,
    /// Blocks that the volume has room for.
    blocks: u64,
    /// The ring: its first block, and the one after its last.
    first: u32,
    end: u32,
    /// Where the log starts, and with which sequence number.
    start: u32,
    sequence: u32,
    incompat: u32,
    /// Seed of all checksums.
    seed: u32,
    /// First block for fast commits, if there are such.
    fast: Option<u32>,
}

/// What a transaction says of a block.
struct Tag {
    block: u64,
    copy: Copy,
    sequence: u32,
}

impl<'a> Log<'a> {
    /// Reads the journal's superblock; nothing if the journal is empty.
    fn open(
        source: &'a Source,
        superblock: &Superblock,
        map: Map,
    ) -> Result<Option<Self>, BootError> {
        let mut log = Log {
            source,
            map,
            block: superblock.block as usize,
            blocks: source.len() / superblock.block,
            first: 0,
            end: 0,
            start: 0,
            sequence: 0,
            incompat: 0,
            seed: 0,
            fast: None,
        };
        let bytes = log.read(0)?;
        let known = kind::SUPERBLOCK.contains(&be32(&bytes, 4));
        if !bytes.starts_with(&MAGIC) || !known || be32(&bytes, 12) as usize != log.block {
            return Err(damaged("is damaged: it has no superblock"));
        }
        let length = be32(&bytes, 16);
        log.first = be32(&bytes, 20);
        log.sequence = be32(&bytes, 24);
        log.start = be32(&bytes, 28);
        log.incompat = be32(&bytes, 40);
        log.seed = crc32c(SEED, &bytes[48..64]);
        if log.start == 0 {
            return Ok(None);
        }
        if log.incompat & !feature::KNOWN != 0 {
            return Err(damaged("has features that cannot be read yet"));
        }
        log.end = length;
        if log.has(feature::FAST_COMMIT) {
            let fast = match be32(&bytes, 84) {
                0 => FAST_COMMIT_BLOCKS,
                count => count,
            };
            log.end = length.saturating_sub(fast);
            log.fast = Some(log.end);
        }
        if length > BLOCKS_MAX || !(log.first..log.end).contains(&log.start) || log.first == 0 {
            return Err(damaged("is damaged: its superblock is wrong"));
        }
        Ok(Some(log))
    }

    fn has(&self, feature: u32) -> bool {
        self.incompat & feature != 0
    }

    /// Whether blocks of the journal's own have checksums.
    fn has_checksums(&self) -> bool {
        self.has(feature::CSUM_V2 | feature::CSUM_V3)
    }

    fn place(&self, number: u32) -> Result<u64, BootError> {
        let place = self.map.place(number);
        place.ok_or_else(|| damaged("is damaged: it has holes"))
    }

    fn read(&self, number: u32) -> Result<Vec<u8>, BootError> {
        let at = self.place(number)?.saturating_mul(self.block as u64);
        let mut bytes = vec![0; self.block];
        match self.source.read(at, &mut bytes)? {
            true => Ok(bytes),
            false => Err(damaged("is damaged: it lies outside")),
        }
    }

    /// The block behind `number` in the ring.
    fn after(&self, number: u32) -> u32 {
        match number + 1 {
            next if next < self.end => next,
            _ => self.first,
        }
    }

    /// What the log, from its start to its end, puts in place of blocks.
    fn replay(self) -> Result<Overlay, BootError> {
        let mut tags = Vec::new();
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        // Of the transaction that is not committed yet.
        let (mut new_tags, mut new_revoked) = (Vec::new(), Vec::new());
        let mut sequence = self.sequence;
        let mut at = self.start;
        // Once around the ring at most.
        let mut left = self.end - self.first;
        while left > 0 {
            let bytes = self.read(at)?;
            if !bytes.starts_with(&MAGIC) || be32(&bytes, 8) != sequence {
                break;
            }
            left -= 1;
            at = self.after(at);
            match be32(&bytes, 4) {
                kind::DESCRIPTOR => {
                    if !self.is_intact(&bytes) {
                        break;
                    }
                    let before = new_tags.len();
                    at = self.tags(&bytes, at, sequence, &mut new_tags)?;
                    let used = u32::try_from(new_tags.len() - before).unwrap_or(u32::MAX);
                    left = left.saturating_sub(used);
                }
                kind::REVOKE => {
                    if !self.is_intact(&bytes) {
                        break;
                    }
                    self.revocations(&bytes, &mut new_revoked);
                }
                kind::COMMIT => {
                    if !self.is_commit_intact(&bytes) {
                        break;
                    }
                    self.check_data(&new_tags)?;
                    tags.append(&mut new_tags);
                    for block in new_revoked.drain(..) {
                        revoked.insert(block, sequence);
                    }
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        self.check_fast_commits(sequence)?;
        let mut blocks = HashMap::new();
        for Tag {
            block,
            copy,
            sequence,
        } in tags.into_iter().map(|(tag, _)| tag)
        {
            // Sequence numbers are compared as on a ring.
            let kept = revoked
                .get(&block)
                .is_none_or(|revoked| sequence.wrapping_sub(*revoked).cast_signed() > 0);
            if kept {
                blocks.insert(block, copy);
            } else {
                blocks.remove(&block);
            }
        }
        Ok(Overlay { blocks })
    }

    /// Whether a descriptor's or revocation block's checksum, its last four
    /// bytes, is right.
    fn is_intact(&self, bytes: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let Some((rest, _)) = bytes.split_last_chunk::<4>() else {
            return false;
        };
        let sum = crc32c(crc32c(self.seed, rest), &[0; 4]);
        sum == be32(bytes, rest.len())
    }

    /// Whether a commit block's checksum is right.
    fn is_commit_intact(&self, bytes: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let mut plain = bytes.to_vec();
        if let Some(sum) = plain.get_mut(16..20) {
            sum.fill(0);
        }
        crc32c(self.seed, &plain) == be32(bytes, 16)
    }

    /// Takes the tags of a descriptor; the blocks that they are about are in
    /// the journal from `at` on. Returns what is behind these.
    fn tags(
        &self,
        bytes: &[u8],
        mut at: u32,
        sequence: u32,
        tags: &mut Vec<(Tag, u32)>,
    ) -> Result<u32, BootError> {
        let v3 = self.has(feature::CSUM_V3);
        let size = match (v3, self.has(feature::CSUM_V2), self.has(feature::WIDE)) {
            (true, ..) => 16,
            (_, v2, wide) => 8 + 2 * usize::from(v2) + 4 * usize::from(wide),
        };
        let tail = if self.has_checksums() { 4 } else { 0 };
        let end = bytes.len().saturating_sub(tail);
        let mut offset = HEADER;
        // A tag without its flags' last bit ends with the block.
        while offset + size <= end {
            let (flags, sum) = match v3 {
                true => (be32(bytes, offset + 4), be32(bytes, offset + 12)),
                false => (
                    u32::from(be16(bytes, offset + 6)),
                    u32::from(be16(bytes, offset + 4)),
                ),
            };
            let high = match self.has(feature::WIDE) {
                true => be32(bytes, offset + 8),
                false => 0,
            };
            let block = u64::from(high) << 32 | u64::from(be32(bytes, offset));
            if block >= self.blocks {
                return Err(damaged("is damaged: it has blocks that there are none of"));
            }
            let copy = Copy {
                place: self.place(at)?,
                escaped: flags & tag::ESCAPED != 0,
            };
            tags.push((
                Tag {
                    block,
                    copy,
                    sequence,
                },
                sum,
            ));
            at = self.after(at);
            offset += size;
            if flags & tag::SAME_UUID == 0 {
                offset += 16;
            }
            if flags & tag::LAST != 0 {
                break;
            }
        }
        if tags.len() > BLOCKS_MAX as usize {
            return Err(damaged("is damaged: it is longer than itself"));
        }
        Ok(at)
    }

    fn revocations(&self, bytes: &[u8], revoked: &mut Vec<u64>) {
        let end = (be32(bytes, HEADER) as usize).min(bytes.len());
        let entries = bytes.get(HEADER + 4..end).unwrap_or_default();
        if self.has(feature::WIDE) {
            let (entries, _) = entries.as_chunks::<8>();
            revoked.extend(entries.iter().map(|entry| u64::from_be_bytes(*entry)));
        } else {
            let (entries, _) = entries.as_chunks::<4>();
            let entries = entries.iter().map(|entry| u32::from_be_bytes(*entry));
            revoked.extend(entries.map(u64::from));
        }
    }

    /// Checks the copies of a transaction.
    fn check_data(&self, tags: &[(Tag, u32)]) -> Result<(), BootError> {
        if !self.has_checksums() {
            return Ok(());
        }
        let mut bytes = vec![0; self.block];
        for (tag, expected) in tags {
            let at = tag.copy.place.saturating_mul(self.block as u64);
            if !self.source.read(at, &mut bytes)? {
                return Err(damaged("is damaged: it lies outside"));
            }
            let sum = crc32c(self.seed, &tag.sequence.to_be_bytes());
            let sum = crc32c(sum, &bytes);
            let right = match self.has(feature::CSUM_V3) {
                true => sum == *expected,
                false => sum & 0xFFFF == *expected,
            };
            if !right {
                return Err(damaged("is damaged: a checksum is wrong"));
            }
        }
        Ok(())
    }

    /// Refuses what was fast-committed after the log's end, in a format of
    /// its own.
    fn check_fast_commits(&self, sequence: u32) -> Result<(), BootError> {
        let Some(first) = self.fast else {
            return Ok(());
        };
        let bytes = self.read(first)?;
        // Tag, length, features, transaction.
        if le16(&bytes, 0) == FAST_COMMIT_HEAD && le32(&bytes, 8) == sequence {
            return Err(damaged("has fast commits, which cannot be read yet"));
        }
        Ok(())
    }
}

/// Where the blocks of a journal are, for tests that change it.
#[cfg(test)]
pub fn places(
    source: &Source,
    superblock: &Superblock,
    inode: &[u8; 128],
) -> impl Fn(u32) -> u64 + use<> {
    let map = Map::read(source, superblock, inode).unwrap();
    move |number| map.place(number).unwrap()
}
