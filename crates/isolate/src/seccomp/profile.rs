//! The profile of a container that brings none.
//!
//! A list of what is allowed; everything else is refused with `EPERM`, and
//! what is newer than the list with `ENOSYS`. Each group has its reason. Not
//! in any group, whatever the container's capabilities:
//!
//! | calls | why not |
//! |---|---|
//! | `io_uring_*` | what a ring does no filter sees, and it was the way out of many containers |
//! | `userfaultfd` | holds the kernel in the middle of a copy: what races are won with |
//! | `keyctl`, `add_key`, `request_key` | keyrings belong to a user, not to a container |
//! | `kexec_*`, `swapon`, `swapoff`, `nfsservctl`, `_sysctl` | the host's |
//! | `move_pages`, `migrate_pages` | where memory of others is |
//! | `uselib`, `ustat`, `sysfs`, `vm86*`, `bdflush` | nobody's for decades |

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

/// Calls for anybody: files, memory, processes, sockets, time, of oneself.
#[rustfmt::skip]
const ALWAYS: &[&[&str]] = &[
    // Files by name.
    &[
        "access", "chdir", "chmod", "chown", "chown32", "creat", "faccessat", "faccessat2",
        "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat",
        "file_getattr", "file_setattr", "futimesat", "getcwd", "inotify_add_watch",
        "inotify_init", "inotify_init1", "inotify_rm_watch", "lchown", "lchown32", "link",
        "linkat", "lstat", "lstat64", "mkdir", "mkdirat", "mknod", "mknodat",
        "name_to_handle_at", "newfstatat", "fstatat64", "open", "openat", "openat2", "readlink",
        "readlinkat", "rename", "renameat", "renameat2", "rmdir", "stat", "stat64", "statfs",
        "statfs64", "statx", "symlink", "symlinkat", "truncate", "truncate64", "umask",
        "unlink", "unlinkat", "utime", "utimensat", "utimensat_time64", "utimes",
    ],
    // Extended attributes.
    &[
        "fgetxattr", "flistxattr", "fremovexattr", "fsetxattr", "getxattr", "getxattrat",
        "lgetxattr", "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lsetxattr",
        "removexattr", "removexattrat", "setxattr", "setxattrat",
    ],
    // What is open.
    &[
        "_llseek", "cachestat", "close", "close_range", "copy_file_range", "dup", "dup2",
        "dup3", "fadvise64", "fadvise64_64", "fallocate", "fanotify_mark", "fcntl", "fcntl64",
        "fdatasync", "flock", "fstat", "fstat64", "fstatfs", "fstatfs64", "fsync", "ftruncate",
        "ftruncate64", "getdents", "getdents64", "ioctl", "lseek", "pipe", "pipe2", "pread64",
        "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readdir",
        "readv", "sendfile", "sendfile64", "splice", "sync", "sync_file_range", "syncfs", "tee",
        "vmsplice", "write", "writev",
    ],
    // Waiting for it.
    &[
        "_newselect", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old",
        "epoll_pwait", "epoll_pwait2", "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2",
        "poll", "ppoll", "ppoll_time64", "pselect6", "pselect6_time64", "select", "signalfd",
        "signalfd4",
    ],
    // Asynchronous input and output: one call for each.
    &[
        "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64",
        "io_setup", "io_submit",
    ],
    // Sockets, but for making them.
    &[
        "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt",
        "listen", "recv", "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "send",
        "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socketcall", "socketpair",
    ],
    // Memory.
    &[
        "brk", "get_thread_area", "madvise", "map_shadow_stack", "membarrier", "memfd_create",
        "memfd_secret", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mmap2", "mprotect",
        "mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc",
        "pkey_free", "pkey_mprotect", "process_mrelease", "remap_file_pages", "set_thread_area",
    ],
    // Threads and locks.
    &[
        "arch_prctl", "futex", "futex_requeue", "futex_time64", "futex_wait", "futex_waitv",
        "futex_wake", "get_robust_list", "getcpu", "modify_ldt", "rseq", "set_robust_list",
        "set_tid_address",
    ],
    // Processes of one's own. Tracing reaches no further than signals do
    // since Linux 4.8, when it stopped going around filters.
    &[
        "execve", "execveat", "exit", "exit_group", "fork", "getpgid", "getpgrp", "getpid",
        "getppid", "getsid", "gettid", "kill", "pidfd_open", "pidfd_send_signal", "prctl",
        "process_vm_readv", "process_vm_writev", "ptrace", "rt_sigqueueinfo",
        "rt_tgsigqueueinfo", "setpgid", "setsid", "tgkill", "tkill", "vfork", "wait4", "waitid",
        "waitpid",
    ],
    // Signals.
    &[
        "pause", "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
        "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64",
        "sigaction", "sigaltstack", "signal", "sigpending", "sigprocmask", "sigreturn",
        "sigsuspend",
    ],
    // Who one is; the kernel asks for capabilities.
    &[
        "capget", "capset", "getegid", "getegid32", "geteuid", "geteuid32", "getgid",
        "getgid32", "getgroups", "getgroups32", "getresgid", "getresgid32", "getresuid",
        "getresuid32", "getuid", "getuid32", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32",
        "setgid", "setgid32", "setgroups", "setgroups32", "setregid", "setregid32", "setresgid",
        "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setuid",
        "setuid32",
    ],
    // How much of the processor, and limits.
    &[
        "getpriority", "getrlimit", "getrusage", "ioprio_get", "ioprio_set", "nice",
        "prlimit64", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
        "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
        "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
        "sched_setscheduler", "sched_yield", "setpriority", "setrlimit", "ugetrlimit",
    ],
    // Clocks that are read, timers. Setting a clock fails without a
    // capability; adjtimex reads without one.
    &[
        "adjtimex", "alarm", "clock_adjtime", "clock_adjtime64", "clock_getres",
        "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep",
        "clock_nanosleep_time64", "getitimer", "gettimeofday", "nanosleep", "setitimer", "time",
        "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64",
        "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime",
        "timerfd_gettime64", "timerfd_settime", "timerfd_settime64", "times",
    ],
    // System V and POSIX messages, semaphores, memory: in a namespace.
    &[
        "ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive",
        "mq_timedreceive_time64", "mq_timedsend", "mq_timedsend_time64", "mq_unlink", "msgctl",
        "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop",
        "semtimedop_time64", "shmat", "shmctl", "shmdt", "shmget",
    ],
    // What a process takes away from itself.
    &[
        "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "seccomp",
    ],
    // What the host is like.
    &[
        "getrandom", "sysinfo", "uname", "olduname", "oldolduname",
    ],
    // Of 32 bits, for decades.
    &[
        "oldfstat", "oldlstat", "oldstat",
    ],
    // What confines oneself.
    &[
        "lsm_get_self_attr", "lsm_list_modules",
    ],
];

