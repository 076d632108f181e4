//! A password that is typed at the terminal, unseen.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// What ends or stops whoever is asked: the terminal is to be as it was then.
const ENDS: [Signal; 5] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
];

/// Has `question` asked and a line read while the terminal on standard input
/// shows nothing of what is typed. A signal that ends this process, or stops
/// it, does so once the terminal is as it was before.
pub fn unseen<T>(question: impl Fn(), read: impl FnOnce() -> T) -> io::Result<T> {
    let ends = SigSet::from_iter(ENDS);
    let others = ends.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let answer = wait(&ends, &others, question).map(|silent| {
        let answer = read();
        drop(silent);
        answer
    });
    others.thread_set_mask()?;
    answer
}

/// Until a line is there.
fn wait(ends: &SigSet, others: &SigSet, question: impl Fn()) -> io::Result<Silent> {
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(ends, flags)?;
    loop {
        let silent = Silent::new()?;
        question();
        let signal = loop {
            let mut waits = [
                PollFd::new(&signals, PollFlags::IN),
                PollFd::from_borrowed_fd(stdin(), PollFlags::IN),
            ];
            match poll(&mut waits, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [_, line] = &waits;
            let line = !line.revents().is_empty();
            if let Ok(Some(info)) = signals.read_signal() {
                break i32::try_from(info.ssi_signo).unwrap_or_default();
            }
            if line {
                return Ok(silent);
            }
        };
        drop(silent);
        // Here it ends, or goes on when somebody continues it.
        raise(Signal::try_from(signal)?)?;
        others.thread_set_mask()?;
        ends.thread_block()?;
    }
}

/// A terminal that shows nothing but that a line has ended. As it was before
/// when this is dropped.
struct Silent(Termios);

impl Silent {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(stdin(), OptionalActions::Flush, &silent)?;
        Ok(Silent(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}
