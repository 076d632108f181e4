//! Where file systems may be: partitions, or the whole disk.
//!
//! GPT: UEFI specification 2.10, chapter 5; MBR: the same, 5.2, with the
//! chain of extended partitions as every system writes it.

use crate::error::BootError;
use crate::filesystem::whole_disk;
use crate::source::{Source, le16, le32, le64};

/// Bytes of a logical block of our disks.
const SECTOR: u64 = 512;
/// Most partitions looked at: GPT tables have 128 entries.
const PARTITIONS_MAX: usize = 128;
/// Shortest and longest entry of a GPT in bytes.
const ENTRY: std::ops::RangeInclusive<u32> = 128..=4096;
/// Partition types (MBR) that contain others.
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// Partition type of an MBR that only guards a GPT.
const PROTECTIVE: u8 = 0xEE;

/// A place where a file system may be.
pub struct Volume {
    /// The partition's number; the whole disk has none.
    pub number: Option<u32>,
    /// Its bytes.
    pub source: Source,
}

/// All volumes of `disk`, and how it is partitioned.
pub fn scan(disk: &Source) -> Result<(&'static str, Vec<Volume>), BootError> {
    if let Some(volumes) = gpt(disk)? {
        return Ok(("GPT", volumes));
    }
    if whole_disk(disk)? {
        return Ok(("no partitions", whole(disk)));
    }
    let volumes = mbr(disk)?;
    if volumes.is_empty() {
        return Ok(("no partitions", whole(disk)));
    }
    Ok(("MBR", volumes))
}

fn whole(disk: &Source) -> Vec<Volume> {
    vec![Volume {
        number: None,
        source: disk.clone(),
    }]
}

/// The partitions of a GPT: of its first header, or of the copy at the end.
fn gpt(disk: &Source) -> Result<Option<Vec<Volume>>, BootError> {
    let last = disk.len() / SECTOR;
    for sector in [1, last.saturating_sub(1)] {
        if let Some(volumes) = gpt_at(disk, sector)? {
            return Ok(Some(volumes));
        }
    }
    Ok(None)
}

fn gpt_at(disk: &Source, sector: u64) -> Result<Option<Vec<Volume>>, BootError> {
    let Some(header) = disk.array::<512>(sector * SECTOR)? else {
        return Ok(None);
    };
    let length = le32(&header, 12) as usize;
    let covered = header.get(..length).filter(|covered| covered.len() >= 92);
    let Some(covered) = covered.filter(|covered| covered.starts_with(b"EFI PART")) else {
        return Ok(None);
    };
    // The checksum is that of the header with zeros in its place.
    let mut plain = covered.to_vec();
    plain[16..20].fill(0);
    if crc32fast::hash(&plain) != le32(covered, 16) {
        return Ok(None);
    }
    let (table, size) = (le64(covered, 72), le32(covered, 84));
    if !ENTRY.contains(&size) {
        return Ok(None);
    }
    let mut volumes = Vec::new();
    for index in 0..le32(covered, 80).min(PARTITIONS_MAX as u32) {
        let at = table
            .checked_mul(SECTOR)
            .and_then(|at| at.checked_add(u64::from(index) * u64::from(size)));
        let Some(at) = at else { break };
        let Some(entry) = disk.array::<128>(at)? else {
            break;
        };
        let (first, end) = (le64(&entry, 32), le64(&entry, 40).checked_add(1));
        let unused = entry[..16].iter().all(|byte| *byte == 0);
        if let Some(sectors) = end.and_then(|end| end.checked_sub(first))
            && !unused
        {
            volumes.extend(volume(disk, index + 1, first, sectors));
        }
    }
    Ok(Some(volumes))
}

/// The partitions of an MBR and of the chain of its extended partition.
fn mbr(disk: &Source) -> Result<Vec<Volume>, BootError> {
    let mut volumes = Vec::new();
    let Some(entries) = table(disk, 0)? else {
        return Ok(volumes);
    };
    let mut extended = None;
    for (number, entry) in (1..).zip(&entries) {
        if EXTENDED.contains(&entry.kind) {
            extended = extended.or(Some(entry.first));
        } else if entry.kind != 0 && entry.kind != PROTECTIVE {
            volumes.extend(volume(disk, number, entry.first, entry.sectors));
        }
    }
    // Each link has a partition, relative to the link, and the next link,
    // relative to the first. A chain that loops ends at the most partitions.
    let mut link = extended;
    let mut number = 5;
    while let (Some(base), Some(at)) = (extended, link) {
        let Some([partition, next, ..]) = table(disk, at)? else {
            break;
        };
        if partition.kind != 0 {
            volumes.extend(volume(
                disk,
                number,
                at + partition.first,
                partition.sectors,
            ));
        }
        number += 1;
        link = EXTENDED
            .contains(&next.kind)
            .then_some(base + next.first)
            .filter(|_| (number as usize) < PARTITIONS_MAX);
    }
    Ok(volumes)
}

/// An entry of an MBR.
struct Entry {
    kind: u8,
    first: u64,
    sectors: u64,
}

/// The four entries of the table in `sector`, if there is one.
fn table(disk: &Source, sector: u64) -> Result<Option<[Entry; 4]>, BootError> {
    let Some(bytes) = disk.array::<512>(sector.saturating_mul(SECTOR))? else {
        return Ok(None);
    };
    if le16(&bytes, 510) != 0xAA55 {
        return Ok(None);
    }
    Ok(Some([446, 462, 478, 494].map(|at: usize| Entry {
        kind: bytes[at + 4],
        first: u64::from(le32(&bytes, at + 8)),
        sectors: u64::from(le32(&bytes, at + 12)),
    })))
}

/// A partition that lies on the disk.
fn volume(disk: &Source, number: u32, first: u64, sectors: u64) -> Option<Volume> {
    let (start, len) = (first.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?);
    (start > 0 && start < disk.len() && len > 0).then(|| Volume {
        number: Some(number),
        source: disk.part(start, len),
    })
}
