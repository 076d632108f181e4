//! The lock of an instance: whoever has it may run, change or delete it.
//!
//! An open file description lock (fcntl(2)) on the file `lock` in the
//! instance's directory. It ends with the process that holds it, however that
//! ends, and no other process inherits it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use thiserror::Error;

/// Its file.
const FILE: &str = "lock";

/// Why there is no lock.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process has it.
    #[error("it is in use by another process")]
    Held,
    /// There is no such instance, or it was deleted in this moment.
    #[error("there is no such instance")]
    Gone,
    /// The host refused.
    #[error("its lock: {0}")]
    Io(#[from] io::Error),
}

/// The lock, for as long as this lives.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
}

impl InstanceLock {
    /// Takes the lock of the instance in `directory`.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join(FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => LockError::Gone,
                _ => error.into(),
            })?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(LockError::Held),
            Err(error) => return Err(io::Error::from(error).into()),
        }
        // Between opening and locking the instance may have been deleted,
        // and another one made.
        let mine = file.metadata()?;
        match fs::metadata(&path) {
            Ok(now) if (now.dev(), now.ino()) == (mine.dev(), mine.ino()) => {
                Ok(InstanceLock { _file: file })
            }
            _ => Err(LockError::Gone),
        }
    }

    /// Whether a process has the lock of the instance in `directory`.
    pub fn is_held(directory: &Path) -> io::Result<bool> {
        let file = match File::open(directory.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut probe = whole(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut probe)).map_err(io::Error::from)?;
        Ok(i32::from(probe.l_type) != libc::F_UNLCK)
    }
}

/// All bytes of the file. `l_pid` must be 0 for these locks.
fn whole(kind: i32) -> libc::flock {
    libc::flock {
        // The constants are small (fcntl.h).
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn there_is_one_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path();
        assert!(!InstanceLock::is_held(path).unwrap());
        let lock = InstanceLock::take(path).unwrap();
        assert!(InstanceLock::is_held(path).unwrap());
        assert!(matches!(InstanceLock::take(path), Err(LockError::Held)));
        drop(lock);
        // A child that another test's thread forks has it, too, until it runs
        // its program.
        let deadline = Instant::now() + Duration::from_secs(120);
        while InstanceLock::is_held(path).unwrap() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!InstanceLock::is_held(path).unwrap());
        drop(InstanceLock::take(path).unwrap());
        let none = path.join("none");
        assert!(matches!(InstanceLock::take(&none), Err(LockError::Gone)));
    }
}
