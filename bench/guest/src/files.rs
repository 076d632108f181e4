//! System calls on files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::stat as status_of;

use crate::lines::Work;

/// Questions in a call of [`stat`].
pub const STATS: u64 = 4096;
/// Writes and reads in a call of [`read_and_write`], half of them each.
pub const TRANSFERS: u64 = 4096;
/// Files in a call of [`small_files`].
pub const FILES: u64 = 256;

const SIZE: usize = 4096;

/// stat() of a file three directories deep.
pub fn stat(directory: &Path) -> io::Result<Work> {
    let top = directory.join("a");
    let path = top.join("b/c");
    fs::create_dir_all(&path)?;
    let path = path.join("file");
    fs::write(&path, [0; 100])?;
    let keep = Remove(top);
    Ok(Box::new(move || {
        let _ = &keep;
        let mut sum = 0;
        for _ in 0..STATS {
            sum += status_of(&path)?.st_size as u64;
        }
        Ok(sum)
    }))
}

/// Writes and reads of a page of an open file.
pub fn read_and_write(directory: &Path) -> io::Result<Work> {
    let path = directory.join("transfers");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    let mut buffer = [0u8; SIZE];
    Ok(Box::new(move || {
        let mut sum = 0;
        for round in 0..TRANSFERS / 2 {
            let at = round % 16 * SIZE as u64;
            buffer[0] = round as u8;
            file.write_all_at(&buffer, at)?;
            file.read_exact_at(&mut buffer, at)?;
            sum += u64::from(buffer[0]);
        }
        Ok(sum)
    }))
}

/// Small files: made, written, read by their names, removed.
pub fn small_files(directory: &Path) -> io::Result<Work> {
    let path = directory.join("small");
    let mut buffer = [0u8; SIZE];
    Ok(Box::new(move || {
        let mut sum = 0;
        for round in 0..FILES {
            buffer[SIZE - 1] = round as u8;
            File::create(&path)?.write_all(&buffer)?;
            File::open(&path)?.read_exact(&mut buffer)?;
            fs::remove_file(&path)?;
            sum += u64::from(buffer[SIZE - 1]);
        }
        Ok(sum)
    }))
}

/// A directory that goes with the work.
struct Remove(std::path::PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        // Best effort: it is on a tmpfs.
        let _ = fs::remove_dir_all(&self.0);
    }
}
