//! How a file begins that `croft save` wrote: what the machine was run with.
//!
//! ```text
//! 0        8         12       16    20
//! ┌────────┬─────────┬────────┬─────┬────────────────┬──────────────────┐
//! │ magic  │ version │ length │ CRC │ JSON, `length` │ the state itself │
//! └────────┴─────────┴────────┴─────┴────────────────┴──────────────────┘
//! ```
//!
//! The monitor writes and reads this part, since it alone knows paths; the
//! vmm writes and reads the state behind it. Numbers are little-endian, the
//! CRC-32 is that of the JSON.

use std::ffi::OsString;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::disk::RunDisk;
use crate::machine::MachineSpec;
use crate::monitor::RunShare;
use crate::net::NicSpec;

const MAGIC: [u8; 8] = *b"CROFTST\n";
/// Version that this build writes.
const VERSION: u32 = 1;
const HEADER: usize = 20;
/// Longest JSON in bytes. Paths and a command line are a few kilobytes.
const LENGTH_MAX: u32 = 1 << 20;

/// What a saved machine was run with. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRun {
    /// The configuration; its engine, and how that runs, count for nothing.
    pub machine: MachineSpec,
    /// Path of the kernel, which the machine's next reset loads; the first
    /// disk's own without.
    pub kernel: Option<OsString>,
    /// Path of the initrd.
    pub initrd: Option<OsString>,
    /// The disks.
    pub disks: Vec<RunDisk>,
    /// The NICs.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// Directories of the host's in the guest.
    #[serde(default)]
    pub shares: Vec<RunShare>,
}

/// Why a file is none that can be restored from.
#[derive(Debug, Error)]
pub enum SavedRunError {
    /// It does not begin as one does.
    #[error("is not a saved machine; name a file that 'croft save' wrote")]
    NotSaved,
    /// A later Croft wrote it.
    #[error(
        "was saved by a newer Croft (version {0} of the file, {VERSION} is understood); restore it with that"
    )]
    Version(u32),
    /// A checksum or value is wrong.
    #[error("is damaged ({0}); use another copy of it")]
    Damaged(String),
    /// The host could not read it.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
}

impl SavedRun {
    /// Writes it.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        let length = u32::try_from(json.len())
            .ok()
            .filter(|length| *length <= LENGTH_MAX)
            .ok_or_else(|| io::Error::other("the configuration is too long"))?;
        let mut bytes = Vec::with_capacity(HEADER + json.len());
        bytes.extend(MAGIC);
        for word in [VERSION, length, crc32fast::hash(&json)] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(json);
        out.write_all(&bytes)
    }

    /// Reads it and leaves `source` at the state.
    pub fn read(source: &mut impl Read) -> Result<Self, SavedRunError> {
        let mut header = [0; HEADER];
        fill(source, &mut header, || SavedRunError::NotSaved)?;
        let [magic @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
        if magic != MAGIC {
            return Err(SavedRunError::NotSaved);
        }
        let [_, _, _, _, _, _, _, _, words @ ..] = header;
        let (words, _) = words.as_chunks::<4>();
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        let (version, length, sum) = (next(), next(), next());
        if version == 0 || version > VERSION {
            return Err(SavedRunError::Version(version));
        }
        if length > LENGTH_MAX {
            let what = format!("{length} bytes of configuration");
            return Err(SavedRunError::Damaged(what));
        }
        let mut json = vec![0; length as usize];
        let cut = || SavedRunError::Damaged("it is cut off".to_owned());
        fill(source, &mut json, cut)?;
        if crc32fast::hash(&json) != sum {
            let what = "a checksum is wrong".to_owned();
            return Err(SavedRunError::Damaged(what));
        }
        serde_json::from_slice(&json).map_err(|error| SavedRunError::Damaged(error.to_string()))
    }
}

fn fill(
    source: &mut impl Read,
    bytes: &mut [u8],
    cut: impl FnOnce() -> SavedRunError,
) -> Result<(), SavedRunError> {
    source.read_exact(bytes).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            cut()
        } else {
            SavedRunError::Read(error)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{CpuModel, EngineChoice, SoftwareSpec};

    fn run() -> SavedRun {
        SavedRun {
            machine: MachineSpec {
                name: "web".to_owned(),
                engine: EngineChoice::Auto,
                software: SoftwareSpec::default(),
                cpu: Some(CpuModel::PortableV1),
                memory: 1 << 29,
                cpus: 2,
                append: "quiet".to_owned(),
                no_reboot: false,
                test_devices: false,
                ports: Vec::new(),
                vsock: None,
            },
            kernel: Some("/vmlinuz".into()),
            initrd: None,
            disks: vec![RunDisk::new("/disk")],
            nics: Vec::new(),
            shares: vec![RunShare {
                path: "/srv".into(),
                tag: "srv".to_owned(),
                read_only: false,
            }],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        run().write(&mut bytes).unwrap();
        bytes.extend(b"state");
        let mut source = &*bytes;
        assert_eq!(SavedRun::read(&mut source).unwrap(), run());
        assert_eq!(source, b"state");
    }

    #[test]
    fn every_cut_and_every_wrong_byte_is_refused() {
        let mut bytes = Vec::new();
        run().write(&mut bytes).unwrap();
        for len in 0..bytes.len() {
            assert!(SavedRun::read(&mut &bytes[..len]).is_err(), "{len}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let text = SavedRun::read(&mut &*damaged).unwrap_err().to_string();
            assert!(text.lines().count() == 1 && text.len() < 300, "{text}");
        }
    }
}
