//! Where the files of an image are: a directory, or an archive whose files were
//! put into one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use tar::EntryType;

use super::archive::Members;
use super::manifest::LONGEST;
use crate::Error;
use crate::import::probe::Compression;
use crate::layer::Reader;
use crate::store::Staging;
use crate::tree::walk::{Walker, plain};

/// Files of an image by the paths that a layout has.
pub struct Place {
    origin: PathBuf,
    kind: Kind,
}

enum Kind {
    Directory(Walker),
    Archive(Members),
}

impl Place {
    /// A layout in a directory; none if it is not one.
    pub fn directory(path: &Path) -> Result<Option<Place>, Error> {
        if !path.join("oci-layout").exists() {
            return Ok(None);
        }
        let walker = Walker::new(path).map_err(Error::io("open directory", path))?;
        Ok(Some(Place {
            origin: path.to_owned(),
            kind: Kind::Directory(walker),
        }))
    }

    /// An archive, whose files are put into the staging directory.
    pub fn archive(
        path: &Path,
        file: File,
        compression: Compression,
        staging: &Staging,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Place, Error> {
        let members = Members::unpack(path, file, compression, staging, progress)?;
        Ok(Place {
            origin: path.to_owned(),
            kind: Kind::Archive(members),
        })
    }

    /// The file or directory, for messages.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Opens a file, if it is there.
    pub fn open(&mut self, path: &str) -> Result<Option<File>, Error> {
        match &mut self.kind {
            Kind::Archive(members) => members.open(Path::new(path)),
            Kind::Directory(walker) => {
                let clean = plain(Path::new(path)).map_err(|why| Error::Refused {
                    path: self.origin.clone(),
                    why: format!("'{}': {why}", path.escape_debug()),
                })?;
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let opened = walker
                    .parent(&clean)
                    .and_then(|(parent, name)| openat(parent, name, flags, Mode::empty()));
                let file = match opened {
                    Ok(file) => File::from(file),
                    Err(Errno::NOENT) => return Ok(None),
                    Err(error) => return Err(Error::io("open", &self.origin.join(path))(error)),
                };
                let about = fstat(&file).map_err(Error::io("look at", &self.origin.join(path)))?;
                if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
                    return Err(Error::Refused {
                        path: self.origin.clone(),
                        why: format!("'{path}' is no file"),
                    });
                }
                Ok(Some(file))
            }
        }
    }

    /// The contents of a small file, if it is there.
    pub fn small(&mut self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(LONGEST + 1)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", &self.origin.join(path)))?;
        if bytes.len() as u64 > LONGEST {
            return Err(Error::Refused {
                path: self.origin.clone(),
                why: format!("'{path}' is longer than {LONGEST} bytes"),
            });
        }
        Ok(Some(bytes))
    }
}

/// Whether an archive is one of an image, and not of a root file system: its
/// first file tells.
pub fn is_archive(archive: impl Read) -> bool {
    let mut reader = Reader::new(archive);
    // Directories come first in some.
    for _ in 0..64 {
        let Ok(Some(member)) = reader.next_member() else {
            return false;
        };
        let Ok(path) = plain(&member.path) else {
            return false;
        };
        if member.kind == EntryType::Directory {
            continue;
        }
        let parts: Vec<&OsStr> = path.iter().collect();
        let is_hex = |name: &OsStr| {
            let name = name.to_str().unwrap_or_default();
            crate::Digest::parse(name.strip_suffix(".json").unwrap_or(name)).is_some()
        };
        return match parts.as_slice() {
            [name] if is_hex(name) => true,
            [name] => ["oci-layout", "index.json", "manifest.json", "repositories"]
                .iter()
                .any(|known| name == known),
            [first, second, last] => *first == "blobs" && *second == "sha256" && is_hex(last),
            [first, last] => {
                is_hex(first)
                    && ["layer.tar", "json", "VERSION"]
                        .iter()
                        .any(|known| last == known)
            }
            _ => false,
        };
    }
    false
}
