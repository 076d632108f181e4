//! Other network namespaces than this process's.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::thread;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::NetworkError;
use crate::link::Netlink;

/// Stack of the thread in bytes; it does little.
const STACK: usize = 256 << 10;
/// Longest complaint of a process in bytes.
const COMPLAINT: u64 = 4096;

/// A container's network, and the users that it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Home<'a> {
    /// Its network namespace.
    pub network: BorrowedFd<'a>,
    /// Its user namespace, if it has one of its own.
    pub user: Option<BorrowedFd<'a>>,
}

impl Home<'_> {
    /// Does something in it, whose answer is yes or no.
    ///
    /// Root does so in a thread that moves there and ends there, so that this
    /// one never is where it does not belong. Somebody else has no rights there
    /// but in the container's user namespace, which only a process of one
    /// thread can enter: a child, made by this process, which must have one
    /// thread itself.
    pub(crate) fn inside(
        &self,
        act: impl FnOnce() -> Result<bool, NetworkError> + Send,
    ) -> Result<bool, NetworkError> {
        match self.user.filter(|_| !geteuid().is_root()) {
            None => in_thread(self.network, act).map_err(NetworkError::Namespace)?,
            Some(user) => in_process(user, self.network, act).map_err(NetworkError::Namespace)?,
        }
    }
}

fn in_thread<T: Send>(network: BorrowedFd<'_>, act: impl FnOnce() -> T + Send) -> io::Result<T> {
    let visit = || {
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
        Ok(act())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, visit)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread has failed")))
    })
}

fn in_process(
    user: BorrowedFd<'_>,
    network: BorrowedFd<'_>,
    act: impl FnOnce() -> Result<bool, NetworkError>,
) -> io::Result<Result<bool, NetworkError>> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: this process has one thread (see `Home::inside`), so the child
    // has all of what it had, in a state that can be used.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(ours);
            let done = || {
                move_into_link_name_space(user, Some(LinkNameSpaceType::User))?;
                move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
                io::Result::Ok(act())
            };
            // A panic must not run what is the parent's.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(done));
            let answer = match done {
                Ok(Ok(Ok(true))) => "+".to_owned(),
                Ok(Ok(Ok(false))) => "-".to_owned(),
                Ok(Ok(Err(error))) => error.to_string(),
                Ok(Err(error)) => format!("it cannot be entered: {error}"),
                Err(_) => "a fault of Croft's own".to_owned(),
            };
            // The parent sees what is missing.
            let _ = File::from(theirs).write_all(answer.as_bytes());
            // SAFETY: it does not return, and nothing of the parent's is run.
            unsafe { nix::libc::_exit(0) }
        }
    };
    drop(theirs);
    let mut answer = Vec::new();
    let read = File::from(ours).take(COMPLAINT).read_to_end(&mut answer);
    // It has ended, or is about to.
    let _ = waitpid(child, None);
    read?;
    Ok(match answer.as_slice() {
        b"+" => Ok(true),
        b"-" => Ok(false),
        b"" => Err(NetworkError::Inside(
            "whoever was sent there has ended".to_owned(),
        )),
        said => Err(NetworkError::Inside(
            String::from_utf8_lossy(said).into_owned(),
        )),
    })
}

/// Brings the loopback interface of a container up, which has its addresses
/// from then on. A container without any network has it too.
pub fn bring_up_loopback(home: Home<'_>) -> Result<(), NetworkError> {
    let done = home.inside(|| {
        let up = || {
            let mut netlink = Netlink::open()?;
            let lo = netlink.link("lo")?.ok_or(io::ErrorKind::NotFound)?;
            netlink.set_up(lo.index, true)
        };
        up().map_err(NetworkError::Interfaces).map(|()| true)
    });
    done.map(drop)
}
