//! The members of a layer's archive, one after the other.
//!
//! The library decodes headers. What it does with what comes before a member
//! (long names, pax headers) takes as much memory as the archive says, and
//! without that it does not see the lengths and maps that are in there; layers
//! have files of more than 8 GiB, whose length only a pax header says.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::Fault;
use crate::tree::extended::Extended;

/// Bytes of a header, and what members are padded to.
const BLOCK: u64 = 512;
/// Most pieces of a sparse file.
const PIECES: usize = 1 << 16;
/// Most headers before a member's own.
const HEADERS: usize = 16;
/// Longest line of a map before a sparse file's data: 20 digits, a line feed.
const LINE: usize = 21;

/// A member.
#[derive(Debug)]
pub struct Member {
    /// What it is.
    pub kind: EntryType,
    /// Its path as the archive has it.
    pub path: PathBuf,
    /// What it links to, if anything.
    pub link: Option<PathBuf>,
    /// Permissions, with the set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Of a device its numbers.
    pub device: (u32, u32),
    /// Extended attributes.
    pub extended: std::collections::BTreeMap<String, Vec<u8>>,
    /// Its length in bytes, with its holes.
    pub size: u64,
    /// Where there is data and how much of it, in rising order; of a file
    /// without holes it is all.
    pub pieces: Vec<(u64, u64)>,
}

/// Reads members, and the contents of the last one.
pub struct Reader<R> {
    inner: R,
    /// Bytes of the last member that were not read.
    left: u64,
    /// Zeros after them.
    padding: u64,
}

impl<R: Read> Reader<R> {
    /// Of an archive that is not compressed.
    pub fn new(inner: R) -> Reader<R> {
        Reader {
            inner,
            left: 0,
            padding: 0,
        }
    }

    /// The next member; none at the archive's end. What was not read of the
    /// last one is skipped.
    pub fn next_member(&mut self) -> Result<Option<Member>, Fault> {
        let mut extended = Extended::default();
        for _ in 0..HEADERS {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let stated = field(header.entry_size(), &header.as_old().size)
                .ok_or("a length in it is no number")?;
            self.expect(stated)?;
            match header.entry_type() {
                EntryType::XHeader => extended.pax(self.by_ref())?,
                EntryType::GNULongName => extended.gnu_path(self.by_ref())?,
                EntryType::GNULongLink => extended.gnu_link(self.by_ref())?,
                // A comment, as `git archive` leaves it.
                EntryType::XGlobalHeader => {}
                _ => return self.member(&header, stated, extended).map(Some),
            }
        }
        Err("a member has too many headers".into())
    }

    fn member(
        &mut self,
        header: &Header,
        stated: u64,
        extended: Extended,
    ) -> Result<Member, Fault> {
        let kind = header.entry_type();
        let mut stored = extended.size.unwrap_or(stated);
        let mut size = stored;
        let mut pieces = None;
        let sparse = extended.sparse.unwrap_or_default();
        if kind == EntryType::GNUSparse {
            let (map, length) = self.old_map(header)?;
            (pieces, size) = (Some(map), length);
            self.expect(stored)?;
        } else if let Some(length) = sparse.size {
            self.expect(stored)?;
            size = length;
            let map = if sparse.major > 0 {
                let (map, taken) = self.map()?;
                stored = stored.saturating_sub(taken);
                map
            } else {
                pairs(&sparse.map)?
            };
            pieces = Some(map);
        } else {
            self.expect(stored)?;
        }
        let pieces = match pieces {
            Some(pieces) => checked(pieces, stored, size)?,
            None => vec![(0, size)],
        };
        let text = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let link = header.link_name_bytes().filter(|link| !link.is_empty());
        let old = header.as_old();
        let number = |own: io::Result<u64>, raw: &[u8], extended: Option<u64>| {
            let number = extended.or(field(own, raw));
            // The last one says to the kernel that nothing changes (chown(2)).
            let number = number.and_then(|number| u32::try_from(number).ok());
            number.filter(|number| *number != u32::MAX)
        };
        let device = |own: io::Result<Option<u32>>| own.ok().flatten().unwrap_or(0);
        let mtime = header.mtime().ok().and_then(|time| time.try_into().ok());
        Ok(Member {
            kind: match kind {
                EntryType::GNUSparse | EntryType::Continuous => EntryType::Regular,
                kind => kind,
            },
            path: sparse
                .name
                .or(extended.path)
                .unwrap_or_else(|| text(&header.path_bytes())),
            link: extended.link.or(link.map(|link| text(&link))),
            mode: number(header.mode().map(u64::from), &old.mode, None)
                .ok_or("a mode in it is no number")?
                & 0o7777,
            uid: number(header.uid(), &old.uid, extended.uid)
                .ok_or("an owner is no number of 32 bits")?,
            gid: number(header.gid(), &old.gid, extended.gid)
                .ok_or("a group is no number of 32 bits")?,
            mtime: extended.mtime.unwrap_or((mtime.unwrap_or(0), 0)),
            device: (device(header.device_major()), device(header.device_minor())),
            extended: extended.attributes,
            size,
            pieces,
        })
    }