/// Calls for who has a capability: the kernel asks for it in every one of
/// them, but asks late, after code that others have no business in.
#[rustfmt::skip]
const WITH: &[(Capability, &[&str])] = &[
    (Capability::SysAdmin, &[
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick",
        "listmount", "lookup_dcookie", "lsm_set_self_attr", "mount", "mount_setattr",
        "move_mount", "open_tree", "open_tree_attr", "perf_event_open", "pivot_root",
        "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns", "statmount",
        "syslog", "umount", "umount2", "unshare",
    ]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysNice, &[
        "get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node",
    ]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
];

/// `CLONE_NEW*` of mount, cgroup, uts, ipc, user, pid and net: who may not
/// unshare may not clone either. The time namespace's bit is a signal here.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;
/// Sockets that are not given: of the kernel's ciphers, whose code has little
/// use and a long list of faults, and those that reach the hypervisor or the
/// host from any network namespace.
const NO_SOCKETS: [i32; 2] = [libc::AF_ALG, libc::AF_VSOCK];
/// What the kernel takes of an argument that is an `int`: a profile sees 64
/// bits of it.
const INT: u64 = 0xFFFF_FFFF;
/// Personalities (personality(2)): Linux, Linux on 32 bits, with the `uname`
/// of Linux 2.6, both, and the question which one it is. Others switch off
/// what makes attacks hard.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// What a container with these capabilities may call on a host of this
/// architecture: it and, on x86_64, i386. It is not x32, which hardly a
/// kernel and no distribution has.
pub fn default_profile(capabilities: &[Capability], arch: Arch) -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_default_errno_ret(Some(libc::EPERM.cast_unsigned()));
    profile.set_architectures(Some(match arch {
        Arch::ScmpArchNative | Arch::ScmpArchX86_64 => {
            vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]
        }
        other => vec![other],
    }));
    let has = |capability: &Capability| capabilities.contains(capability);
    let mut names: Vec<String> = Vec::with_capacity(450);
    names.extend(ALWAYS.iter().copied().flatten().map(|name| (*name).into()));
    for (_, calls) in WITH.iter().filter(|(capability, _)| has(capability)) {
        names.extend(calls.iter().map(|name| (*name).to_owned()));
    }
    let mut rules = vec![allow(names, Vec::new())];
    for family in NO_SOCKETS {
        let family = condition(0, LinuxSeccompOperator::ScmpCmpMaskedEq, INT, family as u64);
        // As on a kernel without: programs look for another way then.
        rules.push(refuse("socket", vec![family], libc::EAFNOSUPPORT));
    }
    // Whatever it is: under a condition, as it would come first without one.
    let any = condition(0, LinuxSeccompOperator::ScmpCmpMaskedEq, 0, 0);
    rules.push(allow(vec!["socket".to_owned()], vec![any]));
    for personality in PERSONALITIES {
        let one = condition(0, LinuxSeccompOperator::ScmpCmpEq, personality, 0);
        rules.push(allow(vec!["personality".to_owned()], vec![one]));
    }
    if !has(&Capability::SysAdmin) {
        let none = condition(0, LinuxSeccompOperator::ScmpCmpMaskedEq, NAMESPACES, 0);
        rules.push(allow(vec!["clone".to_owned()], vec![none]));
        // Its flags are in memory: the C library then takes clone.
        rules.push(refuse("clone3", Vec::new(), libc::ENOSYS));
    }
    profile.set_syscalls(Some(rules));
    profile
}

