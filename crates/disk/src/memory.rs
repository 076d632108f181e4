//! Memory that somebody else may change during an operation, and the two
//! system calls on it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Most pieces of one system call (`IOV_MAX`, limits.h).
const PIECES: usize = 1024;

/// A piece of memory that may change at any time: only system calls touch it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoMemory<'a> {
    raw: libc::iovec,
    lifetime: PhantomData<&'a VolatileSlice<'a>>,
}

impl<'a> IoMemory<'a> {
    /// A piece of guest memory. Whoever lets something be written to it
    /// marks it as written afterwards, in the slice's bitmap.
    pub fn of_guest<B: BitmapSlice>(slice: &VolatileSlice<'a, B>) -> Self {
        IoMemory {
            raw: libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            },
            lifetime: PhantomData,
        }
    }

    /// Memory of our own.
    pub fn of_bytes(bytes: &'a mut [u8]) -> Self {
        Self::of_guest(&VolatileSlice::from(bytes))
    }

    /// Memory of our own that is only to be written from: it may be given to
    /// nothing that fills it.
    pub(crate) fn of_shared(bytes: &'a [u8]) -> Self {
        IoMemory {
            raw: libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            },
            lifetime: PhantomData,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.raw.iov_len
    }

    /// True for a piece of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether its address and its length are multiples of `to`.
    pub(crate) fn is_aligned(&self, to: usize) -> bool {
        self.raw.iov_base.addr().is_multiple_of(to) && self.len().is_multiple_of(to)
    }

    /// Fills it with zeros.
    pub fn zero(&self) {
        // SAFETY: the piece is valid for writes of its length, and nothing
        // refers to it as a slice. What else changes it is the guest, whose
        // bytes have no meaning here.
        unsafe { std::ptr::write_bytes(self.raw.iov_base.cast::<u8>(), 0, self.len()) }
    }

    /// Fills it from the start of `bytes`; returns how many there were.
    pub fn fill_from(&self, bytes: &[u8]) -> usize {
        let count = self.len().min(bytes.len());
        // SAFETY: both are valid for `count` bytes, and guest memory or
        // memory that is borrowed for this piece alone does not overlap
        // `bytes`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.raw.iov_base.cast(), count);
        }
        count
    }

    /// Copies its start into `bytes`; returns how many bytes there were.
    pub fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let count = self.len().min(bytes.len());
        // SAFETY: as in `fill_from`.
        unsafe {
            let from = self.raw.iov_base.cast::<u8>();
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), count);
        }
        count
    }

    /// Without what comes after the first `count` bytes.
    #[must_use]
    fn take(self, count: usize) -> Self {
        IoMemory {
            raw: libc::iovec {
                iov_len: self.len().min(count),
                ..self.raw
            },
            ..self
        }
    }

    /// Without the first `count` bytes; empty when there are fewer.
    #[must_use]
    fn skip(self, count: usize) -> Self {
        let count = count.min(self.len());
        IoMemory {
            raw: libc::iovec {
                // SAFETY: `count` is at most the length, so that the result
                // lies inside the piece or at its end.
                iov_base: unsafe { self.raw.iov_base.byte_add(count) },
                iov_len: self.len() - count,
            },
            ..self
        }
    }
}

/// Bytes of all pieces together.
pub fn total(buffers: &[IoMemory<'_>]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

/// Bytes `offset..offset + len` of all pieces together; fewer where they end
/// before.
pub fn part<'a>(buffers: &[IoMemory<'a>], offset: u64, len: u64) -> Vec<IoMemory<'a>> {
    let mut left = len;
    let pieces = rest(buffers, offset).into_iter().map(|piece| {
        let piece = piece.take(usize::try_from(left).unwrap_or(usize::MAX));
        left -= piece.len() as u64;
        piece
    });
    pieces.filter(|piece| !piece.is_empty()).collect()
}

