//! Contents of files.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use croft_disk::{Direction, IoMemory, transfer};
use rustix::fs::{self, FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use super::handles::OpenFile;
use super::host::{self, Key, Result};
use super::names::give;
use super::share::Share;
use super::wire::{Answer, Args, Header};

/// What of a guest's open flags reaches the host. O_DIRECT does not: the
/// host's page cache is what guests share.
const PASSED: OFlags = OFlags::RWMODE
    .union(OFlags::APPEND)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);
/// Open flags of FUSE's own: drop set-id bits when truncating.
const OPEN_DROP_SET_ID: u32 = 1 << 0;
/// Of a write: drop them.
const WRITE_DROP_SET_ID: u32 = 1 << 2;
/// Of a sync: only the data.
const DATA_ONLY: u32 = 1 << 0;
/// Most bytes of one copy, which holds up whoever comes next.
const COPY_MAX: u64 = 16 << 20;

/// Where and how much is read or written.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub handle: u64,
    pub offset: u64,
    pub size: u32,
    pub flags: u32,
}

impl Extent {
    /// `fuse_read_in` or `fuse_write_in`.
    pub fn parse(args: &mut Args<'_>) -> Result<Self> {
        let extent = Extent {
            handle: args.u64()?,
            offset: args.u64()?,
            size: args.u32()?,
            flags: args.u32()?,
        };
        // Lock owner, open flags, padding.
        args.skip(4)?;
        Ok(extent)
    }
}

impl Share {
    pub(super) fn open(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        let (flags, more) = (args.u32()?, args.u32()?);
        let wanted = OFlags::from_bits_retain(flags);
        let file = self.open_node(header.node, wanted, more)?;
        let handle = self.handles().add_file(file);
        Ok(Answer::default().opened(handle))
    }

    fn open_node(&self, id: u64, wanted: OFlags, more: u32) -> Result<Arc<OpenFile>> {
        let truncates = wanted.contains(OFlags::TRUNC);
        let mode = wanted & OFlags::RWMODE;
        let writable = matches!(mode, OFlags::WRONLY | OFlags::RDWR);
        if !writable && mode != OFlags::RDONLY {
            return Err(Errno::INVAL);
        }
        if writable || truncates {
            self.writable()?;
        }
        self.handles().has_room()?;
        let node = self.node(id)?;
        if truncates && !writable {
            return Err(Errno::INVAL);
        }
        let file = File::from(node.open(wanted & PASSED)?);
        if truncates {
            // Only now: before, it might have been another file.
            fs::ftruncate(&file, 0)?;
            if more & OPEN_DROP_SET_ID != 0 {
                host::drop_set_id(&file)?;
            }
        }
        let flags = wanted & PASSED;
        let file = Arc::new(OpenFile { file, flags });
        node.remember_open(&file);
        Ok(file)
    }

    pub(super) fn create(&self, header: &Header, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let wanted = OFlags::from_bits_retain(args.u32()?);
        let mode = host::permissions(FileType::RegularFile, args.u32()?)?;
        args.skip(1)?;
        let more = args.u32()?;
        let directory = self.node(header.node)?;
        let name = args.name()?;
        self.handles().has_room()?;
        let place = directory.directory()?;
        let created = host::create(place, name, wanted & PASSED, mode);
        match created {
            Ok(file) => {
                give(&file, header);
                let key = Key::of(&host::about(&file)?);
                let (id, about) = self.enter(&directory, name)?;
                if Key::of(&about) != key {
                    self.nodes().forget(id, 1);
                    return Err(Errno::STALE);
                }
                let file = Arc::new(OpenFile {
                    file: file.into(),
                    flags: wanted & PASSED,
                });
                self.node(id)?.remember_open(&file);
                let handle = self.handles().add_file(file);
                Ok(Answer::default().entry(id, &about).opened(handle))
            }
            Err(Errno::EXIST) if !wanted.contains(OFlags::EXCL) => {
                let (id, _) = self.enter(&directory, name)?;
                match self.open_node(id, wanted, more) {
                    Ok(file) => {
                        let about = host::about(&*file)?;
                        let handle = self.handles().add_file(file);
                        Ok(Answer::default().entry(id, &about).opened(handle))
                    }
                    Err(error) => {
                        self.nodes().forget(id, 1);
                        Err(error)
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Reads into `memory`; how many bytes there were.
    pub fn read(&self, extent: Extent, memory: &[IoMemory<'_>]) -> Result<u64> {
        let open = self.file(extent.handle)?;
        moved(transfer(&open.file, Direction::Read, memory, extent.offset))
    }

    /// Writes from `memory`; how many bytes found room.
    pub fn write(&self, extent: Extent, memory: &[IoMemory<'_>]) -> Result<u64> {
        self.writable()?;
        let open = self.file(extent.handle)?;
        let written = moved(transfer(
            &open.file,
            Direction::Write,
            memory,
            extent.offset,
        ))?;
        if extent.flags & WRITE_DROP_SET_ID != 0 {
            host::drop_set_id(&*open)?;
        }
        Ok(written)
    }

    pub(super) fn sync(&self, args: &mut Args<'_>) -> Result<Answer> {
        let open = self.file(args.u64()?)?;
        sync(&open.file, args.u32()?)
    }

    pub(super) fn sync_directory(&self, args: &mut Args<'_>) -> Result<Answer> {
        let directory = self.handles().directory(args.u64()?)?;
        let directory = crate::lock(&directory);
        sync(&*directory, args.u32()?)
    }

    pub(super) fn allocate(&self, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let open = self.file(args.u64()?)?;
        let (offset, len, mode) = (args.u64()?, args.u64()?, args.u32()?);
        let mode = FallocateFlags::from_bits_retain(mode);
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        fs::fallocate(&open.file, mode, offset, len)?;
        Ok(Answer::default())
    }

    pub(super) fn seek(&self, args: &mut Args<'_>) -> Result<Answer> {
        let open = self.file(args.u64()?)?;
        let (offset, whence) = (args.u64()?, args.u32()?);
        // The others the guest's kernel does.
        let position = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        Ok(Answer::default().u64(fs::seek(&open.file, position)?))
    }

    pub(super) fn copy(&self, args: &mut Args<'_>) -> Result<Answer> {
        self.writable()?;
        let from = self.file(args.u64()?)?;
        let mut from_offset = args.u64()?;
        let _node = args.u64()?;
        let to = self.file(args.u64()?)?;
        let (mut to_offset, len, flags) = (args.u64()?, args.u64()?, args.u64()?);
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let count = fs::copy_file_range(
            &from.file,
            Some(&mut from_offset),
            &to.file,
            Some(&mut to_offset),
            len.min(COPY_MAX) as usize,
        )?;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Answer::default().u32(count).u32(0))
    }

    pub(super) fn open_directory(&self, header: &Header) -> Result<Answer> {
        self.handles().has_room()?;
        let node = self.node(header.node)?;
        let directory: OwnedFd = host::open_directory(node.directory()?)?;
        let handle = self.handles().add_directory(directory);
        Ok(Answer::default().opened(handle))
    }
}

fn sync(file: impl AsFd, flags: u32) -> Result<Answer> {
    if flags & DATA_ONLY != 0 {
        fs::fdatasync(file)?;
    } else {
        fs::fsync(file)?;
    }
    Ok(Answer::default())
}

fn moved(result: std::io::Result<u64>) -> Result<u64> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}
