//! Guest RAM that ends where nothing may be touched.
//!
//! Linux gives a new mapping the place right below the one before, if no gap
//! fits better. So a page without rights is mapped, then RAM; RAM whose first
//! range did not come to lie right below the page is put aside for a while and
//! made again.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;

use croft_memory::{GuestRam, Range};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Attempts: gaps in the address space are used up by them.
const ATTEMPTS: usize = 16;
const PAGE: usize = 4096;

/// A page that ends the process when it is touched.
struct Guard(*mut c_void);

impl Guard {
    fn new() -> Option<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let page =
            unsafe { mmap_anonymous(ptr::null_mut(), PAGE, ProtFlags::empty(), MapFlags::PRIVATE) };
        page.ok().map(Guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new`, and nobody refers to it.
        let _ = unsafe { munmap(self.0, PAGE) };
    }
}

/// RAM below a guard.
pub struct Fenced {
    /// The RAM.
    pub ram: GuestRam,
    /// Where the first range ends, if that could be brought about.
    guard: Option<Guard>,
}

impl Fenced {
    /// RAM of `ranges`.
    pub fn new(ranges: &[Range]) -> Self {
        let make = || GuestRam::new(ranges).expect("a host has a few pages");
        let mut aside = Vec::new();
        for _ in 0..ATTEMPTS {
            let guard = Guard::new();
            let ram = make();
            let end = ranges.first().and_then(|range| {
                let page = ram.page(range.start)?;
                Some(page.host as usize + range.len as usize)
            });
            if guard.as_ref().map(|guard| guard.0 as usize) == end {
                return Fenced { ram, guard };
            }
            aside.push((guard, ram));
        }
        Fenced {
            ram: make(),
            guard: None,
        }
    }

    /// Whether the first range ends at a guard.
    pub fn is_guarded(&self) -> bool {
        self.guard.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_ends_at_a_guard() {
        for _ in 0..100 {
            assert!(Fenced::new(&crate::layout::RANGES).is_guarded());
        }
    }
}
