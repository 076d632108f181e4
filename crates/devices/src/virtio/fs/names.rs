//! Names: looked up, made, moved, removed.

use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, RenameFlags};
use rustix::io::Errno;

use super::host::{self, Key, Name, Result};
use super::nodes::Node;
use super::share::Share;
use super::wire::{Answer, Args, Header};

impl Share {
    pub(super) fn look_up(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        let directory = self.node(header.node)?;
        self.entry(&directory, args.name()?)
    }

    pub(super) fn read_link(&self, header: &Header) -> Result<Answer> {
        let node = self.node(header.node)?;
        if node.kind() != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = fs::readlinkat(node.pin()?, c"", Vec::new())?;
        Ok(Answer::default().bytes(target.as_bytes()))
    }

    pub(super) fn make_symlink(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let directory = self.node(header.node)?;
        let (name, target) = (args.name()?, args.text()?);
        // Text for the guest: nothing here follows it.
        fs::symlinkat(target, directory.directory()?, name.as_c_str())?;
        self.made(header, &directory, name)
    }

    pub(super) fn make_node(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let directory = self.node(header.node)?;
        let mode = args.u32()?;
        args.skip(3)?;
        let name = args.name()?;
        let kind = FileType::from_raw_mode(mode);
        if !matches!(
            kind,
            FileType::RegularFile | FileType::Fifo | FileType::Socket
        ) {
            return Err(Errno::PERM);
        }
        let mode = host::permissions(kind, mode)?;
        fs::mknodat(directory.directory()?, name.as_c_str(), kind, mode, 0)?;
        self.made(header, &directory, name)
    }

    pub(super) fn make_directory(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let directory = self.node(header.node)?;
        let mode = host::permissions(FileType::Directory, args.u32()?)?;
        args.skip(1)?;
        let name = args.name()?;
        fs::mkdirat(directory.directory()?, name.as_c_str(), mode)?;
        self.made(header, &directory, name)
    }

    /// The answer for a file that was made for the request's user.
    pub(super) fn made(
        &self,
        header: &Header,
        directory: &Arc<Node>,
        name: Name<'_>,
    ) -> Result<Answer> {
        let (file, _) = host::find(directory.directory()?, name)?;
        give(&file, header);
        self.entry(directory, name)
    }

    pub(super) fn make_link(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let node = self.node(args.u64()?)?;
        let directory = self.node(header.node)?;
        let name = args.name()?;
        if node.kind() == FileType::Directory {
            return Err(Errno::PERM);
        }
        let place = directory.directory()?;
        node.link(place, name)?;
        let (_, about) = host::find(place, name)?;
        if Key::of(&about) != node.key() {
            // The name it had is another file's on the host.
            fs::unlinkat(place, name.as_c_str(), AtFlags::empty())?;
            return Err(Errno::STALE);
        }
        self.entry(&directory, name)
    }

    pub(super) fn remove(
        &self,
        header: &Header,
        args: &mut Args<'_>,
        is_directory: bool,
    ) -> Result<Answer> {
        self.writable()?;
        let directory = self.node(header.node)?;
        let name = args.name()?;
        let place = directory.directory()?;
        let (file, about) = host::find(place, name)?;
        let flags = if is_directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        fs::unlinkat(place, name.as_c_str(), flags)?;
        self.forget_if_gone(&file, Key::of(&about));
        Ok(Answer::default())
    }

    /// A file without a name has an inode number that the next one may get.
    fn forget_if_gone(&self, file: impl std::os::fd::AsFd, key: Key) {
        if host::about(file).is_ok_and(|about| about.stx_nlink == 0) {
            self.nodes().gone(key);
        }
    }

    pub(super) fn rename(
        &self,
        header: &Header,
        args: &mut Args<'_>,
        with_flags: bool,
    ) -> Result<Answer> {
        self.writable()?;
        let from = self.node(header.node)?;
        let to = self.node(args.u64()?)?;
        let flags = if with_flags {
            let flags = args.u32()?;
            args.skip(1)?;
            RenameFlags::from_bits_retain(flags)
        } else {
            RenameFlags::empty()
        };
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (old, new) = (args.name()?, args.name()?);
        let (old_place, new_place) = (from.directory()?, to.directory()?);
        let (_, moved) = host::find(old_place, old)?;
        let other = host::find(new_place, new).ok();
        let names = (old.as_c_str(), new.as_c_str());
        fs::renameat_with(old_place, names.0, new_place, names.1, flags)?;
        self.nodes().moved(Key::of(&moved), &to, new);
        if let Some((file, about)) = other {
            let key = Key::of(&about);
            if flags.contains(RenameFlags::EXCHANGE) {
                self.nodes().moved(key, &from, old);
            } else {
                self.forget_if_gone(&file, key);
            }
        }
        Ok(Answer::default())
    }
}

/// Gives a new file to the user who asked for it. Only root can; else it is
/// whose process this is.
pub fn give(file: impl std::os::fd::AsFd, header: &Header) {
    let _ = host::set_owner(file, Some(header.user), Some(header.group));
}
