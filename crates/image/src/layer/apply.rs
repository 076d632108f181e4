//! From members to a tree.
//!
//! A member whose name begins with `.wh.` deletes what is below
//! (image-spec, `layer.md`, "Whiteouts"). It concerns the layers below only,
//! wherever it is in the archive: so whiteouts are gathered and made at the
//! end, of what the layer does not bring itself. So are the attributes of
//! directories, which would change while files are made in them, or forbid it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, XattrFlags, fsetxattr, linkat, makedev, mkdirat, mknodat,
    openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tar::EntryType;

use super::attributes::Attributes;
use super::reader::{Member, Reader};
use super::stack::{Found, OPAQUE, Stack, YES};
use super::{Fault, Rights};
use crate::tree::Limits;
use crate::tree::walk::{Walker, plain};

/// What a whiteout's name begins with.
const WHITEOUT: &[u8] = b".wh.";
/// The name of what hides all that a directory has below.
const HIDES_ALL: &[u8] = b".wh..wh..opq";
/// What aufs left in layers for itself.
const RESERVED: &[u8] = b".wh..wh.";
/// Bytes copied at a time.
const CHUNK: usize = 1 << 17;
/// Zeros that become a hole, in bytes: a block of usual file systems.
const HOLE: usize = 4096;
/// The mode of files and directories while they are made.
const CLOSED: u32 = 0o600;
const CLOSED_DIRECTORY: u32 = 0o700;

/// What could not be made with this user's rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Devices.
    pub devices: u64,
    /// Extended attributes.
    pub attributes: u64,
}

/// Makes a tree of an archive's members.
pub fn apply(
    archive: impl Read,
    tree: &Path,
    below: &Stack,
    rights: Rights,
    limits: Limits,
) -> Result<Left, Fault> {
    let mut reader = Reader::new(archive);
    let mut work = Work {
        root: tree,
        walker: Walker::new(tree)?,
        below,
        rights,
        limits,
        bytes: 0,
        entries: 0,
        remembered: 0,
        directories: BTreeMap::new(),
        whiteouts: BTreeSet::new(),
        left: Left::default(),
    };
    work.directories
        .insert(PathBuf::new(), Directory::default());
    while let Some(mut member) = reader.next_member()? {
        work.member(&mut member, &mut reader)
            .map_err(|fault| named(&member.path, fault))?;
    }
    work.hide()?;
    work.finish()?;
    Ok(work.left)
}

/// Says which member a fault is about.
fn named(path: &Path, fault: Fault) -> Fault {
    let refused = |why: &str| {
        let path = path.to_string_lossy();
        Fault::Refused(format!("'{}': {why}", path.escape_debug()))
    };
    match fault {
        Fault::Refused(why) => refused(&why),
        Fault::Host(error) => match Errno::from_io_error(&error) {
            Some(Errno::LOOP | Errno::NOTDIR) => {
                refused("its path goes through a link or a file, not directories")
            }
            Some(Errno::ISDIR | Errno::NOTEMPTY) => refused("it is in the place of a directory"),
            Some(Errno::NAMETOOLONG) => refused("its name is too long for this host"),
            Some(Errno::MLINK) => refused("it has more names than this host's files can have"),
            // Only a user namespace does not know an id.
            Some(Errno::INVAL | Errno::OVERFLOW) => refused(
                "its owner is beyond the subordinate ids of this user; give the user more in \
                 /etc/subuid and /etc/subgid, or do it as root",
            ),
            _ => Fault::Host(error),
        },
    }
}

/// A directory of the layer's.
#[derive(Default)]
struct Directory {
    /// What the archive says of it; nothing of one that is only on the way to
    /// another member.
    attributes: Option<Attributes>,
    /// It hides what is below.
    opaque: bool,
}

struct Work<'a> {
    root: &'a Path,
    walker: Walker,
    below: &'a Stack,
    rights: Rights,
    limits: Limits,
    bytes: u64,
    entries: usize,
    /// As [`Limits::remembered`] counts.
    remembered: u64,
    directories: BTreeMap<PathBuf, Directory>,
    whiteouts: BTreeSet<PathBuf>,
    left: Left,
}

