//! The header of a qcow2 image (QEMU, docs/interop/qcow2.txt), checked before
//! anything is believed.
//!
//! | offset | bytes | contents                                       |
//! |--------|-------|------------------------------------------------|
//! | 0      | 4     | magic number                                   |
//! | 4      | 4     | version                                        |
//! | 8      | 8, 4  | place and length of the backing file's name    |
//! | 20     | 4     | cluster size (log2)                            |
//! | 24     | 8     | size of the disk                               |
//! | 32     | 4     | encryption                                     |
//! | 36     | 4, 8  | entries and place of the L1 table              |
//! | 48     | 8, 4  | place and clusters of the refcount table       |
//! | 60     | 4, 8  | number and place of the snapshots              |
//! | 72     | 24    | features: incompatible, compatible, auto-clear |
//! | 96     | 4     | refcount width (log2)                          |
//! | 100    | 4     | length of the header                           |
//!
//! All numbers are big-endian; what is from 72 on only version 3 has.

use crate::disk::SECTOR;
use crate::file::Qcow2Error;
use crate::memory::IoMemory;
use crate::storage::Storage;

const MAGIC: u32 = 0x5146_49FB;
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
/// Cluster sizes: from the specification, and QEMU's limit.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// QEMU's limits (block/qcow2.h): bytes of the L1 table and of the refcount
/// table, length of a backing file's name.
const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_MAX: u64 = 8 << 20;
const NAME_MAX: u32 = 1023;
/// Refcounts of 16 bits.
const REFCOUNT_ORDER_V2: u32 = 4;
/// Refcounts of 64 bits at most.
const REFCOUNT_ORDER_MAX: u32 = 6;

/// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const SUBCLUSTERS: u64 = 1 << 4;

/// A table in the image: a sequence of 8-byte entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its first byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What the rest of this crate needs of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version 2 cannot tell zeroed clusters from those that were never
    /// written.
    pub version: u32,
    /// Log2 of the cluster size.
    pub cluster_bits: u32,
    /// Log2 of a refcount's bits.
    pub refcount_order: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Where the L2 tables are.
    pub l1: Table,
    /// Where the refcount blocks are.
    pub refcounts: Table,
    /// There are internal snapshots.
    pub snapshots: bool,
    /// Name of the backing file.
    pub backing: Option<String>,
}

/// Big-endian numbers of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|b| b.try_into().ok());
        u32::from_be_bytes(bytes.unwrap_or_default())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }
}

/// The place of the L1 and the refcount table, as the first bytes of a header
/// say.
pub fn tables(start: &[u8], cluster_bits: u32) -> Option<(Table, Table)> {
    let fields = Fields(start.get(..V2_LEN)?);
    let l1 = Table {
        offset: fields.u64(40),
        len: u64::from(fields.u32(36)) * 8,
    };
    let refcounts = Table {
        offset: fields.u64(48),
        len: u64::from(fields.u32(56)) << cluster_bits,
    };
    Some((l1, refcounts))
}

/// Bytes of the L1 table that a disk of `size` needs, if there can be one.
pub fn l1_bytes(size: u64, cluster_bits: u32) -> Option<u64> {
    // An L2 table fills a cluster with entries of 8 bytes.
    let entries = size.div_ceil(1 << (2 * cluster_bits - 3));
    let bytes = entries.checked_mul(8)?;
    (bytes <= L1_BYTES_MAX).then_some(bytes)
}

