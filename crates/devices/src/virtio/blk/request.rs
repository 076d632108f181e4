//! One request of the block device (virtio 1.2, 5.2.6).
//!
//! ```text
//! readable: type (4) · reserved (4) · sector (8) · data to write
//! writable: data that is read · status (1, the last byte)
//! ```
//!
//! How the driver cuts this into buffers is its own choice (2.7.4).

use std::sync::Arc;

use croft_disk::{Disk, DiskError, IoMemory, SECTOR};
use croft_memory::GuestRam;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::bitmap::Bitmap;

use super::config::{RANGE_SECTORS_MAX, RANGES_MAX};
use super::{FaultSink, OnError};
use crate::virtio::limit::Limiter;
use crate::virtio::queue::GuestSlice;
use crate::virtio::{Buffers, Chain, QueueError, QueueHandler, RateLimitedLog};

/// Bytes of the identity that GET_ID tells.
pub const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
const HEADER: u64 = 16;
/// Bytes of a segment of discard and write zeroes.
const RANGE: usize = 16;

/// Why a request is answered by another status than OK.
enum Refusal {
    /// Status UNSUPP.
    Unsupported,
    /// Status IOERR: the driver asked for what cannot be.
    Invalid,
    /// Status IOERR: the disk failed.
    Failed(DiskError),
    /// The driver broke the rules of the queue.
    Broken(QueueError),
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        Refusal::Broken(error)
    }
}

impl From<DiskError> for Refusal {
    fn from(error: DiskError) -> Self {
        Refusal::Failed(error)
    }
}

/// Serves the requests of one queue.
pub struct Requests {
    pub disk: Arc<dyn Disk>,
    pub id: [u8; ID_LEN],
    /// The driver does not flush (it did not accept the feature): what is
    /// written is on stable storage when the request ends (5.2.6.2).
    pub write_through: bool,
    pub limiter: Arc<Limiter>,
    pub on_error: OnError,
    pub faults: Arc<dyn FaultSink>,
    pub log: Arc<RateLimitedLog>,
}

impl QueueHandler for Requests {
    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> Result<u32, QueueError> {
        let mut header = [0; HEADER as usize];
        if chain.readable.read(ram, 0, &mut header)? < header.len() {
            return Err(QueueError::Request("has no complete header"));
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes(sector);
        let Some(data) = chain.writable.len().checked_sub(1) else {
            return Err(QueueError::Request("has no room for its status"));
        };
        let bytes = chain.readable.len().max(chain.writable.len());
        self.limiter
            .admit(bytes)
            .map_err(|wait| QueueError::Later(Some(wait)))?;
        let (status, written) = match self.execute(ram, chain, kind, sector, data) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Broken(error)) => return Err(error),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Invalid) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Failed(error)) if self.on_error.stops(&error) => {
                self.faults.disk_failed(&error);
                return Err(QueueError::Later(None));
            }
            Err(Refusal::Failed(error)) => {
                self.log
                    .log(&format!("a request of the guest's failed: {error}"));
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        chain.writable.write(ram, data, &[status as u8])?;
        // Bytes that were not written must not be told (2.7.8.2): a driver
        // that needs the status looks at it where it is.
        let told = if written == data {
            written + 1
        } else {
            written
        };
        Ok(u32::try_from(told).unwrap_or(u32::MAX))
    }
}

impl Requests {
    /// Does what is asked for and returns how many bytes were written to the
    /// writable part, of which `data` come before the status.
    fn execute(
        &self,
        ram: &GuestRam,
        chain: &Chain,
        kind: u32,
        sector: u64,
        data: u64,
    ) -> Result<u64, Refusal> {
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.place(sector, data)?;
                let slices = chain.writable.slices(ram, 0, data)?;
                let result = self.disk.read_at(&memory(&slices), offset);
                // Also after an error some of it may have been written.
                for slice in &slices {
                    slice.bitmap().mark_dirty(0, slice.len());
                }
                result?;
                Ok(data)
            }
            VIRTIO_BLK_T_OUT => {
                let len = chain.readable.len() - HEADER;
                let offset = self.place(sector, len)?;
                let slices = chain.readable.slices(ram, HEADER, len)?;
                self.disk.write_at(&memory(&slices), offset)?;
                self.settle()
            }
            VIRTIO_BLK_T_FLUSH => {
                self.disk.flush()?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let len = data.min(ID_LEN as u64) as usize;
                let id = self.id.get(..len).unwrap_or_default();
                Ok(chain.writable.write(ram, 0, id)? as u64)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if self.disk.is_read_only() => {
                Err(Refusal::Invalid)
            }
            VIRTIO_BLK_T_DISCARD => {
                let ranges = self.ranges(ram, &chain.readable)?;
                if ranges.iter().any(|range| range.flags != 0) {
                    return Err(Refusal::Unsupported);
                }
                for range in ranges {
                    self.disk.discard(range.offset, range.len)?;
                }
                self.settle()
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                let ranges = self.ranges(ram, &chain.readable)?;
                if ranges.iter().any(|range| range.flags & !unmap != 0) {
                    return Err(Refusal::Unsupported);
                }
                for range in ranges {
                    let unmap = range.flags & unmap != 0;
                    self.disk.write_zeroes(range.offset, range.len, unmap)?;
                }
                self.settle()
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    /// After a change: nothing was written to the request's buffers.
    fn settle(&self) -> Result<u64, Refusal> {
        if self.write_through {
            self.disk.flush()?;
        }
        Ok(0)
    }

    /// Byte offset of `sector`, if `len` bytes from there, whole sectors, are
    /// on the disk.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR);
        let end = offset.and_then(|offset| offset.checked_add(len));
        match (offset, end) {
            (Some(offset), Some(end)) if len.is_multiple_of(SECTOR) && end <= self.disk.size() => {
                Ok(offset)
            }
            _ => Err(Refusal::Invalid),
        }
    }

    /// The segments of discard and write zeroes, all on the disk.
    fn ranges(&self, ram: &GuestRam, readable: &Buffers) -> Result<Vec<Range>, Refusal> {
        let len = readable.len() - HEADER;
        let most = u64::from(RANGES_MAX) * RANGE as u64;
        if len == 0 || len > most || !len.is_multiple_of(RANGE as u64) {
            return Err(Refusal::Invalid);
        }
        let mut bytes = vec![0; len as usize];
        readable.read(ram, HEADER, &mut bytes)?;
        let (ranges, _) = bytes.as_chunks::<RANGE>();
        let parsed = ranges.iter().map(|bytes| {
            let [s @ .., n0, n1, n2, n3, f0, f1, f2, f3] = *bytes;
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            if sectors > RANGE_SECTORS_MAX {
                return Err(Refusal::Invalid);
            }
            let len = u64::from(sectors) * SECTOR;
            Ok(Range {
                offset: self.place(u64::from_le_bytes(s), len)?,
                len,
                flags: u32::from_le_bytes([f0, f1, f2, f3]),
            })
        });
        parsed.collect()
    }
}

/// Part of the disk, in bytes.
struct Range {
    offset: u64,
    len: u64,
    flags: u32,
}

fn memory<'a>(slices: &[GuestSlice<'a>]) -> Vec<IoMemory<'a>> {
    slices.iter().map(IoMemory::of_guest).collect()
}
