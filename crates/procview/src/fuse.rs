//! The kernel's side of a file system in user space, as far as a directory of
//! eight files to read needs it (`linux/fuse.h`).

use rustix::io::Errno;

use crate::FILES;

/// The kernel reads in pieces of this size at most; requests with their
/// header have room in twice that (`FUSE_MIN_READ_BUFFER` is 8192).
pub const MOST: u32 = 64 << 10;
/// Room for the longest request.
pub const REQUEST: usize = 2 * MOST as usize;
const HEADER: usize = 40;
/// The version that is spoken: 7.31, which Linux 5.4 and all later ones do.
const VERSION: (u32, u32) = (7, 31);
/// The node of the directory.
const ROOT: u64 = 1;
/// `FOPEN_DIRECT_IO`: no page is kept, and nobody asks for the size.
const DIRECT: u32 = 1;
/// `S_IFDIR | 0555` and `S_IFREG | 0444`.
const DIRECTORY: u32 = 0o040_555;
const REGULAR: u32 = 0o100_444;
/// For how long the kernel may keep names and attributes, in seconds: they
/// never change.
const KEEP: u64 = 3600;

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    operation: u32,
    /// What its answer names.
    pub unique: u64,
    node: u64,
    /// The thread that asks, 0 if it cannot be told.
    pub thread: u32,
    body: &'a [u8],
}

/// What to do about one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: no answer is expected.
    None,
    /// Send this.
    Send(Vec<u8>),
    /// A piece of a file, to be made.
    Read {
        /// Index in [`FILES`].
        file: usize,
        /// Of which opening.
        handle: u64,
        /// From here on.
        offset: u64,
        /// So many bytes at most.
        size: u32,
    },
    /// An opening is no more.
    Close {
        /// Which.
        handle: u64,
    },
    /// The file system is gone.
    End,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

