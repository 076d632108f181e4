//! Guessing an image's format from how it begins.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::file::{OpenError, check_kind};

/// Bytes from the start in which formats are recognised.
pub(crate) const PROBED: usize = 512;

/// Formats that lie below a partition table or file system: name, place of
/// the magic number, and the number itself. (qcow2.txt; "VMDK 5.0 Technical
/// Note"; MS-VHDX 2.2; VirtualBox VDICore.h; the last is a VHD's copy of its
/// footer; LUKS1 and LUKS2 are not here, since a guest's raw disk may well
/// be one.)
const MAGICS: [(&str, usize, &[u8]); 7] = [
    (QCOW2, 0, b"QFI\xfb"),
    ("a VMDK image", 0, b"KDMV"),
    ("a VMDK image", 0, b"COWD"),
    ("a VMDK image", 0, b"# Disk DescriptorFile"),
    ("a VHDX image", 0, b"vhdxfile"),
    ("a VDI image", 64, b"\x7f\x10\xda\xbe"),
    ("a VHD image", 0, b"conectix"),
];
const QCOW2: &str = "a qcow2 image";

/// How an image file contains its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's format, version 2 or 3.
    Qcow2,
}

/// The format that something beginning with `start` has, unless it may well
/// be raw.
pub(crate) fn foreign(start: &[u8]) -> Option<&'static str> {
    let begins = |(_, at, magic): &&(&str, usize, &[u8])| {
        start.get(*at..).is_some_and(|rest| rest.starts_with(magic))
    };
    MAGICS.iter().find(begins).map(|(name, _, _)| *name)
}

/// Guesses the format of an image.
///
/// A guest can write whatever it likes to a raw disk, so only a disk that was
/// never written by a guest can be guessed without danger. A raw disk whose
/// format was guessed must therefore be opened by [`Layer::guessed`].
///
/// [`Layer::guessed`]: crate::Layer::guessed
pub fn probe(file: &File) -> Result<Format, OpenError> {
    check_kind(file)?;
    let mut start = [0; PROBED];
    let mut got = 0;
    while let Some(rest) = start.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, got as u64)? {
            0 => break,
            count => got += count,
        }
    }
    match foreign(start.get(..got).unwrap_or_default()) {
        None => Ok(Format::Raw),
        Some(QCOW2) => Ok(Format::Qcow2),
        Some(other) => Err(OpenError::Foreign(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        let begins = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            probe(&file)
        };
        assert_eq!(begins(b"").unwrap(), Format::Raw);
        assert_eq!(begins(b"QFI").unwrap(), Format::Raw);
        assert_eq!(begins(b"QFI\xfb\0\0\0\x03").unwrap(), Format::Qcow2);
        let vdi = [&[0; 64][..], b"\x7f\x10\xda\xbe"].concat();
        for (bytes, name) in [(&b"KDMV"[..], "VMDK"), (b"vhdxfile", "VHDX"), (&vdi, "VDI")] {
            assert!(begins(bytes).unwrap_err().to_string().contains(name));
        }
        assert!(probe(&File::open("/dev/null").unwrap()).is_err());
    }
}
