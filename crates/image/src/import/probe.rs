//! What a file is, by its first bytes; its name does not count.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Kinds of files that images are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A disk, byte for byte.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, in one file.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
    /// Hyper-V's older one.
    Vpc,
    /// VirtualBox's.
    Vdi,
    /// A root file system in an archive, which may be compressed.
    Tar(Compression),
}

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::Vhdx => "vhdx",
            Format::Vpc => "vpc",
            Format::Vdi => "vdi",
            Format::Tar(_) => "tar",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        let formats = [
            Format::Raw,
            Format::Qcow2,
            Format::Vmdk,
            Format::Vhdx,
            Format::Vpc,
            Format::Vdi,
        ];
        formats
            .into_iter()
            .find(|format| format.to_string() == text)
            .ok_or_else(|| "give raw, qcow2, vmdk, vhdx, vpc or vdi".to_owned())
    }
}

/// Signatures, where they are, and what they mean. Disks come last: what a
/// disk begins with can be anything.
const SIGNATURES: &[(u64, &[u8], Format)] = &[
    (0, b"QFI\xfb", Format::Qcow2),
    (0, b"KDMV", Format::Vmdk),
    (0, b"vhdxfile", Format::Vhdx),
    (0, b"conectix", Format::Vpc),
    (0x40, b"\x7f\x10\xda\xbe", Format::Vdi),
    (257, b"ustar", Format::Tar(Compression::None)),
    (0, b"\x1f\x8b\x08", Format::Tar(Compression::Gzip)),
    (0, b"BZh", Format::Tar(Compression::Bzip2)),
    (0, b"\xfd7zXZ\0", Format::Tar(Compression::Xz)),
    (0, b"\x28\xb5\x2f\xfd", Format::Tar(Compression::Zstd)),
    // A master boot record; a GPT disk has one too.
    (510, b"\x55\xaa", Format::Raw),
    // ext2 to ext4, XFS, btrfs: file systems without partitions.
    (0x438, b"\x53\xef", Format::Raw),
    (0, b"XFSB", Format::Raw),
    (0x1_0040, b"_BHRfS_M", Format::Raw),
];

/// Looks at a file. `None` if it has no signature that is known.
pub fn probe(file: &File) -> io::Result<Option<Format>> {
    for (offset, signature, format) in SIGNATURES {
        let mut bytes = vec![0; signature.len()];
        match file.read_exact_at(&mut bytes, *offset) {
            Ok(()) if bytes == *signature => return Ok(Some(*format)),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_found_where_it_is() {
        for (offset, signature, format) in SIGNATURES {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 17).unwrap();
            file.write_all_at(signature, *offset).unwrap();
            assert_eq!(probe(&file).unwrap(), Some(*format));
            file.set_len(*offset + 1).unwrap();
            assert_eq!(probe(&file).unwrap(), None);
        }
        assert!("tar".parse::<Format>().is_err());
        assert_eq!("vdi".parse(), Ok(Format::Vdi));
    }
}
