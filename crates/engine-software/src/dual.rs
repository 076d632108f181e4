//! Memory for generated code that is never writable and executable through
//! one mapping.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes of a huge page of x86-64 (SDM volume 3, section 4.5).
const HUGE: usize = 2 << 20;

/// One memory file, mapped once to write and once to execute, both where huge
/// pages can begin.
#[derive(Debug)]
pub struct DualMapping {
    writable: usize,
    executable: usize,
    size: usize,
}

/// An address that is reserved for `size` bytes, where a huge page can begin.
fn reserve(size: usize) -> io::Result<usize> {
    // SAFETY: a new mapping without access where the kernel likes.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size + HUGE,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let at = at as usize;
    let start = at.next_multiple_of(HUGE);
    for (from, to) in [(at, start), (start + size, at + size + HUGE)] {
        if from < to {
            // SAFETY: what was just mapped, and is nobody's.
            unsafe { libc::munmap(from as *mut libc::c_void, to - from) };
        }
    }
    Ok(start)
}

impl DualMapping {
    /// `size` bytes of zeroes, a whole number of pages.
    ///
    /// # Errors
    /// The host refuses memory files or executable mappings.
    pub fn new(size: usize) -> io::Result<Self> {
        // SAFETY: a plain system call with a valid name; the descriptor is
        // owned by the `File`.
        let file = unsafe {
            let name = c"croft-code".as_ptr();
            let mut fd = libc::memfd_create(name, libc::MFD_CLOEXEC | libc::MFD_EXEC);
            if fd < 0 {
                // Kernels before 6.3 know no MFD_EXEC, and need none.
                fd = libc::memfd_create(name, libc::MFD_CLOEXEC);
            }
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        file.set_len(size as u64)?;
        let map = |protection| {
            let place = reserve(size)?;
            // SAFETY: a mapping of our own file over what was reserved for it.
            let at = unsafe {
                libc::mmap(
                    place as *mut libc::c_void,
                    size,
                    protection,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    file.as_raw_fd(),
                    0,
                )
            };
            if at == libc::MAP_FAILED {
                let error = io::Error::last_os_error();
                // SAFETY: what was reserved, and is nobody's.
                unsafe { libc::munmap(place as *mut libc::c_void, size) };
                return Err(error);
            }
            Ok(at as usize)
        };
        let mut mapping = DualMapping {
            writable: map(libc::PROT_READ | libc::PROT_WRITE)?,
            executable: 0,
            size,
        };
        mapping.executable = map(libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(mapping)
    }

    /// Bytes in it.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Address at which byte `offset` is executed.
    pub fn executable(&self, offset: usize) -> usize {
        self.executable + offset
    }

    /// Puts `code` at byte `offset`; what does not fit is left out.
    ///
    /// # Safety
    /// No processor executes the bytes overwritten.
    pub unsafe fn write(&self, offset: usize, code: &[u8]) {
        let offset = offset.min(self.size);
        let len = code.len().min(self.size - offset);
        let at = (self.writable + offset) as *mut u8;
        // SAFETY: inside the writable mapping.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), at, len) };
    }

    /// The bytes from `from` to `to` have become full, of whatever there was
    /// room for. Each part that makes a huge page is made one: code that is
    /// spread over many pages waits for their translations more than for
    /// anything else. A host that cannot leaves small pages, which serve too.
    pub fn filled(&self, from: usize, to: usize) {
        let end = to.min(self.size) / HUGE * HUGE;
        let start = from / HUGE * HUGE;
        if start < end {
            let at = (self.executable + start) as *mut libc::c_void;
            // SAFETY: inside the mapping; what it contains stays as it is.
            unsafe { libc::madvise(at, end - start, libc::MADV_COLLAPSE) };
        }
    }

    /// Gives the memory of whole pages from byte `offset` on back to the
    /// host. Zeroes are there then, or what was there: a host that refuses
    /// takes nothing away.
    ///
    /// # Safety
    /// No processor executes those bytes.
    pub unsafe fn discard(&self, offset: usize) {
        let offset = offset.next_multiple_of(PAGE).min(self.size);
        let at = (self.writable + offset) as *mut libc::c_void;
        // SAFETY: inside the writable mapping; what it maps is ours alone.
        unsafe { libc::madvise(at, self.size - offset, libc::MADV_REMOVE) };
    }
}

impl Drop for DualMapping {
    fn drop(&mut self) {
        for at in [self.writable, self.executable] {
            if at != 0 {
                // SAFETY: mapped in `new`; whoever drops this executes none
                // of it any more.
                unsafe { libc::munmap(at as *mut libc::c_void, self.size) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_discarded_is_gone_from_both_mappings() {
        let memory = DualMapping::new(4 * PAGE).unwrap();
        let byte = |offset| {
            // SAFETY: inside the mapping, which is readable.
            unsafe { (memory.executable(offset) as *const u8).read_volatile() }
        };
        // SAFETY: nothing is executed here.
        unsafe { memory.write(0, &[7; 4 * PAGE]) };
        // SAFETY: as above.
        unsafe { memory.discard(PAGE + 1) };
        assert_eq!([0, PAGE, 2 * PAGE - 1].map(byte), [7; 3]);
        assert_eq!([2 * PAGE, 4 * PAGE - 1].map(byte), [0; 2]);
    }

    #[test]
    fn what_is_filled_stays_as_it_is_and_can_be_discarded() {
        let memory = DualMapping::new(3 * HUGE - PAGE).unwrap();
        let byte = |offset| {
            // SAFETY: inside the mapping, which is readable.
            unsafe { (memory.executable(offset) as *const u8).read_volatile() }
        };
        let mut next = 0;
        while next < 2 * HUGE + 5 * PAGE {
            let code = [(next / 1000) as u8; 1000];
            // SAFETY: nothing is executed here.
            unsafe { memory.write(next, &code) };
            memory.filled(next, next + code.len());
            next += code.len();
        }
        let all = (0..next).step_by(999);
        assert!(all.clone().all(|n| byte(n) == (n / 1000) as u8));
        // SAFETY: as above.
        unsafe { memory.discard(HUGE / 2) };
        for n in all {
            let left = if n < HUGE / 2 { (n / 1000) as u8 } else { 0 };
            assert_eq!(byte(n), left, "{n}");
        }
        // Both mappings are there still.
        // SAFETY: as above.
        unsafe { memory.write(HUGE, &[9; 10]) };
        assert_eq!(byte(HUGE), 9);
    }
}
