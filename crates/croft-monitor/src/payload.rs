//! The process that the monitor is beside.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use croft_api::channel::channel;
use croft_api::vmm::{self, Request, StartRequest};
use croft_api::{Receiver, Sender, pair, programs};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Name of the program, and of the other end in messages.
const PROGRAM: &str = "croft-vmm";
/// How long a payload that has nothing left to say may take to exit.
const EXIT: Duration = Duration::from_secs(2);

/// A running payload. Killed when dropped.
#[derive(Debug)]
pub struct Payload {
    child: Child,
    exit: OwnedFd,
    /// To it.
    pub sender: Sender,
    /// From it.
    pub receiver: Receiver,
    /// The guest's console.
    pub console: OwnedFd,
    /// What it says outside the protocol: a panic.
    pub stderr: ChildStderr,
}

impl Payload {
    /// Starts it with `handed`, the descriptors of the files it is made from.
    pub fn start(start: StartRequest, handed: Vec<OwnedFd>) -> Result<Self, String> {
        let program = programs::find(PROGRAM)?;
        let failed = |error: io::Error| format!("cannot start {}: {error}", program.display());
        let (ours, theirs) = pair().map_err(failed)?;
        let (console, far_console) = pair().map_err(failed)?;
        let mut command = Command::new(&program);
        command
            .arg(&start.machine.name)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(value) = std::env::var_os("RUST_BACKTRACE") {
            command.env("RUST_BACKTRACE", value);
        }
        let mut child = command.spawn().map_err(failed)?;
        // Our copy of its end of the socket goes with the command: its death
        // is then our end of file.
        drop(command);
        let prepared = pid(&child).and_then(|pid| {
            let exit = pidfd_open(pid, PidfdFlags::empty())?;
            let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
            Ok((exit, stderr))
        });
        let (exit, stderr) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(error));
            }
        };
        let (sender, receiver) = channel(ours, vmm::PROTOCOL, PROGRAM);
        let mut payload = Payload {
            child,
            exit,
            sender,
            receiver,
            console,
            stderr,
        };
        let descriptors = std::iter::once(far_console).chain(handed).collect();
        payload
            .sender
            .push(&Request::Start(Box::new(start)), descriptors)
            .map_err(|error| error.to_string())?;
        Ok(payload)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
    }

    /// Waits for its exit, which is due, and helps if it does not come.
    pub fn reap(&mut self) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + EXIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or_default();
            let mut wait = [PollFd::from_borrowed_fd(self.exit.as_fd(), PollFlags::IN)];
            match poll(&mut wait, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(1..) => return self.child.wait(),
                _ => {
                    self.kill();
                    return self.child.wait();
                }
            }
        }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// How a payload that did not say why it ends has ended.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("{PROGRAM} ended with status {code} before its machine did"),
        (None, Some(signal)) => format!("{PROGRAM} was killed by signal {signal}"),
        (None, None) => format!("{PROGRAM} ended"),
    }
}

fn pid(child: &Child) -> io::Result<Pid> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
