//! Numbers of system calls by name.

use syscalls::{x86, x86_64};

/// A table of an architecture, sorted by name when croft is compiled.
struct Table<const N: usize>([(&'static str, u32); N]);

/// Behind the last of a table that has gaps in its numbers.
const NONE: (&str, u32) = ("", u32::MAX);

const COUNT_64: usize = x86_64::Sysno::count();
const COUNT_32: usize = x86::Sysno::count();

static X86_64: Table<COUNT_64> = Table(sorted({
    let mut all = [NONE; COUNT_64];
    let (mut id, mut count) = (0, 0);
    while id < x86_64::Sysno::table_size() {
        if let Some(call) = x86_64::Sysno::new(id) {
            all[count] = (call.name(), id as u32);
            count += 1;
        }
        id += 1;
    }
    all
}));

static X86: Table<COUNT_32> = Table(sorted({
    let mut all = [NONE; COUNT_32];
    let (mut id, mut count) = (0, 0);
    while id < x86::Sysno::table_size() {
        if let Some(call) = x86::Sysno::new(id) {
            all[count] = (call.name(), id as u32);
            count += 1;
        }
        id += 1;
    }
    all
}));

const fn before(one: &str, two: &str) -> bool {
    let (one, two) = (one.as_bytes(), two.as_bytes());
    let mut at = 0;
    while at < one.len() && at < two.len() {
        if one[at] != two[at] {
            return one[at] < two[at];
        }
        at += 1;
    }
    one.len() < two.len()
}

/// Insertion, shell by shell: few steps, for the compiler's patience.
const fn sorted<const N: usize>(mut all: [(&'static str, u32); N]) -> [(&'static str, u32); N] {
    let gaps = [132, 57, 23, 10, 4, 1];
    let mut shell = 0;
    while shell < gaps.len() {
        let gap = gaps[shell];
        let mut from = gap;
        while from < N {
            let one = all[from];
            let mut to = from;
            while to >= gap && before(one.0, all[to - gap].0) {
                all[to] = all[to - gap];
                to -= gap;
            }
            all[to] = one;
            from += 1;
        }
        shell += 1;
    }
    all
}

fn find(table: &[(&str, u32)], name: &str) -> Option<u32> {
    let at = table.binary_search_by(|(one, _)| (*one).cmp(name)).ok()?;
    table.get(at).map(|(_, number)| *number)
}

/// The number on x86_64.
pub fn x86_64(name: &str) -> Option<u32> {
    find(&X86_64.0, name)
}

/// The number on i386.
pub fn x86(name: &str) -> Option<u32> {
    find(&X86.0, name)
}

/// The bit of x32's numbers (`__X32_SYSCALL_BIT`).
pub const X32: u32 = 0x4000_0000;

/// Calls with a number of their own on x32 (Linux
/// `arch/x86/entry/syscalls/syscall_64.tbl`, from 512 on, in this order).
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];
/// The number of the first.
const X32_FIRST: u32 = 512;

/// Calls that x32 has not (marked `64` there, with no other entry).
const NOT_X32: [&str; 11] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
];

/// The number on x32, with its bit.
pub fn x32(name: &str) -> Option<u32> {
    if NOT_X32.contains(&name) {
        return None;
    }
    let own = (X32_FIRST..).zip(X32_OWN).find(|(_, one)| *one == name);
    let number = own.map(|(number, _)| number).or_else(|| x86_64(name))?;
    Some(X32 | number)
}

/// Calls of i386 that are made through another one too, by its first
/// argument: the number of that and the argument (`linux/net.h`,
/// `linux/ipc.h`).
pub fn multiplexed(name: &str) -> Option<(u32, u64)> {
    const SOCKETCALL: u32 = x86::Sysno::socketcall as u32;
    const IPC: u32 = x86::Sysno::ipc as u32;
    Some(match name {
        "socket" => (SOCKETCALL, 1),
        "bind" => (SOCKETCALL, 2),
        "connect" => (SOCKETCALL, 3),
        "listen" => (SOCKETCALL, 4),
        "accept" => (SOCKETCALL, 5),
        "getsockname" => (SOCKETCALL, 6),
        "getpeername" => (SOCKETCALL, 7),
        "socketpair" => (SOCKETCALL, 8),
        "send" => (SOCKETCALL, 9),
        "recv" => (SOCKETCALL, 10),
        "sendto" => (SOCKETCALL, 11),
        "recvfrom" => (SOCKETCALL, 12),
        "shutdown" => (SOCKETCALL, 13),
        "setsockopt" => (SOCKETCALL, 14),
        "getsockopt" => (SOCKETCALL, 15),
        "sendmsg" => (SOCKETCALL, 16),
        "recvmsg" => (SOCKETCALL, 17),
        "accept4" => (SOCKETCALL, 18),
        "recvmmsg" => (SOCKETCALL, 19),
        "sendmmsg" => (SOCKETCALL, 20),
        "semop" => (IPC, 1),
        "semget" => (IPC, 2),
        "semctl" => (IPC, 3),
        "semtimedop" => (IPC, 4),
        "msgsnd" => (IPC, 11),
        "msgrcv" => (IPC, 12),
        "msgget" => (IPC, 13),
        "msgctl" => (IPC, 14),
        "shmat" => (IPC, 21),
        "shmdt" => (IPC, 22),
        "shmget" => (IPC, 23),
        "shmctl" => (IPC, 24),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_whole() {
        assert!(X86_64.0.is_sorted() && X86.0.is_sorted());
        for call in x86_64::Sysno::iter() {
            assert_eq!(x86_64(call.name()), Some(call.id() as u32));
        }
        assert_eq!(x86("socketcall"), Some(102));
        assert_eq!(x86("nothing"), None);
        assert_eq!(x32("read"), Some(X32));
        assert_eq!(x32("ioctl"), Some(X32 | 514));
        assert_eq!(x32("pwritev2"), Some(X32 | 547));
        assert_eq!(x32("uselib"), None);
        // Those with their own number there have another on x86_64.
        assert!(X32_OWN.iter().all(|name| x86_64(name).is_some()));
        assert!(NOT_X32.iter().all(|name| x86_64(name).is_some()));
    }
}
