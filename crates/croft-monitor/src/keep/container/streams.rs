//! The standard streams of a container's program.
//!
//! ```text
//! with a terminal     program ◄──── pty ────► console 0
//! without             program ──── stdout ──► console 0
//!                     program ──── stderr ──► console 1
//!                     program ◄─── stdin ──── console 0
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};

use super::super::console::Console;
use super::records::{Records, Stream};

/// Bytes read at once.
const PIECE: usize = 16 * 1024;
/// Pieces of a stream that are read after its program has ended: what the
/// largest pipe of most hosts has room for (`pipe-max-size`, proc(5)), twice.
const LAST_PIECES: usize = 128;

/// The ends that the monitor has.
#[derive(Debug, Default)]
pub struct Streams {
    /// A terminal's other end.
    terminal: Option<OwnedFd>,
    /// The program's end of it, until its init has ended. An init opens its
    /// console for each line and closes it again: if nobody had it open in
    /// between, that would be the terminal's end (EIO), for good.
    kept: Option<OwnedFd>,
    input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Terminal,
    Input,
    Output(Stream),
}

impl Streams {
    /// Makes them, and the program's ends. It has an input if `input`.
    pub fn pipes(input: bool) -> Result<(Self, [OwnedFd; 3]), Errno> {
        let (stdin, ours) = if input {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            (theirs, Some(ours))
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            (open("/dev/null", flags, Mode::empty())?, None)
        };
        let (out, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        // Ours alone: a program whose streams do not block of themselves would
        // be surprised.
        for end in ours.iter().chain([&out, &err]) {
            unblock(end)?;
        }
        let streams = Streams {
            input: ours,
            outputs: [Some(out), Some(err)],
            ..Streams::default()
        };
        Ok((streams, [stdin, stdout, stderr]))
    }

    /// Those of a program with a terminal.
    pub fn terminal(end: OwnedFd) -> Result<Self, Errno> {
        unblock(&end)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        Ok(Streams {
            kept: Some(ioctl_tiocgptpeer(&end, flags)?),
            terminal: Some(end),
            ..Streams::default()
        })
    }

    /// The terminal, if it has one.
    pub fn get_terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// What is worth waiting for.
    pub fn interests<'a>(
        &'a self,
        consoles: &[Console],
    ) -> impl Iterator<Item = (End, BorrowedFd<'a>, PollFlags)> {
        let full = |index: usize| consoles.get(index).is_some_and(Console::is_full);
        let fed = consoles.first().is_some_and(Console::has_input);
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !full(0));
        flags.set(PollFlags::OUT, fed);
        let terminal = self.terminal.iter();
        let terminal = terminal.map(move |fd| (End::Terminal, fd.as_fd(), flags));
        let input = self.input.iter().filter(move |_| fed);
        let input = input.map(|fd| (End::Input, fd.as_fd(), PollFlags::OUT));
        let outputs = [(Stream::Out, full(0)), (Stream::Err, full(1))];
        let outputs = self.outputs.iter().zip(outputs);
        let outputs = outputs.filter_map(|(fd, (stream, full))| {
            let fd = fd.as_ref().filter(|_| !full)?;
            Some((End::Output(stream), fd.as_fd(), PollFlags::IN))
        });
        terminal.chain(input).chain(outputs)
    }

    /// Moves what can be moved.
    pub fn serve(&mut self, end: End, consoles: &mut [Console], records: &mut Records) {
        match end {
            End::Terminal => {
                self.feed(consoles);
                let Some(console) = consoles.first_mut() else {
                    return;
                };
                if !take(&mut self.terminal, Stream::Out, console, records) {
                    self.terminal = None;
                }
            }
            End::Input => self.feed(consoles),
            End::Output(stream) => {
                let index = stream as usize;
                let (Some(output), Some(console)) =
                    (self.outputs.get_mut(index), consoles.get_mut(index))
                else {
                    return;
                };
                if !take(output, stream, console, records) {
                    *output = None;
                }
            }
        }
    }

    /// Gives the program what was typed.
    fn feed(&mut self, consoles: &mut [Console]) {
        let Some(console) = consoles.first_mut() else {
            return;
        };
        let end = self.terminal.as_ref().or(self.input.as_ref());
        match end {
            Some(end) if console.has_input() => {
                console.give_input_by(|bytes| write(end, bytes));
            }
            Some(_) => {}
            // Nobody reads it any more.
            None => console.forget_input(),
        }
    }

    /// Closes the program's input once whoever writes to it has said that
    /// there is no more.
    pub fn close_input(&mut self, consoles: &[Console]) {
        if consoles.first().is_some_and(Console::is_input_ended) {
            self.input = None;
        }
    }

    /// Whether everything that was printed is heard.
    pub fn is_ended(&self) -> bool {
        self.terminal.is_none() && self.outputs.iter().all(Option::is_none)
    }

    /// The program is gone, and its whole namespace of processes: takes what it
    /// has left, as much as the consoles have room for. What somebody outside
    /// still holds open is not waited for; nor does it matter if they go on to
    /// write.
    pub fn drain(&mut self, consoles: &mut [Console], records: &mut Records) {
        self.input = None;
        self.kept = None;
        for _ in 0..LAST_PIECES {
            let ready: Vec<End> = self
                .interests(consoles)
                .filter(|(_, fd, flags)| flags.contains(PollFlags::IN) && is_readable(*fd))
                .map(|(end, ..)| end)
                .collect();
            if ready.is_empty() {
                break;
            }
            for end in ready {
                self.serve(end, consoles, records);
            }
        }
        let full = consoles.iter().any(Console::is_full);
        if !full {
            *self = Streams::default();
        }
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, Timespec, poll};
    let mut wait = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut wait, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// Takes what a stream has; false at its end.
fn take(
    stream: &mut Option<OwnedFd>,
    name: Stream,
    console: &mut Console,
    records: &mut Records,
) -> bool {
    let Some(fd) = stream else {
        return true;
    };
    let mut buffer = [0; PIECE];
    match read(&*fd, &mut buffer) {
        Ok(0) => false,
        Ok(count) => {
            let bytes = buffer.get(..count).unwrap_or_default();
            records.append(name, bytes);
            console.output(bytes);
            true
        }
        Err(Errno::AGAIN | Errno::INTR) => true,
        // A terminal's end (EIO) among them: its init is gone, and what was
        // kept of it.
        Err(_) => false,
    }
}

fn unblock(fd: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn whoever_goes_on_to_write_does_not_keep_it_from_its_end() {
        let place = tempfile::tempdir().unwrap();
        let mut records = Records::new(place.path());
        let mut consoles = [Console::new(None), Console::new(None)];
        let (mut streams, [_, out, err]) = Streams::pipes(false).unwrap();
        drop(err);
        write(&out, b"last words\n").unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            // Another container that was handed the stream.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if write(&out, &[b'x'; PIECE]).is_err() {
                        break;
                    }
                }
            });
            streams.drain(&mut consoles, &mut records);
            done.store(true, Ordering::Relaxed);
            assert!(streams.is_ended());
            drop(streams);
        });
        let log = std::fs::read_to_string(place.path().join("console.log")).unwrap();
        assert!(log.contains("stdout F last words"));
    }
}
