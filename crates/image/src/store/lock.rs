//! Locks between processes. They go with the process, however it ends.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::Error;

/// A held lock.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Waits until others that hold it shared or not at all are the only ones.
    pub fn shared(path: &Path) -> Result<Lock, Error> {
        take(path, FlockOperation::LockShared).map(|file| Lock { file })
    }

    /// Waits until nobody else holds it.
    pub fn exclusive(path: &Path) -> Result<Lock, Error> {
        take(path, FlockOperation::LockExclusive).map(|file| Lock { file })
    }

    /// The locked file; the lock is held as long as it is open.
    pub fn into_file(self) -> File {
        self.file
    }

    /// The same lock for a child process: held as long as either holds it.
    pub fn share(&self) -> std::io::Result<std::process::Stdio> {
        self.file.try_clone().map(Into::into)
    }

    /// Takes it if nobody else holds it.
    pub fn try_exclusive(path: &Path) -> Result<Option<Lock>, Error> {
        match take(path, FlockOperation::NonBlockingLockExclusive) {
            Ok(file) => Ok(Some(Lock { file })),
            Err(Error::Io { source, .. })
                if Errno::from_io_error(&source) == Some(Errno::WOULDBLOCK) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn take(path: &Path, operation: FlockOperation) -> Result<File, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("open", path))?;
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(file),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("lock", path)(error)),
        }
    }
}
