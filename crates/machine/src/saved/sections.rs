//! Sections of the stream, written and read.

use std::io::{self, Read, Write};

use crc32fast::Hasher;
use croft_memory::PAGE_SIZE;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SavedError;

/// First bytes. The control character makes it a binary file for tools that
/// guess, and the line end is lost where a transfer converts text.
const MAGIC: [u8; 8] = *b"CROFTVM\n";
/// Version of the stream.
const VERSION: u32 = 1;
/// Bytes before a section's payload.
const HEADER: usize = 16;
/// Most bytes of memory in one section.
pub const MEMORY_MAX: u64 = 256 * PAGE_SIZE;

/// Kind of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Description = 1,
    Memory = 2,
    State = 3,
    End = 4,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        [Kind::Description, Kind::Memory, Kind::State, Kind::End]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }

    /// Longest payload in bytes. A description has some hundred CPUID leaves
    /// at most; a vCPU's state is some ten kilobytes, and there are at most
    /// 254 of them.
    fn limit(self) -> u64 {
        match self {
            Kind::Description => 1 << 20,
            Kind::Memory => 8 + MEMORY_MAX,
            Kind::State => 64 << 20,
            Kind::End => 8,
        }
    }
}

fn checksum(kind: u32, parts: &[&[u8]], len: u64) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&kind.to_le_bytes());
    hasher.update(&len.to_le_bytes());
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Writes sections.
pub struct Writer<'a> {
    out: &'a mut dyn Write,
    sections: u64,
}

impl<'a> Writer<'a> {
    /// Begins the stream.
    pub fn new(out: &'a mut dyn Write) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        Ok(Writer { out, sections: 0 })
    }

    /// A section whose payload is `parts` together.
    pub fn section(&mut self, kind: Kind, parts: &[&[u8]]) -> io::Result<()> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if len > kind.limit() {
            return Err(io::Error::other(format!("{len} bytes are too many")));
        }
        let kind = kind as u32;
        self.out.write_all(&kind.to_le_bytes())?;
        self.out
            .write_all(&checksum(kind, parts, len).to_le_bytes())?;
        self.out.write_all(&len.to_le_bytes())?;
        self.sections += 1;
        parts.iter().try_for_each(|part| self.out.write_all(part))
    }

    /// A section that holds `value`.
    pub fn json(&mut self, kind: Kind, value: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(value)?;
        self.section(kind, &[&bytes])
    }

    /// The end, after which the stream is good.
    pub fn end(mut self) -> io::Result<()> {
        let sections = self.sections;
        self.section(Kind::End, &[&sections.to_le_bytes()])?;
        self.out.flush()
    }
}

/// Reads sections.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    sections: u64,
    payload: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads how the stream begins.
    pub fn new(source: R) -> Result<Self, SavedError> {
        let mut reader = Reader {
            source,
            sections: 0,
            payload: Vec::new(),
        };
        if reader.exactly::<8>()? != MAGIC {
            return Err(SavedError::NotSaved);
        }
        let found = u32::from_le_bytes(reader.exactly()?);
        if found == 0 || found > VERSION {
            let known = VERSION;
            return Err(SavedError::Version { found, known });
        }
        Ok(reader)
    }

    fn exactly<const N: usize>(&mut self) -> Result<[u8; N], SavedError> {
        let mut bytes = [0; N];
        match self.source.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(SavedError::Truncated)
            }
            Err(error) => Err(SavedError::Read(error)),
        }
    }

    /// Reads the next section.
    pub fn next(&mut self) -> Result<Kind, SavedError> {
        let header: [u8; HEADER] = self.exactly()?;
        let [k0, k1, k2, k3, c0, c1, c2, c3, len @ ..] = header;
        let number = u32::from_le_bytes([k0, k1, k2, k3]);
        let len = u64::from_le_bytes(len);
        let kind = Kind::from_number(number)
            .ok_or_else(|| SavedError::Damaged(format!("there is no part of kind {number}")))?;
        if len > kind.limit() {
            let what = format!("a part of {len} bytes is too long");
            return Err(SavedError::Damaged(what));
        }
        self.payload.clear();
        // Grows as bytes come, whatever was announced.
        let mut source = (&mut self.source).take(len);
        source
            .read_to_end(&mut self.payload)
            .map_err(SavedError::Read)?;
        if (self.payload.len() as u64) < len {
            return Err(SavedError::Truncated);
        }
        let sum = checksum(number, &[&self.payload], len);
        if sum != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(SavedError::Damaged("a checksum is wrong".to_owned()));
        }
        self.sections += 1;
        Ok(kind)
    }

    /// Payload of the last section.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The payload as a value.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, SavedError> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| SavedError::Damaged(error.to_string()))
    }

    /// Reads the end, which must come now.
    pub fn end(&mut self) -> Result<(), SavedError> {
        let before = self.sections;
        let kind = self.next()?;
        if kind != Kind::End || self.payload != before.to_le_bytes() {
            let what = "it does not end as it should".to_owned();
            return Err(SavedError::Damaged(what));
        }
        Ok(())
    }
}
