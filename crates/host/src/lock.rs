//! The lock of an instance: whoever has it may run, change or delete it.
//!
//! An open file description lock (fcntl(2)) on the file `lock` in the
//! instance's directory. It ends with the process that holds it, however that
//! ends, and no other process inherits it.
//!
//! | byte of the file | whoever has it locked |
//! |---|---|
//! | [`LOCK`] | runs, changes or deletes the instance |
//! | [`ENDING`] | has done so, and tidies up: the lock is free in a moment |

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use thiserror::Error;

/// Its file.
const FILE: &str = "lock";
/// The byte that is the lock.
const LOCK: i64 = 0;
/// The byte that says that the lock is about to be free. Not the next one: the
/// kernel makes one lock of neighbours.
const ENDING: i64 = 2;
/// How long whoever tidies up may take: what was written in a container may be
/// on its way to a slow disk.
const TIDYING: Duration = Duration::from_secs(60);
/// Between two looks whether that is over, at first and at most.
const LOOK: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(20);

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
    file: File,
}

impl InstanceLock {
    /// Takes the lock of the instance in `directory`. Somebody who has it and
    /// only [tidies up](Self::ending) is waited for.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        Self::settle(directory)?;
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
        lock(&file, LOCK)?;
        // Between opening and locking the instance may have been deleted,
        // and another one made.
        let mine = file.metadata()?;
        match fs::metadata(&path) {
            Ok(now) if (now.dev(), now.ino()) == (mine.dev(), mine.ino()) => {
                Ok(InstanceLock { file })
            }
            _ => Err(LockError::Gone),
        }
    }

    /// Says that it is about to be free: whoever wants it waits from now on,
    /// and is not refused.
    pub fn ending(&self) -> Result<(), LockError> {
        lock(&self.file, ENDING)
    }

    /// Waits until whoever had the lock of the instance in `directory`, and
    /// tidies up, has done so.
    pub fn settle(directory: &Path) -> io::Result<()> {
        let end = Instant::now() + TIDYING;
        let mut pause = LOOK;
        while is_ending(directory)? && Instant::now() < end {
            thread::sleep(pause);
            pause = (pause * 2).min(LOOK_MAX);
        }
        Ok(())
    }

    /// Whether a process has the lock of the instance in `directory`.
    pub fn is_held(directory: &Path) -> io::Result<bool> {
        is_locked(directory, LOCK)
    }
}

fn is_ending(directory: &Path) -> io::Result<bool> {
    is_locked(directory, ENDING)
}

fn lock(file: &File, byte: i64) -> Result<(), LockError> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(byte))) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(LockError::Held),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// Whether a process has this byte locked. A lock of the whole file, of an
/// older Croft's, is none of [`ENDING`].
fn is_locked(directory: &Path, byte: i64) -> io::Result<bool> {
    let file = match File::open(directory.join(FILE)) {
        Ok(file) => file,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(false),
                _ => Err(error),
            };
        }
    };
    let mut probe = range(byte);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut probe)).map_err(io::Error::from)?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK && probe.l_start == byte)
}

/// A byte of the file, to be locked for writing. `l_pid` must be 0 for these
/// locks.
fn range(byte: i64) -> libc::flock {
    libc::flock {
        // The constants are small (fcntl.h).
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: byte,
        l_len: 1,
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

    #[test]
    fn who_tidies_up_is_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path();
        let lock = InstanceLock::take(path).unwrap();
        // Whoever only has it is not.
        InstanceLock::settle(path).unwrap();
        lock.ending().unwrap();
        assert!(InstanceLock::is_held(path).unwrap());
        let (sender, begun) = std::sync::mpsc::channel();
        let taken = thread::scope(|scope| {
            let taker = scope.spawn(move || {
                sender.send(()).unwrap();
                InstanceLock::take(path)
            });
            begun.recv().unwrap();
            // So that it has very likely seen that it is held.
            thread::sleep(Duration::from_millis(100));
            drop(lock);
            taker.join().unwrap()
        });
        taken.unwrap();
    }
}
