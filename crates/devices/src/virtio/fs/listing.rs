//! Directories, entry by entry.

use std::mem::MaybeUninit;

use rustix::fs::{self, FileType, RawDir, SeekFrom};
use rustix::io::Errno;

use super::host::{Name, Result};
use super::share::Share;
use super::wire::{Answer, Args, ENTRY_LEN};
use crate::lock;

/// Bytes that the host lists at once, and that an answer has at most.
const BUFFER: usize = 32 << 10;
/// Bytes of `fuse_dirent` without its name.
const ENTRY_HEADER: usize = 24;

impl Share {
    /// Lists from the offset in `args` on. Where the number of a directory is
    /// given each entry is looked up too, and counted.
    pub(super) fn list(
        &self,
        args: &mut Args<'_>,
        room: usize,
        plus: Option<u64>,
    ) -> Result<Answer> {
        let handle = self.handles().directory(args.u64()?)?;
        let (offset, size) = (args.u64()?, args.u32()?);
        let node = match plus {
            Some(id) => Some(self.node(id)?),
            None => None,
        };
        let room = room.min(size as usize).min(BUFFER);
        let directory = lock(&handle);
        if i64::try_from(offset).is_err() {
            return Err(Errno::INVAL);
        }
        fs::seek(&*directory, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(&*directory, &mut buffer);
        let mut answer = Answer::default();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            let len = (ENTRY_HEADER + name.count_bytes()).next_multiple_of(8);
            let before = if plus.is_some() { ENTRY_LEN } else { 0 };
            if answer.len() + before + len > room {
                break;
            }
            if let Some(node) = &node {
                // The dot entries are not looked up; one that went away
                // meanwhile, or finds no room, has no number.
                let entered = Name::new(name).and_then(|name| self.enter(node, name));
                answer = match entered {
                    Ok((id, about)) => answer.entry(id, &about),
                    Err(_) => answer.zeros(ENTRY_LEN),
                };
            }
            answer = answer
                .u64(entry.ino())
                .u64(entry.next_entry_cookie())
                .u32(u32::try_from(name.count_bytes()).unwrap_or(0))
                .u32(kind(entry.file_type()))
                .bytes(name.to_bytes())
                .padded();
        }
        Ok(answer)
    }
}

/// DT_* of a kind of file (readdir(3)).
fn kind(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        known => known.as_raw_mode() >> 12,
    }
}
