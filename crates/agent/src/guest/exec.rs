//! A command of the host's.
//!
//! One thread waits for everything: frames of the host, output of the command,
//! room for its input, and its end.
//!
//! ```text
//! host ─ frames ─► pending input ─► stdin       pending is bounded: when it is
//!      ◄─ frames ─ stdout, stderr ◄─ command    full, frames wait in the socket
//! ```
//!
//! A host that does not take output holds the command up, as a full pipe does.
//! When the connection ends first the command is hung up on, as by a terminal
//! that goes away; one that ignores that stays.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};

use croft_api::agent::{Control, Exec, Exit, FrameKind, Reply};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::process::{self, Streams};
use super::task::{Refusal, refuse};
use super::users::Users;
use crate::AgentError;
use crate::connection::{Frame, Receiver, Sender};

/// Bytes of output read at once.
const CHUNK: usize = 64 << 10;
/// Bytes of input that may wait for the command to read them.
const PENDING_MAX: usize = 1 << 20;
/// Largest number of a signal (signal(7)).
const SIGNAL_MAX: i32 = 64;

/// Runs what `exec` asks for.
pub fn serve(exec: Exec, mut sender: Sender, receiver: Receiver) -> Result<(), AgentError> {
    match begin(&exec) {
        Ok(task) => task.run(sender, receiver),
        Err(refusal) => refuse(&mut sender, refusal),
    }
}

fn begin(exec: &Exec) -> Result<Task, Refusal> {
    let wanted = exec.user.as_deref().unwrap_or("root");
    let user = Users::read(Path::new("/etc")).find(wanted);
    let user = user.ok_or_else(|| {
        Refusal::other(format!(
            "'{}' is no user of the guest",
            wanted.escape_debug()
        ))
    })?;
    let (child, streams) = process::start(exec, &user)?;
    Task::new(child, streams).map_err(|error| Refusal::other(error.to_string()))
}

/// A command that runs.
struct Task {
    child: Child,
    pid: Pid,
    /// Readable when it has ended.
    ended: OwnedFd,
    terminal: Option<File>,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
    /// Input on its way, and how much of it has gone.
    pending: Vec<u8>,
    gone: usize,
    /// The host has said that there is no more.
    no_more: bool,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Host,
    Stdin,
    Stdout,
    Stderr,
    Ended,
}

