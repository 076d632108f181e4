//! Where a vCPU lives: one mapping with everything that translated code
//! reaches by the stack pointer.
//!
//! ```text
//!  guard │ stack for signals │ Cpu │ attention │ Tables
//!                            ▲
//!                            RSP while translated code runs
//! ```
//!
//! Translated code needs a host register that leads to the vCPU. It keeps
//! nothing on the host's stack, so the stack pointer serves: what the kernel
//! pushes when a signal arrives goes below it, into room of the region's own.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::tables::Tables;
use crate::cpu::Cpu;
use crate::shared::VcpuShared;

const PAGE: usize = 4096;
/// Room for signal frames: one with all of AVX-512 takes 3 KiB, one with AMX
/// 11 KiB, and handlers run on it too.
const STACK: usize = 64 << 10;
/// Offset of the `Cpu` in the region.
const CPU_AT: usize = PAGE + STACK;
/// Offset of the attention word, counted from the `Cpu`.
pub const ATTENTION: usize = size_of::<Cpu>().next_multiple_of(64);
/// Offset of the [`Tables`], counted from the `Cpu`.
pub const TABLES: usize = ATTENTION + 64;
const SIZE: usize = (CPU_AT + TABLES + size_of::<Tables>()).next_multiple_of(PAGE);

/// The mapping. Other threads reach its attention word, so it lives as long
/// as the vCPU's shared part.
#[derive(Debug)]
pub struct Region {
    at: NonNull<u8>,
}

// SAFETY: the region is plain memory. What is shared of it is an atomic.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// An empty region.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a new private mapping where the kernel likes.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let at = match NonNull::new(at.cast::<u8>()) {
            Some(at) if at.as_ptr().cast() != libc::MAP_FAILED => at,
            _ => return Err(io::Error::last_os_error()),
        };
        let region = Region { at };
        // SAFETY: the region's own first page.
        if unsafe { libc::mprotect(at.as_ptr().cast(), PAGE, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(region)
    }

    fn cpu(&self) -> *mut Cpu {
        // SAFETY: inside the mapping.
        unsafe { self.at.as_ptr().add(CPU_AT).cast() }
    }

    /// The tables that translated code searches.
    fn tables(&self) -> *mut Tables {
        // SAFETY: inside the mapping.
        unsafe { self.cpu().cast::<u8>().add(TABLES).cast() }
    }

    /// Why the vCPU should look up.
    #[inline(always)]
    pub fn attention(&self) -> &AtomicU32 {
        // SAFETY: inside the mapping, aligned, never anything else, and valid
        // when zero.
        unsafe { &*self.cpu().cast::<u8>().add(ATTENTION).cast::<AtomicU32>() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; nobody has it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), SIZE) };
    }
}

/// A vCPU in the region of its shared part.
pub struct Home {
    cpu: NonNull<Cpu>,
    /// Keeps the region.
    _own: Arc<VcpuShared>,
}

impl Home {
    /// Moves `cpu` into the region of `own`, which must have no other.
    pub fn new(cpu: Cpu, own: Arc<VcpuShared>) -> Self {
        let at = own.region.cpu();
        // SAFETY: room for a `Cpu`, aligned, and nobody else's.
        unsafe {
            at.write(cpu);
            Tables::clear_all(own.region.tables());
        }
        Home {
            // SAFETY: inside a mapping, so not null.
            cpu: unsafe { NonNull::new_unchecked(at) },
            _own: own,
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // SAFETY: written in `new`, dropped once.
        unsafe { self.cpu.as_ptr().drop_in_place() };
    }
}

impl Deref for Home {
    type Target = Cpu;

    #[inline(always)]
    fn deref(&self) -> &Cpu {
        // SAFETY: valid while `self` is.
        unsafe { self.cpu.as_ref() }
    }
}

impl DerefMut for Home {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Cpu {
        // SAFETY: valid while `self` is, and reached through it alone.
        unsafe { self.cpu.as_mut() }
    }
}

impl Cpu {
    /// The tables that translated code uses. Only for a vCPU in its region.
    #[inline(always)]
    pub fn tables(&mut self) -> &mut Tables {
        // SAFETY: made in `Home::new`. Each region has one vCPU, and `&mut
        // self` says that nobody else reaches its tables.
        unsafe { &mut *self.own.region.tables() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_room_and_is_aligned() {
        let region = Region::new().unwrap();
        let start = region.at.as_ptr() as usize;
        let cpu = region.cpu() as usize;
        assert!(cpu - start >= PAGE + STACK);
        assert_eq!(cpu % align_of::<Cpu>(), 0);
        assert_eq!((cpu + TABLES) % align_of::<Tables>(), 0);
        assert!(ATTENTION >= size_of::<Cpu>());
        assert!(cpu + TABLES + size_of::<Tables>() <= start + SIZE);
        assert_eq!(region.attention() as *const _ as usize, cpu + ATTENTION);
        // Displacements of translated code have 31 bits.
        assert!(i32::try_from(TABLES + size_of::<Tables>()).is_ok());
    }
}
