//! The system calls of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Requests of `/dev/net/tun` (linux/if_tun.h).
const TUNSETIFF: libc::c_ulong = 0x4004_54CA;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54CB;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54D0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54D8;
/// Flags of an interface (linux/if_tun.h).
pub const IFF_TAP: u16 = 0x0002;
pub const IFF_MULTI_QUEUE: u16 = 0x0100;
pub const IFF_NO_PI: u16 = 0x1000;
pub const IFF_VNET_HDR: u16 = 0x4000;
/// Bytes of an interface's name, with its end (linux/if.h).
pub const IFNAMSIZ: usize = 16;
/// Most pieces of one call (`IOV_MAX`, limits.h).
const PIECES_MAX: usize = 1024;

/// `struct ifreq` (linux/if.h) as TUNSETIFF takes it: 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes `tun` a queue of interface `name`, which is made if need be and may
/// contain `%d`. Returns its name.
pub fn set_interface(
    tun: BorrowedFd<'_>,
    name: [u8; IFNAMSIZ],
    flags: u16,
) -> io::Result<[u8; IFNAMSIZ]> {
    let mut request = InterfaceRequest {
        name,
        flags,
        rest: [0; 22],
    };
    // SAFETY: the request is as large as the kernel's type, which it reads
    // and writes, and lives during the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(request.name)
}

/// Has the interface of `tun` stay when nobody has it open.
pub fn set_persistent(tun: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_ulong = 1;
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST, on) })
}

/// How many bytes precede each frame.
pub fn set_header_len(tap: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int, which lives during the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const len) })
}

/// What may be left to whoever reads (`TUN_F_*`).
pub fn set_offload(tap: BorrowedFd<'_>, offloads: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, offloads) })
}

/// Writes `header` and `pieces`, which are guest memory and may change
/// meanwhile, at once.
pub fn write_pieces<B: BitmapSlice>(
    to: BorrowedFd<'_>,
    header: &[u8],
    pieces: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    let mut all = Vec::with_capacity(pieces.len() + 1);
    all.push(libc::iovec {
        iov_base: header.as_ptr().cast_mut().cast(),
        iov_len: header.len(),
    });
    all.extend(pieces.iter().map(|piece| libc::iovec {
        iov_base: piece.ptr_guard().as_ptr().cast_mut().cast(),
        iov_len: piece.len(),
    }));
    if all.len() > PIECES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: each entry describes memory that is borrowed during the call,
    // and the kernel only reads it. Guest memory may change meanwhile, which
    // is the guest's own business: nothing here refers to it as a slice.
    let written = unsafe { libc::writev(to.as_raw_fd(), all.as_ptr(), all.len() as libc::c_int) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}