impl Header {
    /// Reads and checks the header of the image in `storage`.
    pub fn read(storage: &dyn Storage) -> Result<Self, Qcow2Error> {
        let file_len = storage.size().map_err(Qcow2Error::Refused)?;
        let mut start = vec![0; V3_LEN];
        let got = fill(storage, &mut start, 0)?;
        let fields = Fields(&start);
        if got < 8 || fields.u32(0) != MAGIC {
            return Err(Qcow2Error::Magic);
        }
        let version = fields.u32(4);
        let needed = match version {
            2 => V2_LEN,
            3 => V3_LEN,
            other => return Err(Qcow2Error::Version(other)),
        };
        if got < needed {
            return Err(Qcow2Error::Short("header"));
        }
        let cluster_bits = fields.u32(20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Qcow2Error::Field("cluster size"));
        }
        if fields.u32(32) != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        if version == 3 {
            check_version_3(&fields, cluster_bits)?;
        }
        let size = fields.u64(24);
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(Qcow2Error::Field("size"));
        }
        let (l1, refcounts) = tables(&start, cluster_bits).ok_or(Qcow2Error::Short("header"))?;
        let needed = l1_bytes(size, cluster_bits).ok_or(Qcow2Error::Field("size"))?;
        if l1.len > L1_BYTES_MAX || l1.len < needed {
            return Err(Qcow2Error::Field("L1 table's size"));
        }
        if refcounts.len == 0 || refcounts.len > REFCOUNT_TABLE_MAX {
            return Err(Qcow2Error::Field("refcount table's size"));
        }
        let tables = [(l1, "L1 table"), (refcounts, "refcount table")];
        for (table, name) in tables {
            if table.offset == 0 || !table.offset.is_multiple_of(1 << cluster_bits) {
                return Err(Qcow2Error::Field(name));
            }
            if table
                .offset
                .checked_add(table.len)
                .is_none_or(|end| end > file_len)
            {
                return Err(Qcow2Error::Short(name));
            }
        }
        Ok(Header {
            version,
            cluster_bits,
            snapshots: fields.u32(60) != 0,
            refcount_order: if version == 3 {
                fields.u32(96)
            } else {
                REFCOUNT_ORDER_V2
            },
            size,
            l1,
            refcounts,
            backing: backing(storage, &fields, cluster_bits)?,
        })
    }
}

fn check_version_3(fields: &Fields<'_>, cluster_bits: u32) -> Result<(), Qcow2Error> {
    let features = fields.u64(72);
    let known = [
        (CORRUPT, Qcow2Error::Corrupt),
        (DIRTY, Qcow2Error::Dirty),
        (DATA_FILE, Qcow2Error::DataFile),
        (COMPRESSION, Qcow2Error::Compression),
        (SUBCLUSTERS, Qcow2Error::Subclusters),
    ];
    for (bit, error) in known {
        if features & bit != 0 {
            return Err(error);
        }
    }
    if features != 0 {
        return Err(Qcow2Error::Features(features));
    }
    if fields.u32(96) > REFCOUNT_ORDER_MAX {
        return Err(Qcow2Error::Field("refcount width"));
    }
    let len = fields.u32(100);
    if len < V3_LEN as u32 || !len.is_multiple_of(8) || len > 1 << cluster_bits {
        return Err(Qcow2Error::Field("header's length"));
    }
    Ok(())
}

fn backing(
    storage: &dyn Storage,
    fields: &Fields<'_>,
    cluster_bits: u32,
) -> Result<Option<String>, Qcow2Error> {
    let (offset, len) = (fields.u64(8), fields.u32(16));
    if offset == 0 {
        return Ok(None);
    }
    let end = offset.checked_add(u64::from(len));
    if len == 0 || len > NAME_MAX || end.is_none_or(|end| end > 1 << cluster_bits) {
        return Err(Qcow2Error::Field("backing file's name"));
    }
    let mut name = vec![0; len as usize];
    if fill(storage, &mut name, offset)? < name.len() {
        return Err(Qcow2Error::Short("backing file's name"));
    }
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

/// Reads into `bytes`; returns how many there were.
pub fn fill(storage: &dyn Storage, bytes: &mut [u8], offset: u64) -> Result<usize, Qcow2Error> {
    let read = storage.read(&[IoMemory::of_bytes(bytes)], offset);
    Ok(read.map_err(Qcow2Error::Refused)? as usize)
}
