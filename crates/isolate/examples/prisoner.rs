//! A process in the jail whose threads try what they are told to: for tests.
//!
//! `prisoner ROLE CALL`, started by a [`croft_isolate::Launch`], makes the
//! call on a thread of that role and prints what it gave; the jail's trap
//! ends it otherwise. Role `free` is no jail at all.

#![allow(unsafe_code)]

use std::env;
use std::io::{Read, stdin};
use std::process::exit;
use std::ptr::null_mut;

use croft_isolate::launch::Given;
use croft_isolate::{Role, Wants, assume, confine, landlock, seal, spawn};

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let [role, call, ..] = words.as_slice() else {
        eprintln!("usage: prisoner ROLE CALL");
        exit(2);
    };
    if role == "free" {
        return attempt(call);
    }
    let role = Role::ALL
        .into_iter()
        .find(|one| one.word() == role)
        .expect("a role");
    let call = call.clone();
    let parts = confine(&Given::parse(env::args_os().skip(1)));
    let landlock = landlock::restrict(&[]);
    seal(Wants::default()).expect("filters");
    match role {
        Role::Setup => attempt(&call),
        Role::Owner => {
            assume(Role::Owner);
            attempt(&call);
        }
        other => spawn(other, format!("a-{}", other.word()), move || attempt(&call))
            .expect("a thread")
            .join()
            .expect("an end"),
    }
    drop((parts, landlock));
}

/// Prints what a call gave, as the kernel says it.
fn attempt(call: &str) {
    let result = match call {
        "nothing" => 0,
        "wait" => {
            println!("ready");
            let _ = stdin().read(&mut [0]);
            0
        }
        "allocate" => allocate(),
        "thread" => spawn(Role::Timers, "another", || {})
            .expect("a thread")
            .join()
            .map_or(-1, |()| 0),
        "panic" => {
            let caught = std::panic::catch_unwind(|| panic!("as it was told to"));
            i64::from(caught.is_err())
        }
        other => refused(other),
    };
    println!("gave {result}");
}

/// Makes the allocator shrink what it has: it would like to read a file then.
fn allocate() -> i64 {
    for _ in 0..4 {
        let blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 100 << 10]).collect();
        drop(blocks);
    }
    0
}

fn refused(call: &str) -> i64 {
    use libc::*;
    let path = c"/etc/passwd".as_ptr();
    const PAGE: usize = 4096;
    let anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
    // SAFETY: nothing here succeeds in a way that matters: descriptors and
    // memory that are made are left alone, and a child ends at once.
    let result = unsafe {
        match call {
            "open" => syscall(SYS_open, path, O_RDONLY),
            "openat" => syscall(SYS_openat, AT_FDCWD, path, O_RDONLY),
            "proc" => syscall(SYS_openat, AT_FDCWD, c"/proc/self/maps".as_ptr(), O_RDONLY),
            "socket" => syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0),
            "connect" => syscall(SYS_connect, 0, path, 16),
            "ptrace" => syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0),
            "execve" => syscall(
                SYS_execve,
                c"/bin/true".as_ptr(),
                null_mut::<u8>(),
                null_mut::<u8>(),
            ),
            "mmap" => mmap(
                null_mut(),
                PAGE,
                PROT_READ | PROT_WRITE | PROT_EXEC,
                anonymous,
                -1,
                0,
            ) as i64,
            "mmap-read" => mmap(null_mut(), PAGE, PROT_READ | PROT_EXEC, anonymous, -1, 0) as i64,
            "mprotect" => {
                let page = mmap(null_mut(), PAGE, PROT_READ | PROT_WRITE, anonymous, -1, 0);
                i64::from(mprotect(page, PAGE, PROT_READ | PROT_EXEC))
            }
            "clone" => match syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) {
                0 => _exit(0),
                pid => pid,
            },
            "fork" => match syscall(SYS_fork) {
                0 => _exit(0),
                pid => pid,
            },
            "clone3" => syscall(SYS_clone3, null_mut::<u8>(), 0),
            "kill" => syscall(SYS_kill, -1, SIGTERM),
            "tgkill" => syscall(SYS_tgkill, getpid() + 1, getpid() + 1, SIGTERM),
            "unshare" => syscall(SYS_unshare, CLONE_NEWUSER),
            "io_uring_setup" => syscall(SYS_io_uring_setup, 1, null_mut::<u8>()),
            "prctl" => syscall(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0),
            "ioctl" => syscall(SYS_ioctl, 0, TIOCSTI, path),
            other => panic!("no call {other}"),
        }
    };
    if result == -1 {
        -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        result
    }
}
