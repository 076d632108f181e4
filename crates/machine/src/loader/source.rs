//! Where a kernel's or initrd's bytes come from: a file or a buffer.

use std::fs::File;
use std::os::unix::fs::FileExt;

use croft_memory::GuestRam;

use super::error::{LoadError, Problem};

/// Largest kernel or initrd file, in bytes.
pub const FILE_LIMIT: u64 = 1 << 30;

/// Bytes moved at once between a file and guest memory.
const CHUNK: usize = 1 << 20;

/// An open file with the name by which messages call it.
#[derive(Debug)]
pub struct NamedFile {
    /// The file, open for reading. Its position is neither used nor moved.
    pub file: File,
    /// As the user wrote it.
    pub name: String,
}

impl NamedFile {
    /// Opens `path` and remembers it as the name.
    pub fn open(path: &str) -> Result<Self, LoadError> {
        match File::open(path) {
            Ok(file) => Ok(NamedFile {
                file,
                name: path.to_owned(),
            }),
            Err(error) => Err(LoadError::new(path, Problem::Read(error))),
        }
    }

    /// The length in bytes, once the file is known to be regular, not empty
    /// and not above [`FILE_LIMIT`].
    pub fn checked_len(&self) -> Result<u64, LoadError> {
        self.regular_len()
            .map_err(|problem| LoadError::new(&self.name, problem))
    }

    fn regular_len(&self) -> Result<u64, Problem> {
        let metadata = self.file.metadata()?;
        if metadata.is_dir() {
            return Err(Problem::Directory);
        }
        if !metadata.is_file() {
            return Err(Problem::NotRegular);
        }
        match metadata.len() {
            0 => Err(Problem::Empty),
            len if len > FILE_LIMIT => Err(Problem::TooLarge {
                len,
                limit: FILE_LIMIT,
            }),
            len => Ok(len),
        }
    }
}

/// Random access to bytes of known length.
pub trait Source {
    /// Length in bytes.
    fn size(&self) -> u64;

    /// Fills `data` from byte `offset`. `part` names what is being read, for
    /// the message when the source ends too early.
    fn read(&self, offset: u64, data: &mut [u8], part: &'static str) -> Result<(), Problem>;

    /// Copies `len` bytes from byte `offset` to guest-physical `address`.
    fn copy_to(
        &self,
        offset: u64,
        len: u64,
        ram: &GuestRam,
        address: u64,
        part: &'static str,
    ) -> Result<(), Problem>;

    /// Up to `len` bytes from byte `offset`; fewer at the end.
    fn up_to(&self, offset: u64, len: usize) -> Result<Vec<u8>, Problem> {
        let there = self.size().saturating_sub(offset).min(len as u64) as usize;
        let mut data = vec![0; there];
        self.read(offset, &mut data, "contents")?;
        Ok(data)
    }
}

/// A regular file whose length was checked.
pub struct FileSource<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> FileSource<'a> {
    /// Checks the file; see [`NamedFile::checked_len`].
    pub fn new(named: &'a NamedFile) -> Result<Self, LoadError> {
        Ok(FileSource {
            file: &named.file,
            len: named.checked_len()?,
        })
    }
}

impl Source for FileSource<'_> {
    fn size(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, data: &mut [u8], part: &'static str) -> Result<(), Problem> {
        match self.file.read_exact_at(data, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(Problem::Truncated { part })
            }
            other => Ok(other?),
        }
    }

    fn copy_to(
        &self,
        offset: u64,
        len: u64,
        ram: &GuestRam,
        address: u64,
        part: &'static str,
    ) -> Result<(), Problem> {
        let mut buffer = vec![0; len.min(CHUNK as u64) as usize];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(buffer.len() as u64) as usize;
            let chunk = &mut buffer[..now];
            self.read(offset.saturating_add(done), chunk, part)?;
            write(ram, address.saturating_add(done), chunk)?;
            done += now as u64;
        }
        Ok(())
    }
}

impl Source for [u8] {
    fn size(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read(&self, offset: u64, data: &mut [u8], part: &'static str) -> Result<(), Problem> {
        data.copy_from_slice(slice(self, offset, data.len() as u64, part)?);
        Ok(())
    }

    fn copy_to(
        &self,
        offset: u64,
        len: u64,
        ram: &GuestRam,
        address: u64,
        part: &'static str,
    ) -> Result<(), Problem> {
        write(ram, address, slice(self, offset, len, part)?)
    }
}

/// Bytes in memory.
pub struct Bytes<'a>(pub &'a [u8]);

impl Source for Bytes<'_> {
    fn size(&self) -> u64 {
        Source::size(self.0)
    }

    fn read(&self, offset: u64, data: &mut [u8], part: &'static str) -> Result<(), Problem> {
        Source::read(self.0, offset, data, part)
    }

    fn copy_to(
        &self,
        offset: u64,
        len: u64,
        ram: &GuestRam,
        address: u64,
        part: &'static str,
    ) -> Result<(), Problem> {
        self.0.copy_to(offset, len, ram, address, part)
    }
}

fn slice<'a>(
    data: &'a [u8],
    offset: u64,
    len: u64,
    part: &'static str,
) -> Result<&'a [u8], Problem> {
    let end = offset
        .checked_add(len)
        .filter(|end| *end <= Source::size(data));
    match end {
        Some(end) => Ok(&data[offset as usize..end as usize]),
        None => Err(Problem::Truncated { part }),
    }
}

/// Copies `data` to guest-physical `address`.
pub fn write(ram: &GuestRam, address: u64, data: &[u8]) -> Result<(), Problem> {
    ram.write(address, data).map_err(|_| Problem::NoRoom {
        start: address,
        end: address.saturating_add(data.len() as u64),
    })
}

/// Makes `len` bytes at guest-physical `address` zero. Memory that is zero
/// already, as all of it is at power-on, is not written, so that the host
/// need not back it.
pub fn zero(ram: &GuestRam, address: u64, len: u64) -> Result<(), Problem> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut found = [0; ZEROS.len()];
    let mut done = 0;
    while done < len {
        let at = address.saturating_add(done);
        let now = (len - done).min(ZEROS.len() as u64) as usize;
        let found = &mut found[..now];
        ram.read(at, found).map_err(|_| Problem::NoRoom {
            start: address,
            end: address.saturating_add(len),
        })?;
        if found.iter().any(|byte| *byte != 0) {
            write(ram, at, &ZEROS[..now])?;
        }
        done += now as u64;
    }
    Ok(())
}

/// Little-endian field at `offset`, or `None` past the end.
pub fn field<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
    data.get(offset..)?.first_chunk::<N>().copied()
}

/// Little-endian `u16` at `offset`.
pub fn le16(data: &[u8], offset: usize) -> Option<u16> {
    field(data, offset).map(u16::from_le_bytes)
}

/// Little-endian `u32` at `offset`.
pub fn le32(data: &[u8], offset: usize) -> Option<u32> {
    field(data, offset).map(u32::from_le_bytes)
}

/// Little-endian `u64` at `offset`.
pub fn le64(data: &[u8], offset: usize) -> Option<u64> {
    field(data, offset).map(u64::from_le_bytes)
}
