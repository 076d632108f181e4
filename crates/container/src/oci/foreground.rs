//! Waiting for a program that was started, as its caller would wait for the
//! program itself: signals go to it, its terminal is the caller's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read, write};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::stdio::{stdin, stdout};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use super::error::Error;
use super::process::send;

/// What is passed on to the program.
const PASSED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];
/// Bytes that are moved at a time.
const PIECE: usize = 16 << 10;
/// How long output may still come after the program's end, when something that
/// it left behind holds its terminal.
const REST: Duration = Duration::from_millis(100);

/// Signals are kept for us, and the caller's terminal is raw, until this is
/// dropped.
#[derive(Debug)]
pub struct Foreground {
    signals: SignalFd,
    kept: SigSet,
    relay: Option<Relay>,
}

impl Foreground {
    /// To be called when the program's process is there, which would inherit
    /// blocked signals, and before it begins.
    pub fn begin(console: Option<OwnedFd>) -> Result<Self, Error> {
        let failed = |error: nix::Error| Error::system("wait for signals", error);
        let kept: SigSet = PASSED.into_iter().collect();
        kept.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&kept, flags).map_err(failed)?;
        let relay = console.map(Relay::begin).transpose()?;
        Ok(Foreground {
            signals,
            kept,
            relay,
        })
    }

    /// Waits for the program's end, and gives the exit code that a shell would:
    /// 128 and the signal's number where one ended it.
    pub fn wait(mut self, pid: Pid, pidfd: BorrowedFd<'_>) -> Result<u8, Error> {
        let target = pidfd
            .try_clone_to_owned()
            .map_err(|error| Error::system("keep a process", error))?;
        loop {
            let (ended, asked) = self.poll(pidfd)?;
            if asked {
                self.pass_on(&target);
            }
            if ended {
                break;
            }
        }
        if let Some(relay) = &mut self.relay {
            relay.finish();
        }
        reap(pid)
    }

    /// Waits for anything, and moves bytes; says whether the program has ended
    /// and whether there are signals.
    fn poll(&mut self, pidfd: BorrowedFd<'_>) -> Result<(bool, bool), Error> {
        let mut all = vec![
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
        ];
        if let Some(relay) = &self.relay {
            relay.interests(&mut all);
        }
        match poll(&mut all, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("wait for the program", error)),
        }
        let ready: Vec<bool> = all.iter().map(|one| !one.revents().is_empty()).collect();
        let is = |index: usize| ready.get(index).copied().unwrap_or(false);
        if let Some(relay) = &mut self.relay {
            relay.move_bytes(is(2), is(3));
        }
        Ok((is(0), is(1)))
    }

    fn pass_on(&mut self, target: &OwnedFd) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = signal.ssi_signo.cast_signed();
            match &self.relay {
                Some(relay) if number == libc::SIGWINCH => relay.resize(),
                // It may have ended.
                _ => {
                    let _ = send(target, number);
                }
            }
        }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.kept.thread_unblock();
    }
}

/// Takes the exit status of a child that has ended, or ends.
pub fn reap(pid: Pid) -> Result<u8, Error> {
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let signal = status.terminating_signal().map(|signal| signal + 128);
                let code = status.exit_status().or(signal).unwrap_or(1);
                return Ok(u8::try_from(code).unwrap_or(u8::MAX));
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("wait for the program", error)),
        }
    }
}

/// Moves bytes between the caller's streams and the program's terminal.
#[derive(Debug)]
struct Relay {
    console: OwnedFd,
    /// The caller's terminal as it was.
    before: Option<Termios>,
    /// For the program, not taken yet.
    input: Vec<u8>,
    /// There may be more.
    reads: bool,
}

impl Relay {
    fn begin(console: OwnedFd) -> Result<Self, Error> {
        let flags =
            fcntl_getfl(&console).and_then(|flags| fcntl_setfl(&console, flags | OFlags::NONBLOCK));
        flags.map_err(|error| Error::system("set the terminal", error))?;
        let before = isatty(stdin()).then(|| tcgetattr(stdin()).ok()).flatten();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(stdin(), OptionalActions::Now, &raw)
                .map_err(|error| Error::system("set the terminal", error))?;
        }
        let relay = Relay {
            console,
            before,
            input: Vec::new(),
            reads: true,
        };
        relay.resize();
        Ok(relay)
    }

    fn resize(&self) {
        if let Ok(size) = tcgetwinsize(stdin()) {
            // A program that has ended has none.
            let _ = tcsetwinsize(&self.console, size);
        }
    }

    fn interests<'a>(&'a self, all: &mut Vec<PollFd<'a>>) {
        let mut console = PollFlags::IN;
        if !self.input.is_empty() {
            console |= PollFlags::OUT;
        }
        all.push(PollFd::from_borrowed_fd(self.console.as_fd(), console));
        // One piece at a time: a program that reads nothing takes nothing.
        if self.reads && self.input.is_empty() {
            all.push(PollFd::from_borrowed_fd(stdin(), PollFlags::IN));
        }
    }

    fn move_bytes(&mut self, console: bool, keys: bool) {
        if keys {
            let mut piece = [0; PIECE];
            match read(stdin(), &mut piece) {
                Ok(0) | Err(Errno::IO) => self.reads = false,
                Ok(count) => self.input.extend(piece.get(..count).unwrap_or_default()),
                Err(_) => {}
            }
        }
        if !self.input.is_empty()
            && let Ok(count) = write(&self.console, &self.input)
        {
            self.input.drain(..count.min(self.input.len()));
        }
        if console {
            self.output();
        }
    }

    /// A piece of output; says whether there was one.
    fn output(&mut self) -> bool {
        let mut piece = [0; PIECE];
        let Ok(count) = read(&self.console, &mut piece) else {
            return false;
        };
        let mut rest = piece.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            match write(stdout(), rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                // Nobody reads: the program goes on all the same.
                Err(_) => break,
            }
        }
        count > 0
    }

    /// What the program wrote before its end.
    fn finish(&mut self) {
        let limit = Timespec::try_from(REST).ok();
        loop {
            let mut all = [PollFd::new(&self.console, PollFlags::IN)];
            match poll(&mut all, limit.as_ref()) {
                Ok(0) => return,
                Err(Errno::INTR) => {}
                _ if self.output() => {}
                _ => return,
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}
