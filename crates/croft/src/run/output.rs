//! From the guest's console to standard output.

use std::io::{self, PipeReader};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::net::{RecvFlags, recv};
use rustix::stdio::stdout;

/// Bytes moved at once.
const PIECE: usize = 16 * 1024;

/// A thread that copies. While standard output takes nothing it reads
/// nothing: the guest waits, and nothing is stored without bound.
#[derive(Debug)]
pub struct Output {
    thread: JoinHandle<io::Result<()>>,
    /// At its end of file the thread has ended.
    pub ended: PipeReader,
}

impl Output {
    /// Starts it, to standard output.
    pub fn start(console: OwnedFd) -> io::Result<Self> {
        Self::start_to(console, stdout())
    }

    /// Starts it, to another descriptor.
    pub fn start_to(console: OwnedFd, to: BorrowedFd<'static>) -> io::Result<Self> {
        let (ended, end) = io::pipe()?;
        let thread = thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let result = copy(&console, to);
                drop(end);
                result
            })?;
        Ok(Output { thread, ended })
    }

    /// Waits for it; an error is standard output's.
    pub fn join(self) -> io::Result<()> {
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the output thread failed")))
    }
}

fn copy(console: &OwnedFd, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = [0; PIECE];
    loop {
        let count = match recv(console, &mut buffer, RecvFlags::empty()) {
            Ok((0, _)) => return Ok(()),
            Ok((count, _)) => count,
            Err(rustix::io::Errno::INTR) => continue,
            // The monitor is gone; the session says so.
            Err(_) => return Ok(()),
        };
        let mut rest = buffer.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => wait_for_room(to)?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// It may have been made non-blocking by somebody else.
fn wait_for_room(to: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    match poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
