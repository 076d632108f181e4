//! Memory for generated code that is never writable and executable through
//! one mapping.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

/// Bytes of a page.
const PAGE: usize = 4096;

/// One memory file, mapped once to write and once to execute.
#[derive(Debug)]
pub struct DualMapping {
    writable: usize,
    executable: usize,
    size: usize,
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
            // SAFETY: a new mapping of our own file where the kernel likes.
            let at = unsafe {
                libc::mmap(
                    ptr::null_mut(),
                    size,
                    protection,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                )
            };
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
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
}