/// Fills pieces with zeros from byte `offset` of all of them together on.
pub fn zero_from(buffers: &[IoMemory<'_>], offset: u64) {
    if offset < total(buffers) {
        rest(buffers, offset).iter().for_each(IoMemory::zero);
    }
}

/// Direction of [`transfer`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// Moves all bytes between `buffers` and the file at `offset`. Tells how many
/// it moved when the file ended (reads) or took no more (writes).
pub fn transfer(
    file: &File,
    direction: Direction,
    buffers: &[IoMemory<'_>],
    offset: u64,
) -> io::Result<u64> {
    transfer_in_units(file, direction, buffers, offset, 1)
}

/// The same for a file of which only whole units can be had: where the host
/// stops within one, there the file ends.
pub fn transfer_in_units(
    file: &File,
    direction: Direction,
    buffers: &[IoMemory<'_>],
    offset: u64,
    unit: u64,
) -> io::Result<u64> {
    let mut done = 0u64;
    for chunk in buffers.chunks(PIECES) {
        let wanted = total(chunk);
        let mut moved = 0;
        while moved < wanted {
            let at = offset.saturating_add(done);
            let count = if moved == 0 {
                once(file, direction, chunk, at)?
            } else {
                once(file, direction, &rest(chunk, moved), at)?
            };
            moved += count;
            done += count;
            if count == 0 || !count.is_multiple_of(unit) {
                return Ok(done);
            }
        }
    }
    Ok(done)
}

/// What is left of `chunk` after its first `moved` bytes.
fn rest<'a>(chunk: &[IoMemory<'a>], mut moved: u64) -> Vec<IoMemory<'a>> {
    let skipped = chunk.iter().map(|piece| {
        let skip = moved.min(piece.len() as u64);
        moved -= skip;
        piece.skip(skip as usize)
    });
    skipped.filter(|piece| !piece.is_empty()).collect()
}

fn once(file: &File, direction: Direction, chunk: &[IoMemory<'_>], offset: u64) -> io::Result<u64> {
    let descriptor = file.as_raw_fd();
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let pieces = chunk.as_ptr().cast::<libc::iovec>();
    let count = chunk.len().min(PIECES) as libc::c_int;
    loop {
        // SAFETY: IoMemory is a transparent iovec, so `pieces` are `count`
        // iovecs; each describes memory that is mapped for the lifetime it
        // carries and that nobody holds as a Rust slice. The kernel accepts
        // that it changes meanwhile.
        let result = unsafe {
            match direction {
                Direction::Read => libc::preadv(descriptor, pieces, count, offset),
                Direction::Write => libc::pwritev(descriptor, pieces, count, offset),
            }
        };
        match u64::try_from(result) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_pieces_keep_their_order() {
        let file = tempfile::tempfile().unwrap();
        let mut source: Vec<u8> = (0..=255).cycle().take(5000).collect();
        // More pieces than one call takes.
        let pieces: Vec<_> = source.chunks_mut(3).map(IoMemory::of_bytes).collect();
        assert!(pieces.len() > PIECES);
        let count = transfer(&file, Direction::Write, &pieces, 7).unwrap();
        assert_eq!(count, 5000);
        let mut back = vec![0; 5000];
        let (one, two) = back.split_at_mut(1234);
        let pieces = [IoMemory::of_bytes(one), IoMemory::of_bytes(two)];
        assert_eq!(transfer(&file, Direction::Read, &pieces, 7).unwrap(), 5000);
        assert_eq!(back, source);
    }

    #[test]
    fn the_end_of_the_file_is_told() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let mut bytes = [0xFF; 64];
        let pieces = [IoMemory::of_bytes(&mut bytes)];
        assert_eq!(transfer(&file, Direction::Read, &pieces, 90).unwrap(), 10);
        assert_eq!(transfer(&file, Direction::Read, &pieces, 100).unwrap(), 0);
        assert!(transfer(&file, Direction::Read, &pieces, u64::MAX).is_err());
    }

    #[test]
    fn what_is_left_starts_inside_a_piece() {
        let mut bytes = [0; 10];
        let (one, two) = bytes.split_at_mut(4);
        let pieces = [IoMemory::of_bytes(one), IoMemory::of_bytes(two)];
        let left = rest(&pieces, 5);
        assert_eq!(left.len(), 1);
        assert_eq!(total(&left), 5);
        assert_eq!(total(&rest(&pieces, 3)), 7);
        let part = part(&pieces, 3, 2);
        assert_eq!(part.iter().map(IoMemory::len).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(part[0].fill_from(&[7, 8]), 1);
        assert_eq!(part[1].fill_from(&[8]), 1);
        let mut back = [1; 4];
        assert_eq!(pieces[0].copy_to(&mut back), 4);
        assert_eq!(back, [0, 0, 0, 7]);
        zero_from(&pieces, 3);
        zero_from(&pieces, 10);
        assert_eq!(bytes, [0; 10]);
    }
}
