//! Guest RAM that ends where nothing may be touched.
//!
//! Linux gives a new mapping the highest gap into which it fits. So a gap for
//! the first range is made below a page without rights, and then RAM; RAM that
//! found another gap is put aside for a while and made again.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;

use croft_memory::{GuestRam, Range};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Attempts: gaps in the address space are used up by them.
const ATTEMPTS: usize = 32;
const PAGE: usize = 4096;

/// A page that ends the process when it is touched.
struct Guard(*mut c_void);

impl Guard {
    /// A page above a gap of `len` bytes.
    fn above(len: usize) -> Option<Self> {
        let none = ProtFlags::empty();
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), len + PAGE, none, MapFlags::PRIVATE) }.ok()?;
        // SAFETY: the lower part of what was just mapped; nobody refers to it.
        unsafe { munmap(start, len) }.ok()?;
        Some(Guard(start.wrapping_byte_add(len)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `above`, and nobody refers to it.
        let _ = unsafe { munmap(self.0, PAGE) };
    }
}

/// RAM below a guard.
pub struct Fenced {
    /// The RAM.
    pub ram: GuestRam,
    /// Where the first range ends, if that could be brought about.
    _guard: Option<Guard>,
}

impl Fenced {
    /// RAM of `ranges`.
    pub fn new(ranges: &[Range]) -> Self {
        let make = || GuestRam::new(ranges).expect("a host has a few pages");
        let len = ranges.first().map_or(0, |range| range.len as usize);
        let mut aside = Vec::new();
        for _ in 0..ATTEMPTS {
            let guard = Guard::above(len);
            let ram = make();
            let end = ranges.first().and_then(|range| {
                let page = ram.page(range.start)?;
                Some(page.host as usize + range.len as usize)
            });
            if guard.as_ref().map(|guard| guard.0 as usize) == end {
                return Fenced { ram, _guard: guard };
            }
            aside.push((guard, ram));
        }
        Fenced {
            ram: make(),
            _guard: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_ends_at_a_guard() {
        for _ in 0..100 {
            assert!(Fenced::new(&crate::layout::RANGES)._guard.is_some());
        }
    }
}
