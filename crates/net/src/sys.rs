//! The system calls of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Requests of `/dev/net/tun` (linux/if_tun.h).
const TUNSETIFF: libc::c_ulong = 0x4004_54CA;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54CB;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54D0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54D8;
const TUNSETFILTEREBPF: libc::c_ulong = 0x8004_54E1;
const TUNSETCARRIER: libc::c_ulong = 0x4004_54E2;
/// A command of bpf(2), and a type of programs (linux/bpf.h).
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
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

/// `union bpf_attr` (linux/bpf.h) as far as BPF_PROG_LOAD needs it.
#[repr(C)]
struct LoadProgram {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

/// Loads a program of eBPF's that looks at frames.
pub fn load_filter(program: &[u64]) -> io::Result<OwnedFd> {
    let attributes = LoadProgram {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
    };
    // SAFETY: the attributes are as long as is said, what they point to lives
    // during the call, and the kernel only reads it.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<LoadProgram>(),
        )
    };
    let Ok(descriptor @ 0..) = libc::c_int::try_from(loaded) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: the kernel has just opened it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Shows whoever reads from the interface of `tap` only what `program` lets
/// pass, from now on and whoever opens it.
pub fn set_filter(tap: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = program.as_raw_fd();
    // SAFETY: the kernel reads one int, which lives during the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETFILTEREBPF, &raw const program) })
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

/// Whether the interface of `tap` has a carrier.
pub fn set_carrier(tap: BorrowedFd<'_>, carrier: bool) -> io::Result<()> {
    let carrier = libc::c_int::from(carrier);
    // SAFETY: the kernel reads one int, which lives during the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETCARRIER, &raw const carrier) })
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