    /// The next header; none where the archive ends.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let rest = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut self.inner.by_ref().take(rest), &mut io::sink());
        if skipped.map_err(Fault::unreadable)? != rest {
            return Err("it ends in the middle of a member".into());
        }
        (self.left, self.padding) = (0, 0);
        let mut header = Header::new_old();
        if !fill(&mut self.inner, header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // POSIX pax, "ustar Interchange Format": the sum of all bytes, those
        // of the sum itself as blanks.
        let bytes = header.as_bytes().iter().enumerate();
        let sum = bytes.fold(0u32, |sum, (place, byte)| {
            let own = (148..156).contains(&place);
            sum.saturating_add(if own { 32 } else { u32::from(*byte) })
        });
        if header.cksum().ok() != Some(sum) {
            return Err("it is no archive, or damaged: a header's sum is wrong".into());
        }
        Ok(Some(header))
    }

    fn expect(&mut self, bytes: u64) -> Result<(), Fault> {
        self.left = bytes;
        let whole = bytes.checked_next_multiple_of(BLOCK);
        let whole = whole.ok_or("a length in it is beyond all bounds")?;
        self.padding = whole.saturating_sub(bytes);
        Ok(())
    }

    /// GNU's older map: four pieces in the header, more in blocks after it.
    fn old_map(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), Fault> {
        let wrong = "a sparse file's map is not made of numbers";
        let gnu = header.as_gnu().ok_or(wrong)?;
        let mut map = Vec::new();
        let mut more = gnu.is_extended();
        for piece in gnu.sparse.iter().filter(|piece| !piece.is_empty()) {
            map.push((
                piece.offset().map_err(|_| wrong)?,
                piece.length().map_err(|_| wrong)?,
            ));
        }
        while more {
            let mut block = GnuExtSparseHeader::new();
            if !fill(&mut self.inner, block.as_mut_bytes())? {
                return Err("it ends in the middle of a member".into());
            }
            for piece in block.sparse().iter().filter(|piece| !piece.is_empty()) {
                map.push((
                    piece.offset().map_err(|_| wrong)?,
                    piece.length().map_err(|_| wrong)?,
                ));
            }
            if map.len() > PIECES {
                return Err("a sparse file has too many pieces".into());
            }
            more = block.is_extended();
        }
        Ok((map, gnu.real_size().map_err(|_| wrong)?))
    }

    /// pax's map of version 1, in whole blocks before the data: the number of
    /// pieces, then offset and length of each, a number a line.
    fn map(&mut self) -> Result<(Vec<(u64, u64)>, u64), Fault> {
        let mut taken = 0u64;
        let mut block: Vec<u8> = Vec::new();
        let mut numbers = Vec::new();
        let mut wanted = 1usize;
        let mut line = Vec::new();
        while numbers.len() < wanted {
            block.resize(BLOCK as usize, 0);
            self.read_exact(&mut block).map_err(Fault::unreadable)?;
            taken = taken.saturating_add(BLOCK);
            for byte in &block {
                if numbers.len() == wanted {
                    break;
                }
                if *byte != b'\n' {
                    line.push(*byte);
                    if line.len() > LINE {
                        return Err("a sparse file's map is not made of numbers".into());
                    }
                    continue;
                }
                let text = str::from_utf8(&line).ok();
                let number = text.and_then(|text| text.parse::<u64>().ok());
                let number = number.ok_or("a sparse file's map is not made of numbers")?;
                line.clear();
                if numbers.is_empty() {
                    let count = usize::try_from(number).unwrap_or(usize::MAX);
                    if count > PIECES {
                        return Err("a sparse file has too many pieces".into());
                    }
                    wanted = count.saturating_mul(2).saturating_add(1);
                }
                numbers.push(number);
            }
        }
        Ok((pairs(numbers.get(1..).unwrap_or_default())?, taken))
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = buffer.len().min(most);
        let buffer = buffer.get_mut(..length).unwrap_or_default();
        let count = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

/// A number of a header; one that was left blank is zero, as other programs
/// have it.
fn field(own: io::Result<u64>, raw: &[u8]) -> Option<u64> {
    let blank = raw.iter().all(|byte| matches!(byte, 0 | b' '));
    own.ok().or(blank.then_some(0))
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, Fault> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > PIECES {
        return Err("a sparse file's map is not made of pieces".into());
    }
    Ok(pairs
        .iter()
        .map(|[start, length]| (*start, *length))
        .collect())
}

/// Pieces that follow each other within `size` and have all of the `stored`
/// bytes.
fn checked(mut pieces: Vec<(u64, u64)>, stored: u64, size: u64) -> Result<Vec<(u64, u64)>, Fault> {
    let mut end = 0u64;
    let mut bytes = 0u64;
    for (start, length) in &pieces {
        if *start < end {
            return Err("a sparse file's pieces overlap".into());
        }
        end = start.saturating_add(*length);
        bytes = bytes.saturating_add(*length);
    }
    if end > size || bytes != stored {
        return Err("a sparse file's pieces are not all of it".into());
    }
    pieces.retain(|(_, length)| *length > 0);
    Ok(pieces)
}

/// Fills a buffer; whether there was anything. Less than all is a fault.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<bool, Fault> {
    let length = buffer.len();
    let mut done = 0usize;
    while done < length {
        let rest = buffer.get_mut(done..).unwrap_or_default();
        match from.read(rest) {
            Ok(0) if done == 0 => return Ok(false),
            Ok(0) => return Err("it ends in the middle of a header".into()),
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::unreadable(error)),
        }
    }
    Ok(true)
}
