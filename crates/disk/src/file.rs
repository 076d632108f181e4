//! Whether an open file can be a disk, and how large it is.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;

use thiserror::Error;

use crate::disk::SECTOR;

/// Why an open file cannot be a disk.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It is a directory, a pipe, a socket or a terminal.
    #[error("is {0}; name a regular file or a block device")]
    Kind(&'static str),
    /// It has no bytes.
    #[error("is empty; make it as large as the disk shall be (truncate -s 1G FILE)")]
    Empty,
    /// It ends within a sector.
    #[error("has {0} bytes, not a multiple of 512; it is not a raw disk image, or was cut short")]
    Uneven(u64),
    /// Its size cannot be found.
    #[error("its size cannot be found: {0}")]
    Host(#[from] io::Error),
}

/// Size in bytes of the disk that `file`, a regular file or block device,
/// would be.
pub fn check(file: &File) -> Result<u64, OpenError> {
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    let size = if kind.is_file() {
        metadata.len()
    } else if kind.is_block_device() {
        // A device's end is where seeking to it leads.
        let mut file = file;
        file.seek(SeekFrom::End(0))?
    } else {
        return Err(OpenError::Kind(if kind.is_dir() {
            "a directory"
        } else if kind.is_char_device() {
            "a character device"
        } else {
            "a pipe or socket"
        }));
    };
    match size {
        0 => Err(OpenError::Empty),
        size if !size.is_multiple_of(SECTOR) => Err(OpenError::Uneven(size)),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_disk_is_named() {
        let error = |file: &File| check(file).unwrap_err().to_string();
        let directory = File::open("/").unwrap();
        assert!(error(&directory).contains("a directory"));
        let device = File::open("/dev/null").unwrap();
        assert!(error(&device).contains("character device"));
        let file = tempfile::tempfile().unwrap();
        assert!(error(&file).contains("empty"));
        file.set_len(513).unwrap();
        assert!(error(&file).contains("513 bytes"));
        file.set_len(1024).unwrap();
        assert_eq!(check(&file).unwrap(), 1024);
    }
}
