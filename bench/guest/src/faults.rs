//! Page faults.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::lines::Work;

/// Pages that are touched in a call.
pub const PAGES: u64 = 512;

const PAGE: usize = 4096;
const LENGTH: usize = PAGES as usize * PAGE;

/// Fresh memory: mapped, written to page by page, unmapped.
pub fn anonymous(_: &Path) -> io::Result<Work> {
    Ok(Box::new(|| {
        let mapping = Mapping::new(None)?;
        mapping.touch()
    }))
}

/// Pages of a file that are in memory already: mapped, written to, unmapped.
pub fn file(directory: &Path) -> io::Result<Work> {
    let path = directory.join("mapped");
    fs::write(&path, vec![1; LENGTH])?;
    let file = File::options().read(true).write(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(Box::new(move || {
        let mapping = Mapping::new(Some(&file))?;
        mapping.touch()
    }))
}

/// A mapping of [`LENGTH`] bytes, nobody's until it is dropped.
struct Mapping(*mut u8);

impl Mapping {
    fn new(file: Option<&File>) -> io::Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let anywhere = ptr::null_mut();
        let start = match file {
            Some(file) => {
                let file = file.as_fd();
                // SAFETY: the kernel chooses a place where nothing is.
                unsafe { mmap(anywhere, LENGTH, rights, MapFlags::SHARED, file, 0) }
            }
            // SAFETY: as above.
            None => unsafe { mmap_anonymous(anywhere, LENGTH, rights, MapFlags::PRIVATE) },
        }?;
        let mapping = Mapping(start.cast());
        // One fault for each page; a kernel without huge pages says no.
        // SAFETY: it is about our mapping, whose contents it leaves alone.
        let _ = unsafe { madvise(start, LENGTH, Advice::LinuxNoHugepage) };
        Ok(mapping)
    }

    /// Writes to each page, and reads it.
    fn touch(&self) -> io::Result<u64> {
        let mut sum = 0u64;
        for offset in (0..LENGTH).step_by(PAGE) {
            // SAFETY: within the mapping, which is ours alone; the file has
            // its length.
            unsafe {
                let byte = self.0.add(offset);
                byte.write_volatile((offset / PAGE) as u8);
                sum = sum
                    .rotate_left(1)
                    .wrapping_add(u64::from(byte.read_volatile()));
            }
        }
        Ok(sum)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours, and nothing refers to it any more.
        let _ = unsafe { munmap(self.0.cast(), LENGTH) };
    }
}
