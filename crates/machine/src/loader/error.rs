//! What can be wrong with a kernel, an initrd or a command line.

use thiserror::Error;

/// A file or text that the machine cannot be started from.
#[derive(Debug, Error)]
#[error("{name}: {problem}")]
pub struct LoadError {
    /// The file as the user named it, or `--append`.
    pub name: String,
    /// What is wrong with it and what to do.
    #[source]
    pub problem: Problem,
}

impl LoadError {
    /// Attaches `name` to `problem`.
    pub fn new(name: &str, problem: Problem) -> Self {
        LoadError {
            name: name.to_owned(),
            problem,
        }
    }
}

/// What is wrong, and the remedy.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum Problem {
    #[error("is a directory; name the file inside it")]
    Directory,
    #[error("is not a regular file; copy it to one first")]
    NotRegular,
    #[error("is empty; fetch or build it again")]
    Empty,
    #[error("has {len} bytes, more than the {limit} that are accepted; give a smaller file")]
    TooLarge { len: u64, limit: u64 },
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("ends inside its {part}, so it is truncated; fetch or build it again")]
    Truncated { part: &'static str },
    #[error("is damaged: {what}; fetch or build it again")]
    Damaged { what: String },
    #[error(
        "is not a kernel ({looks_like}); give a Linux bzImage (vmlinuz), an ELF file with a PVH note or a multiboot kernel"
    )]
    NotAKernel { looks_like: &'static str },
    #[error("is built for {found}; this machine is x86-64, give a kernel for amd64")]
    Architecture { found: &'static str },
    #[error("is a 32-bit kernel without a PVH note; give a 64-bit (amd64) one")]
    Bits32,
    #[error(
        "is an ELF file without a PVH note or multiboot header; build it with CONFIG_PVH=y or give the bzImage (vmlinuz)"
    )]
    NoEntry,
    #[error("its {compression} payload is damaged ({reason}); fetch or build it again")]
    Payload {
        compression: &'static str,
        reason: String,
    },
    #[error(
        "its {compression} payload unpacks to more than {limit} bytes; give the machine more --memory, or another kernel"
    )]
    Bomb {
        compression: &'static str,
        limit: u64,
    },
    #[error(
        "needs guest memory at {start:#x}-{end:#x}, where there is none to use; give the machine more --memory"
    )]
    NoRoom { start: u64, end: u64 },
    #[error(
        "{len} bytes do not fit in guest memory beside the kernel; give the machine more --memory or shrink the file"
    )]
    InitrdTooLarge { len: u64 },
    #[error("{len} bytes are more than the {limit} this kernel takes; shorten it")]
    CommandLine { len: usize, limit: usize },
    #[error("contains a NUL byte, which would end the kernel's command line; remove it")]
    CommandLineNul,
    #[error("a kernel in {format} format takes no more than a 32-bit address, {what} lies beyond")]
    Beyond32 {
        format: &'static str,
        what: &'static str,
    },
    #[error(transparent)]
    BootDisk(croft_bootdisk::BootError),
    #[error("there is neither a kernel nor a disk to boot from; give one of them")]
    NoBootDisk,
}
