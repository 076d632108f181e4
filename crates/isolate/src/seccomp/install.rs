//! Putting a filter on.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::Program;
use super::bpf::Instruction;

/// `struct sock_fprog` of `linux/filter.h`.
#[repr(C)]
struct Whole {
    len: u16,
    filter: *const Instruction,
}

impl Program {
    /// Puts it on this thread, and on all it makes; there is no way back.
    /// Needs no-new-privileges or `CAP_SYS_ADMIN`. It allocates nothing, so
    /// that a child between clone and exec can call it.
    ///
    /// Returns the listener's descriptor, close-on-exec, if the program asks
    /// somebody ([`Program::listener`]).
    pub fn install(&self) -> Result<Option<OwnedFd>, Errno> {
        let len = u16::try_from(self.instructions.len()).map_err(|_| Errno::INVAL)?;
        let whole = Whole {
            len,
            filter: self.instructions.as_ptr(),
        };
        // SAFETY: `whole` describes instructions that live through the call,
        // which only reads them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                self.flags,
                &whole,
            )
        };
        match result {
            -1 => Err(Errno::from_raw_os_error(
                std::io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EIO),
            )),
            _ if self.listener.is_none() => Ok(None),
            descriptor => {
                let descriptor = i32::try_from(descriptor).map_err(|_| Errno::BADF)?;
                // SAFETY: with the flag for a listener the call returns a new
                // descriptor that is nobody else's.
                Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
            }
        }
    }
}
