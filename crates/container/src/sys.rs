//! System calls that rustix does not have, or not for a process that is about
//! to become another.

use std::ffi::{CStr, c_int, c_long, c_ulong};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::process::Pid;

/// `mount_setattr(2)`: attributes of a mount.
pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NOSUID: u64 = 0x2;
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_NOEXEC: u64 = 0x8;
/// All times of access; relatime is none of its bits.
pub const ATTR_ATIME: u64 = 0x70;
pub const ATTR_NOATIME: u64 = 0x10;
pub const ATTR_STRICTATIME: u64 = 0x20;
pub const ATTR_NODIRATIME: u64 = 0x80;
pub const ATTR_IDMAP: u64 = 0x0010_0000;
pub const ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

/// Magic numbers of file systems (statfs(2)).
pub const PROC_MAGIC: i64 = 0x9fa0;
pub const DEVPTS_MAGIC: i64 = 0x1cd1;

fn checked(result: c_long) -> Result<c_long, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    let error = io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// `struct clone_args` of clone(2), to the member that Linux 5.7 added.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A copy of this process, which must have one thread, with namespaces of its
/// own by `flags`, in the group of version 2 behind `group`. `None` in the
/// copy.
pub fn clone3(flags: u64, group: Option<BorrowedFd<'_>>) -> Result<Option<(Pid, OwnedFd)>, Errno> {
    /// `CLONE_INTO_CGROUP`.
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        // A sibling has its maker's.
        exit_signal: match flags & libc::CLONE_PARENT as u64 {
            0 => libc::SIGCHLD as u64,
            _ => 0,
        },
        ..CloneArgs::default()
    };
    if let Some(group) = group {
        args.flags |= INTO_CGROUP;
        args.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: the arguments are complete; without CLONE_VM the copy has a copy
    // of all memory, like fork(2)'s, and its one thread goes on from here.
    let id = checked(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, mem::size_of::<CloneArgs>())
    })?;
    let Some(pid) = Pid::from_raw(id as i32) else {
        return Ok(None);
    };
    // SAFETY: the kernel has put a new descriptor there.
    Ok(Some((pid, unsafe { OwnedFd::from_raw_fd(pidfd) })))
}

/// Ends this process, without anything of its parent's being run again.
pub fn leave(code: i32) -> ! {
    // SAFETY: it does not return, and touches no memory.
    unsafe { libc::_exit(code) }
}

/// What `mount_setattr(2)` takes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns: u64,
}

impl MountAttr {
    /// Whether it would change nothing.
    pub fn is_nothing(&self) -> bool {
        self.set == 0 && self.clear == 0 && self.propagation == 0
    }
}

/// Changes the mount behind a descriptor; with `recursive` those beneath too.
pub fn mount_setattr(mount: impl AsFd, recursive: bool, attr: &MountAttr) -> Result<(), Errno> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: path and attributes are valid for the call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr,
            mem::size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Opens beneath `root` as if that were the root, without following links of
