//! From a tree into an archive.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, readlinkat, statat};
use tar::{Builder, EntryType, Header};

use super::walk::Walker;
use super::{Attributes, Kind, Tree};
use crate::Error;

impl Tree {
    /// Writes an archive of the files that `wanted` says, in the order of
    /// their paths; the same tree gives the same bytes. `target` is the
    /// archive's name in messages.
    pub fn pack(
        &self,
        archive: impl Write,
        target: &Path,
        wanted: impl Fn(&Path) -> bool,
    ) -> Result<(), Error> {
        let mut packer = Packer {
            walker: Walker::new(&self.root).map_err(Error::io("open directory", &self.root))?,
            builder: Builder::new(archive),
            names: HashMap::new(),
        };
        let written = self
            .ledger
            .iter()
            .filter(|(path, _)| wanted(path))
            .try_for_each(|(path, attributes)| packer.entry(path, attributes))
            .and_then(|()| packer.builder.into_inner())
            .and_then(|mut archive| archive.flush());
        written.map_err(Error::io("write", target))
    }
}

struct Packer<W: Write> {
    walker: Walker,
    builder: Builder<W>,
    /// The first name of a file that has several, by its inode.
    names: HashMap<u64, PathBuf>,
}

impl<W: Write> Packer<W> {
    fn entry(&mut self, path: &Path, attributes: &Attributes) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        header.set_mtime(attributes.mtime);
        header.set_size(0);
        if attributes.kind == Kind::Directory {
            header.set_entry_type(EntryType::Directory);
            let mut name = path.as_os_str().to_owned();
            name.push(if name.is_empty() { "./" } else { "/" });
            return self.builder.append_data(&mut header, name, io::empty());
        }
        let (parent, name) = self.walker.parent(path)?;
        match attributes.kind {
            Kind::Symlink => {
                let target = readlinkat(parent, name, Vec::new())?;
                let target = OsString::from_vec(target.into_bytes());
                header.set_entry_type(EntryType::Symlink);
                self.builder.append_link(&mut header, path, target)
            }
            Kind::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.builder.append_data(&mut header, path, io::empty())
            }
            Kind::File | Kind::Directory => {
                let about = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if about.st_nlink > 1 {
                    if let Some(first) = self.names.get(&about.st_ino) {
                        header.set_entry_type(EntryType::Link);
                        return self.builder.append_link(&mut header, path, first);
                    }
                    self.names.insert(about.st_ino, path.to_owned());
                }
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(openat(parent, name, flags, Mode::empty())?);
                if !attributes.extended.is_empty() {
                    let records: Vec<(String, &[u8])> = attributes
                        .extended
                        .iter()
                        .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice()))
                        .collect();
                    self.builder.append_pax_extensions(
                        records.iter().map(|(name, value)| (name.as_str(), *value)),
                    )?;
                }
                header.set_entry_type(EntryType::Regular);
                header.set_size(file.metadata()?.len());
                self.builder.append_data(&mut header, path, &mut file)
            }
        }
    }
}
