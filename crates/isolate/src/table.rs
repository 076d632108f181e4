//! Which thread may make which system call, and what for.
//!
//! One line for each call and reason. What has no line is refused: the
//! process ends, and says which thread called what ([`crate::trap`]). A new
//! need is a new line here, with its reason; the narrower, the better.

use syscalls::Sysno;

use crate::kvm;
use crate::role::Roles;

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// The call.
    pub call: Sysno,
    /// Who may make it.
    pub who: Roles,
    /// With which arguments.
    pub when: When,
    /// What for.
    pub why: &'static str,
}

/// A condition on a call's arguments, which are counted from 0 and compared
/// by their lower 32 bits.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// None.
    Always,
    /// The argument is one of these.
    Is(u8, &'static [u64]),
    /// The argument under the mask is one of these.
    Masked(u8, u64, &'static [u64]),
    /// The argument is the id of this process.
    Own(u8),
}

use When::{Always, Is, Masked, Own};

const fn line(call: Sysno, who: Roles, when: When, why: &'static str) -> Line {
    Line {
        call,
        who,
        when,
        why,
    }
}

const ALL: Roles = Roles::all();
const SETUP: Roles = Roles::SETUP;
const OWNER: Roles = Roles::OWNER;
const MAKER: Roles = Roles::MAKER;
const VCPU: Roles = Roles::VCPU;
const DISK: Roles = Roles::DISK;
const NET: Roles = Roles::NET;
const DEVICE: Roles = Roles::DEVICE;
const SHARE: Roles = Roles::SHARE;
const CONSOLE: Roles = Roles::CONSOLE;
const TIMERS: Roles = Roles::TIMERS;
const CONTROL: Roles = Roles::CONTROL;
const GDB: Roles = Roles::GDB;
const COUNTS: Roles = Roles::COUNTS;
/// The main thread, all its life.
const MAIN: Roles = SETUP.union(OWNER);
/// Serves queues.
const WORKER: Roles = DISK.union(DEVICE).union(SHARE);

/// `PROT_EXEC` is not asked for (argument 2 of mmap and mprotect).
const NOT_EXECUTABLE: When = Masked(2, libc::PROT_EXEC as u64, &[0]);
/// Readable and executable, not writable.
const READ_EXECUTE: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;
/// A thread as the C library makes it (pthread_create(3)), and nothing else:
/// VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID,
/// CHILD_CLEARTID.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;
/// `TUNSETOFFLOAD` (linux/if_tun.h): what a tap leaves to whoever reads it.
const TUNSETOFFLOAD: u64 = 0x4004_54D0;
/// `TUNSETCARRIER`: whether a tap has a carrier.
const TUNSETCARRIER: u64 = 0x4004_54E2;
/// `FIONBIO` (asm-generic/ioctls.h).
const FIONBIO: u64 = 0x5421;
/// Of block devices (linux/fs.h): sizes and discards.
const BLOCK: &[u64] = &[
    0x1260,      // BLKGETSIZE
    0x8008_1272, // BLKGETSIZE64
    0x1268,      // BLKSSZGET
    0x127B,      // BLKPBSZGET
    0x127C,      // BLKDISCARDZEROES
    0x1277,      // BLKDISCARD
    0x127F,      // BLKZEROOUT
];
/// An empty path: the descriptor itself.
const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;
const DESCRIPTOR_FLAGS: &[u64] = &[
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
];

/// Calls that are answered instead of refused: those who make them can do
/// without, and have to be told so by an error.
pub const WITHOUT: &[(Sysno, &str)] = &[
    (
        Sysno::clone3,
        "its flags are in memory, out of a filter's sight: the C library then takes clone",
    ),
    (
        Sysno::io_uring_setup,
        "what a ring does no filter sees: disks then take threads",
    ),
];
/// The error of [`WITHOUT`].
pub const WITHOUT_ERROR: i32 = libc::ENOSYS;

/// Files that the C library would read by itself and does without: opening
/// them, and no other, is answered by "no such file".
pub const WITHOUT_FILES: &[&[u8]] = &[
    b"/proc/sys/vm/overcommit_memory\0",
    b"/sys/devices/system/cpu/online\0",
];

/// For every machine.
#[rustfmt::skip]
pub const COMMON: &[Line] = &[
    // What every thread is made of.
    line(Sysno::futex, ALL, Always, "locks and waits"),
    line(Sysno::exit, ALL, Always, "a thread's end"),
    line(Sysno::exit_group, ALL, Always, "the process's end"),
    line(Sysno::rt_sigreturn, ALL, Always, "back from a handler"),
    line(Sysno::rt_sigaction, ALL, Always, "a fatal signal is given back its default"),
    line(Sysno::rt_sigprocmask, ALL, Always, "around threads' starts and kicks"),
    line(Sysno::sigaltstack, ALL, Always, "a thread's stack for handlers"),
    line(Sysno::set_robust_list, ALL, Always, "a thread's start"),
    line(Sysno::rseq, ALL, Always, "a thread's start"),
    line(Sysno::sched_getaffinity, ALL, Always, "a thread's start: where its stack is"),
    line(Sysno::sched_yield, ALL, Always, "short waits"),
    line(Sysno::gettid, ALL, Always, "signals to oneself"),
    line(Sysno::getpid, ALL, Always, "signals to own threads"),
    line(Sysno::tgkill, ALL, Own(0), "kicks of vCPUs, abort; own threads only"),
    line(Sysno::prctl, ALL, Is(0, &[libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64]), "threads' names"),
    line(Sysno::restart_syscall, ALL, Always, "a wait goes on after a stop"),
    // Memory.
    line(Sysno::mmap, ALL, NOT_EXECUTABLE, "memory, never executable"),
    line(Sysno::mprotect, ALL, NOT_EXECUTABLE, "guard pages; the allocator's arenas"),
    line(Sysno::munmap, ALL, Always, "memory goes back"),
    line(Sysno::mremap, ALL, Always, "large buffers grow"),
    line(Sysno::madvise, ALL, Always, "memory goes back"),
    line(Sysno::brk, ALL, Always, "the allocator"),
    line(Sysno::membarrier, ALL, Always, "a store log is switched on"),
    // Time and chance.
    line(Sysno::clock_gettime, ALL, Always, "where the vDSO cannot tell"),
    line(Sysno::clock_nanosleep, ALL, Always, "sleep"),
    line(Sysno::nanosleep, ALL, Always, "sleep"),
    line(Sysno::getrandom, ALL, Always, "hash maps; the entropy device"),
    // Descriptors that are there.
    line(Sysno::read, ALL, Always, "event objects, sockets, files"),
    line(Sysno::write, ALL, Always, "event objects, standard error"),
    line(Sysno::writev, ALL, Always, "standard error"),
    line(Sysno::close, ALL, Always, "descriptors go"),
    line(Sysno::sendmsg, ALL, Always, "lines and events for the monitor"),
    line(Sysno::poll, ALL, Always, "room in the monitor's socket"),
    line(Sysno::ppoll, ALL, Always, "room in the monitor's socket"),
    line(Sysno::eventfd2, MAIN.union(VCPU).union(GDB), Always, "event objects"),
    line(Sysno::epoll_create1, MAIN.union(VCPU), Always, "a queue's wait"),
    line(Sysno::epoll_ctl, MAIN.union(VCPU).union(WORKER).union(NET).union(CONSOLE).union(TIMERS), Always, "doorbells come and go"),
    line(Sysno::epoll_wait, WORKER.union(NET).union(CONSOLE).union(TIMERS), Always, "doorbells"),
    line(Sysno::epoll_pwait, WORKER.union(NET).union(CONSOLE).union(TIMERS), Always, "doorbells"),
    line(Sysno::fcntl, MAIN.union(VCPU).union(CONTROL).union(GDB).union(WORKER).union(CONSOLE), Is(1, DESCRIPTOR_FLAGS), "descriptors are doubled, made not to block"),
    // Sockets that are there: none can be made or connected.
    line(Sysno::recvmsg, MAIN.union(CONTROL), Always, "requests of the monitor"),
    line(Sysno::recvfrom, CONSOLE.union(DEVICE).union(NET).union(GDB).union(CONTROL), Always, "input"),
    line(Sysno::sendto, CONSOLE.union(DEVICE).union(NET).union(GDB).union(CONTROL), Always, "output"),
    line(Sysno::shutdown, DEVICE.union(GDB).union(CONTROL).union(CONSOLE), Always, "one direction ends"),
    line(Sysno::getsockopt, SETUP.union(GDB).union(DEVICE), Always, "which kind of socket the debugger's is, or one for the guest"),
    line(Sysno::getsockname, SETUP, Always, "which kind of socket the debugger's is"),
    line(Sysno::ioctl, MAIN.union(GDB).union(CONTROL).union(DEVICE), Is(1, &[FIONBIO]), "sockets are made not to block"),
    line(Sysno::ioctl, NET, Is(1, &[TUNSETOFFLOAD]), "what a tap may leave to the guest"),
    line(Sysno::ioctl, MAIN.union(CONTROL), Is(1, &[TUNSETCARRIER]), "a tap follows its guest's cable"),
    line(Sysno::accept4, GDB, Always, "a debugger connects"),
    line(Sysno::setsockopt, GDB, Always, "its packets are sent at once"),
    // Files that are there.
    line(Sysno::lseek, MAIN.union(DISK).union(SHARE), Always, "sizes; kernel, initrd, saved machines; holes"),
    line(Sysno::fstat, MAIN.union(DISK).union(SHARE), Always, "sizes"),
    line(Sysno::newfstatat, MAIN.union(DISK), Masked(3, EMPTY_PATH, &[EMPTY_PATH]), "sizes, by descriptor"),
    line(Sysno::statx, MAIN.union(DISK), Masked(2, EMPTY_PATH, &[EMPTY_PATH]), "sizes, by descriptor"),
    line(Sysno::readv, MAIN.union(WORKER), Always, "data to the guest"),
    line(Sysno::pread64, MAIN.union(WORKER), Always, "kernels on disks; data to the guest"),
    line(Sysno::preadv, MAIN.union(WORKER), Always, "data to the guest"),
    line(Sysno::preadv2, MAIN.union(WORKER), Always, "data to the guest"),
    line(Sysno::pwrite64, MAIN.union(WORKER), Always, "data from the guest; an image's tables"),
    line(Sysno::pwritev, MAIN.union(WORKER), Always, "data from the guest"),
    line(Sysno::pwritev2, MAIN.union(WORKER), Always, "data from the guest"),
    line(Sysno::fsync, MAIN.union(WORKER), Always, "flush"),
    line(Sysno::fdatasync, MAIN.union(WORKER), Always, "flush"),
    line(Sysno::fallocate, MAIN.union(WORKER), Always, "discard and write zeroes"),
    line(Sysno::ftruncate, MAIN.union(WORKER), Always, "code memory; an image grows"),
    line(Sysno::ioctl, MAIN.union(DISK), Is(1, BLOCK), "block devices: sizes, discards"),
    // Threads.
    line(Sysno::clone, SETUP.union(MAKER), Is(0, &[THREAD]), "threads, no processes"),
    line(Sysno::prctl, SETUP.union(MAKER), Is(0, &[libc::PR_SET_NO_NEW_PRIVS as u64]), "before a filter is put on"),
    line(Sysno::seccomp, SETUP.union(MAKER), Always, "a filter is put on"),
    // Single purposes.
    line(Sysno::memfd_create, SETUP, Always, "memory for translated code"),
    line(Sysno::mmap, SETUP, Is(2, &[READ_EXECUTE]), "translated code's executable view; none once the machine is made"),
    line(Sysno::sysinfo, SETUP, Always, "whether the host has the memory asked for"),
    line(Sysno::dup, SETUP, Always, "descriptors are doubled"),
    line(Sysno::rt_sigtimedwait, COUNTS, Always, "waits for SIGUSR1"),
];

/// Where `/dev/kvm` was handed over.
#[rustfmt::skip]
pub const KVM: &[Line] = &[
    line(Sysno::ioctl, SETUP, Masked(1, kvm::TYPE_MASK, kvm::ALL), "a machine is made"),
    line(Sysno::ioctl, VCPU.union(OWNER), Masked(1, kvm::REQUEST_MASK, kvm::VCPU), "a vCPU runs, is saved"),
    line(Sysno::ioctl, VCPU.union(OWNER), Masked(1, kvm::REQUEST_MASK, kvm::DEVICES), "routes and doorbells"),
    line(Sysno::ioctl, VCPU.union(OWNER), Masked(1, kvm::REQUEST_MASK, kvm::MACHINE), "clock, chips, dirty pages"),
    line(Sysno::ioctl, ALL, Masked(1, kvm::REQUEST_MASK, kvm::INTERRUPTS), "interrupts"),
];

/// Where a directory of the host is shared: beneath it alone, says landlock.
#[rustfmt::skip]
pub const SHARES: &[Line] = &[
    line(Sysno::openat2, SHARE, Always, "opens beneath the directory"),
    line(Sysno::statx, SHARE, Always, "attributes"),
    line(Sysno::fstatfs, SHARE, Always, "the file system's size"),
    line(Sysno::getdents64, SHARE, Always, "lists"),
    line(Sysno::readlinkat, SHARE, Always, "links"),
    line(Sysno::mkdirat, SHARE, Always, "makes directories"),
    line(Sysno::mknodat, SHARE, Always, "makes files"),
    line(Sysno::linkat, SHARE, Always, "makes links"),
    line(Sysno::symlinkat, SHARE, Always, "makes links"),
    line(Sysno::unlinkat, SHARE, Always, "deletes"),
    line(Sysno::renameat2, SHARE, Always, "renames"),
    line(Sysno::fchmod, SHARE, Always, "permissions"),
    line(Sysno::fchmodat2, SHARE, Always, "permissions"),
    line(Sysno::fchownat, SHARE, Always, "owners"),
    line(Sysno::utimensat, SHARE, Always, "times"),
    line(Sysno::fgetxattr, SHARE, Always, "extended attributes"),
    line(Sysno::fsetxattr, SHARE, Always, "extended attributes"),
    line(Sysno::flistxattr, SHARE, Always, "extended attributes"),
    line(Sysno::fremovexattr, SHARE, Always, "extended attributes"),
    line(Sysno::copy_file_range, SHARE, Always, "copies"),
    line(Sysno::syncfs, SHARE, Always, "flush"),
    line(Sysno::umask, SHARE, Always, "modes are the guest's"),
];
