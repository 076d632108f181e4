//! The block device's configuration (virtio 1.2, 5.2.4).
//!
//! | offset | bytes | contents                                   |
//! |--------|-------|--------------------------------------------|
//! | 0      | 8     | capacity in sectors of 512 bytes           |
//! | 12     | 4     | most data segments of a request            |
//! | 20     | 4     | block size                                 |
//! | 24     | 8     | topology: blocks in a physical block (log2), alignment, least (2) and best (4) transfer in blocks |
//! | 34     | 2     | number of queues                           |
//! | 36     | 12    | discard: most sectors, most segments, alignment in sectors |
//! | 48     | 9     | write zeroes: most sectors, most segments, may unmap (1) |
//!
//! The rest is of features that are not offered and reads as zero.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Bytes of the configuration.
pub const LEN: usize = 60;
/// Entries of a queue.
pub const QUEUE_SIZE: u16 = 256;
/// Data segments: all descriptors but those of header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
const BLOCK_SIZE: u32 = 512;
/// Physical blocks of 4 KiB: what file systems and most disks work in.
const PHYSICAL_EXPONENT: u8 = 3;
/// Best transfer: 4 KiB at least, multiples of it.
const BEST_BLOCKS: u16 = 8;
/// Sectors of one discarded or zeroed segment at most: 1 GiB.
pub const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Segments of one discard or write-zeroes request at most.
pub const RANGES_MAX: u32 = 16;

/// Feature bits; `RO` when the disk is read-only, no `FLUSH` when each write
/// is flushed anyway (virtio 1.2, 5.2.3).
pub fn features(read_only: bool, write_through: bool, queues: u16) -> u64 {
    let mut bits = vec![
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
    ];
    if !write_through {
        bits.push(VIRTIO_BLK_F_FLUSH);
    }
    if read_only {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
    }
    if queues > 1 {
        bits.push(VIRTIO_BLK_F_MQ);
    }
    bits.iter().fold(0, |all, bit| all | 1 << bit)
}

/// The configuration of a disk of `sectors`.
pub fn bytes(sectors: u64, queues: u16) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut put = |at: usize, value: &[u8]| {
        bytes[at..at + value.len()].copy_from_slice(value);
    };
    put(0, &sectors.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &BLOCK_SIZE.to_le_bytes());
    put(24, &[PHYSICAL_EXPONENT, 0]);
    put(26, &BEST_BLOCKS.to_le_bytes());
    put(28, &u32::from(BEST_BLOCKS).to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &RANGE_SECTORS_MAX.to_le_bytes());
    put(40, &RANGES_MAX.to_le_bytes());
    put(44, &u32::from(BEST_BLOCKS).to_le_bytes());
    put(48, &RANGE_SECTORS_MAX.to_le_bytes());
    put(52, &RANGES_MAX.to_le_bytes());
    put(56, &[1]);
    bytes
}