impl Task {
    fn new(child: Child, streams: Streams) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        let ours = |descriptor: OwnedFd| {
            rustix::io::ioctl_fionbio(&descriptor, true).map(|()| File::from(descriptor))
        };
        let mut task = Task {
            child,
            pid,
            ended,
            terminal: None,
            stdin: None,
            stdout: None,
            stderr: None,
            pending: Vec::new(),
            gone: 0,
            no_more: false,
        };
        match streams {
            Streams::Terminal(terminal) => {
                let terminal = ours(terminal)?;
                task.stdin = Some(terminal.try_clone()?);
                task.stdout = Some(terminal.try_clone()?);
                task.terminal = Some(terminal);
            }
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                task.stdin = stdin.map(ours).transpose()?;
                task.stdout = Some(ours(stdout)?);
                task.stderr = Some(ours(stderr)?);
            }
        }
        Ok(task)
    }

    fn run(mut self, mut sender: Sender, mut receiver: Receiver) -> Result<(), AgentError> {
        let served = self.serve(&mut sender, &mut receiver);
        if let Ok(Some(status)) = self.child.try_wait() {
            served?;
            // What it wrote before its end is in the pipes; what others of
            // its family write later is not waited for.
            self.drain(&mut sender)?;
            return sender.message(&Reply::Exited(exit(status)));
        }
        // The end of its terminal and of its pipes, and a signal for those
        // that have neither.
        self.signal(libc::SIGHUP);
        let Task { mut child, .. } = self;
        drop((sender, receiver));
        // It may go on for as long as it likes; it is reaped at its end.
        let _ = child.wait();
        served
    }

    /// Until the command ends or the connection does.
    fn serve(&mut self, sender: &mut Sender, receiver: &mut Receiver) -> Result<(), AgentError> {
        let pid = self.pid.as_raw_nonzero().get().unsigned_abs();
        sender.message(&Reply::Started { pid })?;
        loop {
            // The host may have sent input with its request.
            while self.takes_more()
                && let Some(frame) = receiver.arrived()?
            {
                self.hear(&frame, receiver)?;
            }
            self.feed();
            let mut ready = self.wait(receiver.as_fd());
            if ready.contains(&Source::Stdin) {
                self.feed();
            }
            // The end last: what it wrote comes before.
            ready.sort_by_key(|source| *source == Source::Ended);
            for source in ready {
                match source {
                    Source::Host => {
                        if !receiver.fill()? {
                            return Ok(());
                        }
                    }
                    Source::Stdout => forward(&mut self.stdout, FrameKind::Stdout, sender)?,
                    Source::Stderr => forward(&mut self.stderr, FrameKind::Stderr, sender)?,
                    Source::Stdin => {}
                    Source::Ended => return Ok(()),
                }
            }
        }
    }

    fn takes_more(&self) -> bool {
        self.pending.len() - self.gone < PENDING_MAX
    }

    /// Waits until something can be done.
    fn wait(&self, host: BorrowedFd<'_>) -> Vec<Source> {
        let has_input = self.gone < self.pending.len();
        let stdin = self.stdin.as_ref().filter(|_| has_input);
        // Without POLLIN it still tells when the host hangs up.
        let hear = if self.takes_more() {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let descriptors = [
            (Source::Host, Some((host, hear))),
            (
                Source::Stdin,
                stdin.map(|file| (file.as_fd(), PollFlags::OUT)),
            ),
            (
                Source::Stdout,
                self.stdout
                    .as_ref()
                    .map(|file| (file.as_fd(), PollFlags::IN)),
            ),
            (
                Source::Stderr,
                self.stderr
                    .as_ref()
                    .map(|file| (file.as_fd(), PollFlags::IN)),
            ),
            (Source::Ended, Some((self.ended.as_fd(), PollFlags::IN))),
        ];
        let (sources, mut waits): (Vec<Source>, Vec<PollFd<'_>>) = descriptors
            .into_iter()
            .filter_map(|(source, wait)| {
                let (descriptor, flags) = wait?;
                Some((source, PollFd::from_borrowed_fd(descriptor, flags)))
            })
            .unzip();
        while let Err(Errno::INTR) = poll(&mut waits, None) {}
        let ready = sources.into_iter().zip(&waits);
        ready
            .filter(|(_, wait)| !wait.revents().is_empty())
            .map(|(source, _)| source)
            .collect()
    }

    /// Does what a frame of the host's says.
    fn hear(&mut self, frame: &Frame, receiver: &Receiver) -> Result<(), AgentError> {
        match frame.kind {
            FrameKind::Stdin if frame.bytes.is_empty() => self.no_more = true,
            FrameKind::Stdin => {
                self.pending.drain(..self.gone);
                self.gone = 0;
                if self.stdin.is_some() {
                    self.pending.extend_from_slice(&frame.bytes);
                }
            }
            FrameKind::Message => match receiver.read(frame)? {
                Control::Resize(size) => {
                    if let Some(terminal) = &self.terminal {
                        // A size that the kernel does not like is not had.
                        let _ = process::resize(terminal, size);
                    }
                }
                Control::Signal(number) => self.signal(number),
                Control::Thaw => {}
            },
            _ => return Err(receiver.damaged("data that goes the other way")),
        }
        Ok(())
    }

    /// Writes as much input as the command has room for.
    fn feed(&mut self) {
        while let Some(stdin) = &mut self.stdin {
            let rest = self.pending.get(self.gone..).unwrap_or_default();
            if rest.is_empty() {
                // A terminal has no end of input; its end would hang up.
                if self.no_more && self.terminal.is_none() {
                    self.stdin = None;
                }
                return;
            }
            match stdin.write(rest) {
                Ok(count) => self.gone += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It does not want any more.
                Err(_) => {
                    self.stdin = None;
                    self.pending.clear();
                    self.gone = 0;
                }
            }
        }
    }

    fn signal(&self, number: i32) {
        if (1..=SIGNAL_MAX).contains(&number) {
            let pid = self.pid.as_raw_nonzero().get();
            // It may have ended.
            let _ = kill_group(pid, number);
        }
    }

    /// Sends what is in the pipes.
    fn drain(&mut self, sender: &mut Sender) -> Result<(), AgentError> {
        for (stream, kind) in [
            (&mut self.stdout, FrameKind::Stdout),
            (&mut self.stderr, FrameKind::Stderr),
        ] {
            // A pipe's worth at most: others may write for ever.
            let mut left = PENDING_MAX;
            while let Some(file) = stream {
                match read(file) {
                    Some(bytes) if !bytes.is_empty() && left > 0 => {
                        left = left.saturating_sub(bytes.len());
                        sender.data(kind, &bytes)?;
                    }
                    _ => *stream = None,
                }
            }
        }
        Ok(())
    }
}

/// What is there to be read; empty at the end, `None` if nothing is there now.
fn read(file: &mut File) -> Option<Vec<u8>> {
    let mut bytes = vec![0; CHUNK];
    loop {
        match file.read(&mut bytes) {
            Ok(count) => {
                bytes.truncate(count);
                return Some(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            // A terminal that nobody has open any more says EIO.
            Err(_) => return Some(Vec::new()),
        }
    }
}

/// Passes on what is there.
fn forward(
    stream: &mut Option<File>,
    kind: FrameKind,
    sender: &mut Sender,
) -> Result<(), AgentError> {
    let Some(file) = stream else { return Ok(()) };
    match read(file) {
        Some(bytes) => {
            if bytes.is_empty() {
                *stream = None;
            }
            // Without bytes it is the stream's end.
            sender.data(kind, &bytes)
        }
        None => Ok(()),
    }
}

fn kill_group(pid: i32, number: i32) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let signal =
        rustix::process::Signal::from_named_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::kill_process_group(pid, signal)?)
}

fn exit(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(u8::try_from(code & 0xFF).unwrap_or(u8::MAX)),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(u8::MAX),
    }
}
