//! Files that are there whole, or not at all, whatever happens.
//!
//! The order is always the same: the contents reach the disk, then the name
//! changes, then the directory reaches the disk. A kill between any two steps
//! leaves the old name with the old contents, or the new with the new.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::Error;

/// Writes a file in place of another, if there is one. `temporary` is a path
/// in the same file system where nothing is.
pub fn replace(path: &Path, temporary: &Path, bytes: &[u8]) -> Result<(), Error> {
    step();
    let mut file = File::create(temporary).map_err(Error::io("make", temporary))?;
    step();
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", temporary))?;
    rename(temporary, path)
}

/// Gives a file, whose contents have reached the disk, another name.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    step();
    fs::rename(from, to).map_err(Error::io("rename to", to))?;
    step();
    if let Some(directory) = to.parent() {
        sync_directory(directory)?;
    }
    step();
    Ok(())
}

/// Makes names in a directory last.
pub fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("write", path))
}

/// Makes a directory for the owner alone, with those above it.
pub fn make_directory(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io("make directory", path))
}

/// A point at which a kill makes a difference; tests kill at each.
#[cfg(not(test))]
pub fn step() {}

/// In a test's child process, the end at the step that it was told.
#[cfg(test)]
pub fn step() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static STEPS: AtomicU32 = AtomicU32::new(1);
    if let Ok(last) = std::env::var(KILL_AT) {
        let now = STEPS.fetch_add(1, Ordering::Relaxed);
        if last.parse() == Ok(now) {
            // No destructor, no handler: as kill -9 would have it.
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
    }
}

/// The variable that tells a test's child process its last step.
#[cfg(test)]
pub const KILL_AT: &str = "CROFT_IMAGE_TEST_KILL_AT";
