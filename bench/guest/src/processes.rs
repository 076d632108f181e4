//! System calls, processes and how they talk.

#![allow(unsafe_code)]

use std::env;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::io::{read, retry_on_intr, write};
use rustix::pipe::pipe as make_pipe;
use rustix::process::{Pid, WaitOptions, getppid, waitpid};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::lines::Work;

/// The argument with which this program ends at once.
pub const CHILD: &str = "--child";

/// System calls in a call of [`system_calls`].
pub const CALLS: u64 = 16 * 1024;
/// Processes in a call.
pub const CHILDREN: u64 = 12;
/// Bytes that go to another and come back.
pub const ROUND_TRIPS: u64 = 256;
/// Signals in a call of [`signals`].
pub const SIGNALS: u64 = 2048;

/// Keeps this process, and its children, on the processor where it is: a
/// guest with one processor has no choice, so neither has anybody else.
pub fn stay_on_one_processor() -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(sched_getcpu());
    Ok(sched_setaffinity(None, &set)?)
}

/// getppid(), which the kernel has nothing to do for.
pub fn system_calls(_: &Path) -> io::Result<Work> {
    Ok(Box::new(|| {
        let mut same = 0;
        let parent = getppid();
        for _ in 0..CALLS {
            same += u64::from(getppid() == parent);
        }
        Ok(same)
    }))
}

/// A process that ends at once.
pub fn fork_and_exit(_: &Path) -> io::Result<Work> {
    Ok(Box::new(|| {
        let mut sum = 0;
        for _ in 0..CHILDREN {
            let child = fork(|| 7)?;
            sum += wait_for(child)?;
        }
        Ok(sum)
    }))
}

/// A process that becomes this program anew, which then ends at once.
pub fn fork_and_exec(_: &Path) -> io::Result<Work> {
    let program = CString::new(env::current_exe()?.as_os_str().as_bytes())?;
    let argument = CString::new(CHILD)?;
    Ok(Box::new(move || {
        let arguments = [program.as_ptr(), argument.as_ptr(), ptr::null()];
        let environment = [ptr::null()];
        let mut sum = 0;
        for _ in 0..CHILDREN {
            let child = fork(|| {
                // SAFETY: a path, and lists that end with null, all of which
                // live until the call ends, if it does.
                unsafe {
                    libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                }
                // There is no such program.
                100
            })?;
            match wait_for(child)? {
                0 => sum += 1,
                status => {
                    let text = format!("{program:?} ended with status {status}");
                    return Err(io::Error::other(text));
                }
            }
        }
        Ok(sum)
    }))
}

/// A byte to another process and back: two system calls of each and two
/// changes of the address space, with one processor.
pub fn pipe(_: &Path) -> io::Result<Work> {
    let (read_there, to) = make_pipe()?;
    let (from, write_there) = make_pipe()?;
    let child = fork(|| {
        // Its copy of our end would keep its own from ever closing.
        // SAFETY: the child does not use it, and ends without dropping it.
        unsafe { libc::close(to.as_raw_fd()) };
        i32::from(echo(&read_there, &write_there).is_err())
    })?;
    let partner = Partner {
        to: Some(to),
        child,
    };
    Ok(Box::new(move || match &partner.to {
        Some(to) => round_trips(&from, to),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }))
}

/// The same with a thread of this process: no change of the address space.
pub fn pipe_of_threads(_: &Path) -> io::Result<Work> {
    let (read_there, to) = make_pipe()?;
    let (from, write_there) = make_pipe()?;
    // It ends when the pipe to it closes, with the work.
    thread::spawn(move || echo(&read_there, &write_there));
    Ok(Box::new(move || round_trips(&from, &to)))
}

/// A process that echoes until the pipe to it closes.
struct Partner {
    to: Option<OwnedFd>,
    child: Pid,
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.to = None;
        // Nobody is left to tell of a failure.
        let _ = wait_for(self.child);
    }
}

fn round_trips(from: &OwnedFd, to: &OwnedFd) -> io::Result<u64> {
    let mut sum = 0;
    for round in 0..ROUND_TRIPS {
        let mut byte = [round as u8];
        write(to, &byte)?;
        if retry_on_intr(|| read(from, &mut byte))? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sum += u64::from(byte[0]);
    }
    Ok(sum)
}

/// Sends back what comes, until nothing comes any more.
fn echo(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut byte = [0];
    while retry_on_intr(|| read(from, &mut byte))? == 1 {
        write(to, &byte)?;
    }
    Ok(())
}

static RECEIVED: AtomicU64 = AtomicU64::new(0);

/// A signal to this thread, its handler, and the return from it.
pub fn signals(_: &Path) -> io::Result<Work> {
    extern "C" fn handler(_: libc::c_int) {
        RECEIVED.fetch_add(1, Ordering::Relaxed);
    }
    let handler: extern "C" fn(libc::c_int) = handler;
    // SAFETY: all zeroes is a valid sigaction; the handler does nothing that
    // a handler must not do.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Box::new(|| {
        let before = RECEIVED.load(Ordering::Relaxed);
        for _ in 0..SIGNALS {
            // SAFETY: there is a handler; it runs before raise() returns.
            unsafe { libc::raise(libc::SIGUSR1) };
        }
        Ok(RECEIVED.load(Ordering::Relaxed) - before)
    }))
}

/// A child that does this and ends with what it gives as its status.
fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the child uses system calls and memory that it has already,
    // and ends by _exit().
    let pid = unsafe { libc::fork() };
    match pid {
        0 => {
            let status = child();
            // SAFETY: ends the process.
            unsafe { libc::_exit(status) }
        }
        _ => Pid::from_raw(pid.max(0)).ok_or_else(io::Error::last_os_error),
    }
}

/// A child's status.
fn wait_for(child: Pid) -> io::Result<u64> {
    let ended = retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()))?;
    let status = ended.and_then(|(_, status)| status.exit_status());
    match status {
        Some(status) => Ok(status as u64),
        None => Err(io::Error::other("a child was killed")),
    }
}
