//! Other network namespaces than this process's.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::link::Netlink;

/// Stack of the thread in bytes; it does little.
const STACK: usize = 256 << 10;

/// Does something in a network namespace: in a thread that moves there and
/// ends there, so that this one never is where it does not belong.
pub(crate) fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    act: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let visit = || {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
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

/// Brings the loopback interface of a network namespace up, which has its
/// addresses from then on. A container without any network has it too.
pub fn bring_up_loopback(namespace: BorrowedFd<'_>) -> io::Result<()> {
    inside(namespace, || {
        let mut netlink = Netlink::open()?;
        let lo = netlink.link("lo")?.ok_or(io::ErrorKind::NotFound)?;
        netlink.set_up(lo.index, true)
    })?
}