/// procfs.
pub fn open_in(
    root: impl AsFd,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // It is refused when something above was being renamed.
    for _ in 0..64 {
        match openat2(
            root.as_fd(),
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Moves this process into a namespace, or into those of a process.
pub fn setns(namespace: impl AsFd, kinds: u64) -> Result<(), Errno> {
    // SAFETY: no memory is involved; the process has one thread.
    checked(c_long::from(unsafe {
        libc::setns(namespace.as_fd().as_raw_fd(), kinds as c_int)
    }))
    .map(drop)
}

/// New namespaces for this process.
pub fn unshare(kinds: u64) -> Result<(), Errno> {
    // SAFETY: no memory is involved; the process has one thread.
    checked(c_long::from(unsafe { libc::unshare(kinds as c_int) })).map(drop)
}

/// `prctl(2)` with numbers only.
pub fn prctl(option: c_int, first: u64, second: u64) -> Result<i32, Errno> {
    // SAFETY: only options that take numbers are used.
    let result = unsafe {
        libc::prctl(
            option,
            first as c_ulong,
            second as c_ulong,
            0 as c_ulong,
            0 as c_ulong,
        )
    };
    checked(c_long::from(result)).map(|result| result as i32)
}

/// Sets real, effective and saved ids of groups and user, in this order.
/// `groups` are left as they are if `None`.
pub fn set_ids(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<(), Errno> {
    // The raw calls: libc's would signal other threads, of which there are
    // none.
    if let Some(groups) = groups {
        // SAFETY: the list is as long as is said.
        checked(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    }
    // SAFETY: numbers only.
    checked(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: numbers only.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Effective, permitted and inheritable capabilities, a bit for each.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
    /// `_LINUX_CAPABILITY_VERSION_3`.
    const VERSION: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION, 0];
    let halves = |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
    let data: [[u32; 3]; 2] = [halves(0), halves(32)];
    // SAFETY: `capget(2)`'s structures: a version and this thread, two sets of
    // three words.
    checked(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// The capabilities that this process is permitted, a bit for each.
pub fn permitted_capabilities() -> Result<u64, Errno> {
    /// `_LINUX_CAPABILITY_VERSION_3`.
    const VERSION: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION, 0];
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: `capget(2)`'s structures: a version and this thread, two sets of
    // three words.
    checked(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    let [[_, low, _], [_, high, _]] = data;
    Ok(u64::from(low) | u64::from(high) << 32)
}

/// Marks all descriptors from `first` on to be closed when the program
/// begins.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    checked(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Becomes the program. Returns only if that fails.
pub fn execve(
    program: &CStr,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> Errno {
    debug_assert!(arguments.last().is_some_and(|last| last.is_null()));
    // SAFETY: both lists end with a null pointer, and what they point to lives.
    let result =
        unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    checked(c_long::from(result)).err().unwrap_or(Errno::IO)
}

/// The same, of the program behind a handle.
pub fn exec_handle(
    program: impl AsFd,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> Errno {
    debug_assert!(arguments.last().is_some_and(|last| last.is_null()));
    // SAFETY: both lists end with a null pointer, and what they point to lives.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_fd().as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    checked(result).err().unwrap_or(Errno::IO)
}

/// The working directory as the kernel spells it, with "(unreachable)" if it
/// is not beneath the root.
pub fn working_directory() -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0_u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most as much as it is told there is.
    let length =
        checked(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    buffer.truncate((length as usize).saturating_sub(1));
    Ok(buffer)
}

/// A new session keyring, so that the keys of whoever started this are not
/// the container's.
pub fn new_session_keyring() -> Result<(), Errno> {
    /// `KEYCTL_JOIN_SESSION_KEYRING` of keyctl(2).
    const JOIN: c_int = 1;
    // SAFETY: no name: an anonymous keyring.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, JOIN, std::ptr::null::<libc::c_char>()) })
        .map(drop)
}

/// Nothing is ignored or blocked any more: both are inherited by programs.
pub fn reset_signals() {
    // SAFETY: plain numbers and structures that live through the calls; the
    // default action runs no code of ours. Those that cannot be changed say
    // so, which is all right.
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        for signal in 1..=64 {
            let mut action: libc::sigaction = mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
            {
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// `sched_setattr(2)` for this process.
pub fn set_scheduler(attr: &libc::sched_attr) -> Result<(), Errno> {
    // SAFETY: the structure says its size.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attr, 0) }).map(drop)
}

/// `ioprio_set(2)` for this process.
pub fn set_io_priority(value: i32) -> Result<(), Errno> {
    /// `IOPRIO_WHO_PROCESS`.
    const PROCESS: c_int = 1;
    // SAFETY: numbers only.
    checked(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, value) }).map(drop)
}

/// `personality(2)`.
pub fn set_personality(value: u32) -> Result<(), Errno> {
    // SAFETY: a number only.
    checked(c_long::from(unsafe {
        libc::personality(c_ulong::from(value))
    }))
    .map(drop)
}

/// `set_mempolicy(2)` for this process.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> Result<(), Errno> {
    // Of no bits the kernel would take one off all the same.
    let (first, bits) = match nodes {
        [] => (std::ptr::null(), 0),
        _ => (nodes.as_ptr(), nodes.len() * 64 + 1),
    };
    // SAFETY: as many bits as are said, less the one that the kernel takes off.
    checked(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, first, bits) }).map(drop)
}

/// Processors that this process may run on, a bit for each.
pub fn set_affinity(processors: &[u64]) -> Result<(), Errno> {
    // SAFETY: as many bytes as are said.
    checked(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            mem::size_of_val(processors),
            processors.as_ptr(),
        )
    })
    .map(drop)
}

/// A limit of another process, `None` for this one.
pub fn set_limit(process: Option<Pid>, resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let new = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let id = Pid::as_raw(process);
    // SAFETY: the structure lives through the call, which only reads it.
    checked(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            id,
            resource,
            &raw const new,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// The limit of this process: soft, hard.
pub fn limit(resource: u32) -> Result<(u64, u64), Errno> {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure lives through the call, which fills it.
    checked(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut old,
        )
    })?;
    Ok((old.rlim_cur, old.rlim_max))
}

/// Makes the terminal this session's (ioctl_tty(2)).
pub fn take_terminal(terminal: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the argument is a number.
    checked(c_long::from(unsafe {
        libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0)
    }))
    .map(drop)
}

/// The other end of a terminal, without its path (`TIOCGPTPEER`).
pub fn terminal_peer(master: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a number.
    let peer = checked(c_long::from(unsafe {
        libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags)
    }))?;
    // SAFETY: a new descriptor that is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(peer as RawFd) })
}

/// Brings the loopback interface of this network namespace up.
pub fn raise_loopback() -> Result<(), Errno> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: a request of `netdevice(7)`: a name that ends with zero, and
    // flags.
    unsafe {
        let mut request: libc::ifreq = mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        checked(c_long::from(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw mut request,
        )))
    }
    .map(drop)
}