impl Work<'_> {
    fn member(&mut self, member: &mut Member, contents: &mut impl Read) -> Result<(), Fault> {
        self.count()?;
        let path = plain(&member.path)?;
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&path, name);
        }
        if path.as_os_str().is_empty() && member.kind != EntryType::Directory {
            return Err("it is not in the tree".into());
        }
        match member.kind {
            EntryType::Directory => self.directory(&path, Some(Attributes::of(member))),
            EntryType::Regular => self.file(&path, member, contents),
            EntryType::Symlink => self.symlink(&path, member),
            EntryType::Link => self.hard_link(&path, member),
            EntryType::Fifo => self.special(&path, member, FileType::Fifo),
            EntryType::Char if member.device == (0, 0) => {
                // Another program's overlay was packed.
                self.parents(&path)?;
                self.hidden(path)
            }
            EntryType::Char => self.special(&path, member, FileType::CharacterDevice),
            EntryType::Block => self.special(&path, member, FileType::BlockDevice),
            other => {
                let kind = char::from(other.as_byte()).escape_debug();
                Err(format!("of the unknown kind '{kind}'").into())
            }
        }
    }

    fn count(&mut self) -> Result<(), Fault> {
        self.entries = self.entries.saturating_add(1);
        if self.entries > self.limits.entries {
            let limit = self.limits.entries;
            return Err(format!("the layer has more than {limit} entries").into());
        }
        Ok(())
    }

    /// Remembers what the layer hides.
    fn hidden(&mut self, path: PathBuf) -> Result<(), Fault> {
        self.limits
            .remember(&mut self.remembered, &path, &BTreeMap::new())?;
        self.whiteouts.insert(path);
        Ok(())
    }

    fn whiteout(&mut self, path: &Path, name: &[u8]) -> Result<(), Fault> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if name == HIDES_ALL {
            self.parents(path)?;
            if let Some(directory) = self.directories.get_mut(parent) {
                directory.opaque = true;
            }
            return Ok(());
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        let name = name.strip_prefix(WHITEOUT).unwrap_or_default();
        if matches!(name, b"" | b"." | b"..") {
            return Err("a whiteout of nothing".into());
        }
        self.parents(path)?;
        self.hidden(parent.join(OsStr::from_bytes(name)))
    }

    /// Makes the directories above a path that no member has made.
    fn parents(&mut self, path: &Path) -> Result<(), Fault> {
        let above = path.ancestors().skip(1);
        let missing: Vec<PathBuf> = above
            .take_while(|parent| !self.directories.contains_key(*parent))
            .map(Path::to_owned)
            .collect();
        for parent in missing.into_iter().rev() {
            self.count()?;
            self.directory(&parent, None)?;
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, attributes: Option<Attributes>) -> Result<(), Fault> {
        if !path.as_os_str().is_empty() && !self.directories.contains_key(path) {
            if attributes.is_some() {
                self.clear(path)?;
            }
            let (parent, name) = self.walker.parent(path)?;
            match mkdirat(parent, name, Mode::from(CLOSED_DIRECTORY)) {
                // A file on the way to another member.
                Err(Errno::EXIST) => return Err(Errno::NOTDIR.into()),
                made => made?,
            }
        }
        let none = BTreeMap::new();
        let extended = attributes.as_ref().map_or(&none, |own| &own.extended);
        self.limits.remember(&mut self.remembered, path, extended)?;
        let entry = self.directories.entry(path.to_owned()).or_default();
        if attributes.is_some() {
            entry.attributes = attributes;
        }
        Ok(())
    }

    /// Removes what an earlier member has put there, unless it is a directory.
    fn clear(&mut self, path: &Path) -> Result<(), Fault> {
        self.parents(path)?;
        if self.directories.contains_key(path) {
            return Err(Errno::ISDIR.into());
        }
        let (parent, name) = self.walker.parent(path)?;
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn file(
        &mut self,
        path: &Path,
        member: &mut Member,
        contents: &mut impl Read,
    ) -> Result<(), Fault> {
        self.bytes = self.bytes.saturating_add(member.size);
        if self.bytes > self.limits.bytes {
            let limit = self.limits.bytes >> 20;
            return Err(format!("the layer's files have more than {limit} MiB").into());
        }
        let mut file = self.create(path)?;
        for (start, length) in &member.pieces {
            copy(contents, &mut file, *start, *length)?;
        }
        file.set_len(member.size)?;
        let left = Attributes::of(member).set(&file, self.rights)?;
        self.left.attributes = self.left.attributes.saturating_add(left);
        Ok(())
    }

    fn create(&mut self, path: &Path) -> Result<File, Fault> {
        self.clear(path)?;
        let (parent, name) = self.walker.parent(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(parent, name, flags, Mode::from(CLOSED))?))
    }

    fn symlink(&mut self, path: &Path, member: &mut Member) -> Result<(), Fault> {
        let target = member.link.take().ok_or("a link to nowhere")?;
        let length = target.as_os_str().len();
        if length == 0 || length > 4095 || target.as_os_str().as_bytes().contains(&0) {
            return Err("its target is empty, longer than 4095 bytes or has a zero byte".into());
        }
        self.clear(path)?;
        let (parent, name) = self.walker.parent(path)?;
        symlinkat(&target, parent, name)?;
        Attributes::of(member).set_at(parent, name, true, self.rights)?;
        Ok(())
    }

    fn special(&mut self, path: &Path, member: &mut Member, kind: FileType) -> Result<(), Fault> {
        self.clear(path)?;
        let (parent, name) = self.walker.parent(path)?;
        let (major, minor) = member.device;
        let device = match kind {
            FileType::Fifo => 0,
            _ => makedev(major, minor),
        };
        match mknodat(parent, name, kind, Mode::from(CLOSED), device) {
            // Only root itself can make devices, and a container gets those
            // that it needs anyway.
            Err(Errno::PERM) => {
                self.left.devices = self.left.devices.saturating_add(1);
                return Ok(());
            }
            made => made?,
        }
        Attributes::of(member).set_at(parent, name, false, self.rights)?;
        Ok(())
    }

    /// One more name of a file: of this layer, or of one below, which is then
    /// copied up as overlayfs would.
    fn hard_link(&mut self, path: &Path, member: &mut Member) -> Result<(), Fault> {
        let target = member.link.take().ok_or("a link to nowhere")?;
        let target = plain(&target).map_err(|why| format!("a hard link: {why}"))?;
        if path == target {
            return Ok(());
        }
        if self.directories.contains_key(&target) {
            return Err("a hard link to a directory".into());
        }
        let there = match self.walker.parent(&target) {
            Ok((parent, name)) => match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => true,
                Err(Errno::NOENT) => false,
                Err(error) => return Err(error.into()),
            },
            Err(Errno::NOENT) => false,
            Err(error) => return Err(error.into()),
        };
        if !there {
            let found = self.below.find(&target)?;
            let found = found.ok_or("a hard link to what is not in the image")?;
            self.copy_up(&target, &found)?;
        }
        self.clear(path)?;
        // The walker holds one directory at a time; this is the other.
        let mut other = Walker::new(self.root)?;
        let (from, old) = other.parent(&target)?;
        let (to, new) = self.walker.parent(path)?;
        linkat(from, old, to, new, AtFlags::empty())?;
        Ok(())
    }

    /// Copies a file of a layer below into this one.
    fn copy_up(&mut self, path: &Path, found: &Found) -> Result<(), Fault> {
        if found.kind() != FileType::RegularFile {
            return Err("a hard link to what is no file, of a layer below".into());
        }
        let size = u64::try_from(found.about.st_size).unwrap_or(0);
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err("the layer's files are too large".into());
        }
        let mut from = found.open()?;
        let mut file = self.create(path)?;
        copy_data(&mut from, &mut file, size)?;
        found.attributes(&from)?.set(&file, self.rights)?;
        Ok(())
    }

    /// Makes the whiteouts.
    fn hide(&mut self) -> Result<(), Fault> {
        for path in std::mem::take(&mut self.whiteouts) {
            if let Some(directory) = self.directories.get_mut(&path) {
                directory.opaque = true;
                continue;
            }
            if self.below.is_empty() {
                continue;
            }
            let (parent, name) = self.walker.parent(&path)?;
            // Of a user too: a device of no number can be made by everybody.
            match mknodat(
                parent,
                name,
                FileType::CharacterDevice,
                Mode::empty(),
                makedev(0, 0),
            ) {
                // The layer brings another file in its place.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives directories what they are to have, the deepest first.
    fn finish(&mut self) -> Result<(), Fault> {
        for (path, directory) in std::mem::take(&mut self.directories).into_iter().rev() {
            if directory.opaque && !self.below.is_empty() {
                make_opaque(self.walker.directory(&path)?)?;
            }
            let attributes = match directory.attributes {
                Some(attributes) => attributes,
                // As it is below, where it is there: what is on the way to a
                // member does not change.
                None => match self.below.find(&path)? {
                    Some(found) if found.kind() == FileType::Directory => {
                        found.attributes(&found.open()?)?
                    }
                    _ => Attributes::plain(),
                },
            };
            let file = self.walker.directory(&path)?;
            let left = attributes
                .set(file, self.rights)
                .map_err(|error| named(&path, error.into()))?;
            self.left.attributes = self.left.attributes.saturating_add(left);
        }
        Ok(())
    }
}

fn make_opaque(directory: BorrowedFd<'_>) -> Result<(), Fault> {
    let mut made = false;
    for attribute in OPAQUE {
        match fsetxattr(directory, attribute, YES, XattrFlags::empty()) {
            Ok(()) => made = true,
            // Root's own, which users have no use for.
            Err(Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if made {
        Ok(())
    } else {
        Err(Errno::PERM.into())
    }
}

/// Copies a file's contents into one that is empty, with its holes.
pub(crate) fn copy_data(from: &mut impl Read, to: &mut File, length: u64) -> Result<(), Fault> {
    copy(from, to, 0, length)?;
    Ok(to.set_len(length)?)
}

/// Copies `length` bytes to a place in a file that is empty there; zeros
/// become holes.
fn copy(from: &mut impl Read, to: &mut File, start: u64, length: u64) -> Result<(), Fault> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(length).unwrap_or(CHUNK))];
    let mut place = start;
    let end = start.saturating_add(length);
    while place < end {
        let rest = usize::try_from(end.saturating_sub(place)).unwrap_or(CHUNK);
        let wanted = rest.min(CHUNK);
        let bytes = buffer.get_mut(..wanted).unwrap_or_default();
        from.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "the archive ends in the middle of it".into(),
            _ => Fault::unreadable(error),
        })?;
        let mut at = place;
        for block in bytes.chunks(HOLE) {
            if block.iter().any(|byte| *byte != 0) {
                to.write_all_at(block, at)?;
            }
            at = at.saturating_add(block.len() as u64);
        }
        place = at;
    }
    Ok(())
}