fn allow(names: Vec<String>, conditions: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names);
    rule.set_action(LinuxSeccompAction::ScmpActAllow);
    rule.set_args(Some(conditions));
    rule
}

fn refuse(name: &str, conditions: Vec<LinuxSeccompArg>, error: i32) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(vec![name.to_owned()]);
    rule.set_action(LinuxSeccompAction::ScmpActErrno);
    rule.set_errno_ret(Some(error.cast_unsigned()));
    rule.set_args(Some(conditions));
    rule
}

fn condition(
    index: usize,
    operator: LinuxSeccompOperator,
    value: u64,
    two: u64,
) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(operator)
        .value(value)
        .value_two(two)
        .build()
        .expect("every field is set")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities;
    use crate::seccomp::interpret::Call;
    use crate::seccomp::tree::{ARCH_I386, ARCH_X86_64, KILL};
    use crate::seccomp::{compile, names};

    const ALLOW: u32 = 0x7FFF_0000;
    const DENY: u32 = 0x0005_0001;
    const NOT_THERE: u32 = 0x0005_0000 | 38;
    const NO_FAMILY: u32 = 0x0005_0000 | 97;

    fn answer(capabilities: &[Capability], name: &str, arguments: [u64; 6]) -> u32 {
        let profile = default_profile(capabilities, Arch::ScmpArchNative);
        let call = Call {
            number: names::x86_64(name).unwrap(),
            arch: ARCH_X86_64,
            arguments,
        };
        compile(&profile).unwrap().answer(&call).unwrap()
    }

    #[test]
    fn every_name_is_a_call_once() {
        let mut seen = std::collections::HashSet::new();
        for name in ALWAYS.iter().copied().flatten() {
            let known = names::x86_64(name).is_some()
                || names::x86(name).is_some()
                || names::multiplexed(name).is_some();
            assert!(known, "{name}");
            assert!(seen.insert(name), "{name} twice");
        }
        for (_, calls) in WITH {
            for name in *calls {
                assert!(names::x86_64(name).or(names::x86(name)).is_some(), "{name}");
                assert!(!seen.contains(name), "{name} is always allowed");
            }
        }
    }

    #[test]
    fn it_is_strict_without_capabilities_and_follows_them() {
        let usual = &capabilities::DEFAULT;
        let none = [0; 6];
        for name in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "reboot",
            "init_module",
            "swapon",
            "keyctl",
            "add_key",
            "io_uring_setup",
            "userfaultfd",
            "kexec_load",
            "ptrace_not",
        ] {
            if names::x86_64(name).is_some() {
                assert_eq!(answer(usual, name, none), DENY, "{name}");
            }
        }
        for name in ["read", "chroot", "openat", "mknod", "ptrace", "execve"] {
            assert_eq!(answer(usual, name, none), ALLOW, "{name}");
        }
        let admin = [Capability::SysAdmin];
        for name in ["mount", "unshare", "setns", "clone3"] {
            assert_eq!(answer(&admin, name, none), ALLOW, "{name}");
        }
        assert_eq!(answer(&admin, "chroot", none), DENY);
        assert_eq!(answer(usual, "clone3", none), NOT_THERE);
        let flags = |flags: i32| [flags as u64, 0, 0, 0, 0, 0];
        assert_eq!(answer(usual, "clone", flags(libc::SIGCHLD)), ALLOW);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET] {
            assert_eq!(answer(usual, "clone", flags(flag | libc::SIGCHLD)), DENY);
        }
        for family in [libc::AF_VSOCK, libc::AF_ALG] {
            // The kernel looks at 32 bits, whatever else is in the register.
            for above in [0, 1 << 32, u64::MAX << 32] {
                let arguments = [family as u64 | above, 0, 0, 0, 0, 0];
                assert_eq!(answer(usual, "socket", arguments), NO_FAMILY);
            }
        }
        for family in [libc::AF_INET, libc::AF_UNIX, libc::AF_RXRPC + 100] {
            assert_eq!(answer(usual, "socket", flags(family)), ALLOW);
        }
        assert_eq!(answer(usual, "personality", flags(0x004_0000)), DENY);
        assert_eq!(answer(usual, "personality", flags(0)), ALLOW);
    }

    #[test]
    fn other_architectures_and_newer_calls() {
        let profile = default_profile(&capabilities::DEFAULT, Arch::ScmpArchNative);
        let program = compile(&profile).unwrap();
        let answer = |arch, number| {
            let call = Call {
                number,
                arch,
                arguments: [0; 6],
            };
            program.answer(&call).unwrap()
        };
        assert_eq!(answer(ARCH_X86_64, names::X32), KILL);
        assert_eq!(answer(0xC000_00B7, 0), KILL);
        assert_eq!(answer(ARCH_I386, names::x86("read").unwrap()), ALLOW);
        assert_eq!(answer(ARCH_I386, names::x86("mount").unwrap()), DENY);
        assert_eq!(answer(ARCH_X86_64, 2000), NOT_THERE);
        assert!(program.len() < 600, "{}", program.len());
    }
}