impl<'a> Request<'a> {
    /// Takes one apart; `None` if it is none.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(Request {
            operation: word(bytes, 4)?,
            unique: long(bytes, 8)?,
            node: long(bytes, 16)?,
            thread: word(bytes, 32)?,
            body: bytes.get(HEADER..)?,
        })
    }

    /// The index of the file that it is about.
    fn file(&self) -> Option<usize> {
        let index = usize::try_from(self.node.checked_sub(ROOT + 1)?).ok()?;
        (index < FILES.len()).then_some(index)
    }

    /// What to do about it. `handle` is for a file that is being opened.
    pub fn answer(&self, handle: u64) -> Answer {
        let send = |result: Result<Vec<u8>, Errno>| Answer::Send(reply(self.unique, result));
        match self.operation {
            1 => send(self.lookup().ok_or(Errno::NOENT)),
            // FORGET, INTERRUPT and BATCH_FORGET want none.
            2 | 36 | 42 => Answer::None,
            3 => send(self.attributes().ok_or(Errno::NOENT)),
            14 => send(self.open(handle)),
            15 => self.read().unwrap_or_else(|| send(Err(Errno::INVAL))),
            17 => send(Ok(vec![0; 80])),
            18 => Answer::Close {
                handle: long(self.body, 0).unwrap_or_default(),
            },
            26 => send(self.start().ok_or(Errno::PROTO)),
            // OPENDIR, RELEASEDIR, FLUSH.
            27 => send(Ok(vec![0; 16])),
            25 | 29 => send(Ok(Vec::new())),
            28 => send(self.list().ok_or(Errno::INVAL)),
            38 => Answer::End,
            _ => send(Err(Errno::NOSYS)),
        }
    }

    /// Of a file that was closed.
    pub fn closed(&self) -> Vec<u8> {
        reply(self.unique, Ok(Vec::new()))
    }

    fn start(&self) -> Option<Vec<u8>> {
        let (major, minor) = (word(self.body, 0)?, word(self.body, 4)?);
        if major != VERSION.0 {
            return None;
        }
        let mut out = Vec::with_capacity(64);
        for value in [VERSION.0, VERSION.1.min(minor), MOST, 0] {
            out.extend(value.to_ne_bytes());
        }
        // How many at once in the background, and when that is much.
        out.extend(16_u16.to_ne_bytes());
        out.extend(12_u16.to_ne_bytes());
        // The longest write, and how fine times are.
        out.extend(4096_u32.to_ne_bytes());
        out.extend(1_u32.to_ne_bytes());
        out.resize(64, 0);
        Some(out)
    }

    fn lookup(&self) -> Option<Vec<u8>> {
        let name = self.body.split(|byte| *byte == 0).next()?;
        let index = FILES.iter().position(|file| file.name.as_bytes() == name)?;
        let node = ROOT + 1 + u64::try_from(index).ok()?;
        let mut out = Vec::with_capacity(128);
        for value in [node, 0, KEEP, KEEP, 0] {
            out.extend(value.to_ne_bytes());
        }
        out.extend(attributes(node, REGULAR));
        Some(out).filter(|_| self.node == ROOT)
    }

    fn attributes(&self) -> Option<Vec<u8>> {
        let mode = match self.node {
            ROOT => DIRECTORY,
            _ => self.file().map(|_| REGULAR)?,
        };
        let mut out = Vec::with_capacity(104);
        for value in [KEEP, 0] {
            out.extend(value.to_ne_bytes());
        }
        out.extend(attributes(self.node, mode));
        Some(out)
    }

    fn open(&self, handle: u64) -> Result<Vec<u8>, Errno> {
        self.file().ok_or(Errno::ISDIR)?;
        let flags = word(self.body, 0).ok_or(Errno::INVAL)?;
        if flags & rustix::fs::OFlags::ACCMODE.bits() != 0 {
            return Err(Errno::ACCESS);
        }
        let mut out = handle.to_ne_bytes().to_vec();
        out.extend(DIRECT.to_ne_bytes());
        out.extend([0; 4]);
        Ok(out)
    }

    fn read(&self) -> Option<Answer> {
        Some(Answer::Read {
            file: self.file()?,
            handle: long(self.body, 0)?,
            offset: long(self.body, 8)?,
            size: word(self.body, 16)?.min(MOST),
        })
    }

    /// Entries of the directory, from a place on.
    fn list(&self) -> Option<Vec<u8>> {
        let from = usize::try_from(long(self.body, 8)?).ok()?;
        let size = usize::try_from(word(self.body, 16)?.min(MOST)).ok()?;
        let mut out = Vec::new();
        let dots = [(ROOT, "."), (ROOT, "..")].into_iter();
        let files = (ROOT + 1..).zip(FILES.iter().map(|file| file.name));
        for (place, (node, name)) in dots.chain(files).enumerate().skip(from) {
            // DT_DIR and DT_REG.
            let kind: u32 = if node == ROOT { 4 } else { 8 };
            let mut entry = Vec::with_capacity(40);
            entry.extend(node.to_ne_bytes());
            entry.extend(u64::try_from(place + 1).ok()?.to_ne_bytes());
            entry.extend(u32::try_from(name.len()).ok()?.to_ne_bytes());
            entry.extend(kind.to_ne_bytes());
            entry.extend(name.as_bytes());
            entry.resize(entry.len().next_multiple_of(8), 0);
            if out.len() + entry.len() > size {
                break;
            }
            out.extend(entry);
        }
        Some(out)
    }
}

/// `struct fuse_attr`: root's, of no size and no time.
fn attributes(node: u64, mode: u32) -> Vec<u8> {
    let mut out = node.to_ne_bytes().to_vec();
    // Size, blocks and three times; their nanoseconds.
    out.resize(8 + 5 * 8 + 3 * 4, 0);
    out.extend(mode.to_ne_bytes());
    out.extend(1_u32.to_ne_bytes());
    // Owner, group, device.
    out.resize(out.len() + 12, 0);
    out.extend(4096_u32.to_ne_bytes());
    out.resize(88, 0);
    out
}

/// An answer with its header.
pub fn reply(unique: u64, result: Result<Vec<u8>, Errno>) -> Vec<u8> {
    let (body, error) = match result {
        Ok(body) => (body, 0),
        Err(error) => (Vec::new(), -error.raw_os_error()),
    };
    let length = u32::try_from(body.len() + 16).unwrap_or_default();
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(error.to_ne_bytes());
    out.extend(unique.to_ne_bytes());
    out.extend(body);
    out
}
