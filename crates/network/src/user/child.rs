//! passt as a child of this process, and pasta, which is the same program for
//! namespaces.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use croft_api::net::{Mac, Publish};
use thiserror::Error;

use super::{Host, Program, command, hello, is_news, link, spawn};
use crate::NetworkError;

/// How long it may take until it answers; it takes some milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of what it says before it ends.
const SAID_MAX: u64 = 16 << 10;

/// Why there is no passt.
#[derive(Debug, Error)]
pub enum StartError {
    /// The host fails.
    #[error("cannot start {0}: {1}")]
    Spawn(Program, #[source] io::Error),
    /// It ended at once.
    #[error("{0} does not run here: {1}")]
    Ended(Program, String),
    /// It has a port of the host at one address, or at all.
    #[error(
        "{0} cannot publish one port of this host at two addresses ({1}); publish it without an address, or take two ports"
    )]
    Addresses(Program, String),
    /// It does nothing.
    #[error("{0} was started and does not answer; look for its messages in the host's log")]
    Silent(Program),
    /// What it is for is not there.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

impl StartError {
    /// It has ended, with these words.
    pub(super) fn ended(program: Program, said: String) -> Self {
        // Of Debian 12's (2023-03); later versions take some such ports.
        if said.contains("Overlapping port specifier") {
            StartError::Addresses(program, said)
        } else {
            StartError::Ended(program, said)
        }
    }
}

/// A running passt or pasta. Ended when dropped.
#[derive(Debug)]
pub struct Passt {
    pub(super) child: Child,
    /// What it says; its end is passt's.
    stderr: ChildStderr,
    /// Its controlling terminal: it does not outlive this process.
    _terminal: Option<OwnedFd>,
}

impl Passt {
    /// Starts it: it, and the socket for the machine.
    pub fn spawn(
        program: &Path,
        host: &Host,
        publish: &[Publish],
        mtu: u16,
    ) -> Result<(Passt, OwnedFd), StartError> {
        let failed = |error| StartError::Spawn(Program::Passt, error);
        let (ours, theirs) = link::pair().map_err(failed)?;
        let mut command = Command::new(program);
        // It ends with its socket; unless it is in a loop that does not come
        // back, which has been seen of Debian 12's.
        let terminal = spawn::prepare(&mut command, None).ok();
        if terminal.is_none() {
            // Keys of our terminal are not for it.
            command.process_group(0);
        }
        command
            .args(command::passt(host, publish, mtu))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .fd_mappings(vec![FdMapping {
                parent_fd: theirs,
                child_fd: command::SOCKET,
            }])
            .map_err(|error| failed(io::Error::other(error)))?;
        let child = command.spawn().map_err(failed)?;
        Ok((Passt::new(Program::Passt, child, terminal)?, ours))
    }

    pub(super) fn new(
        program: Program,
        mut child: Child,
        terminal: Option<OwnedFd>,
    ) -> Result<Passt, StartError> {
        match child.stderr.take() {
            Some(stderr) => Ok(Passt {
                child,
                stderr,
                _terminal: terminal,
            }),
            None => Err(StartError::Silent(program)),
        }
    }

    /// As [`Passt::spawn`], and waits until it serves, or says why it does
    /// not. `mac` is the guest's.
    pub fn start(
        program: &Path,
        host: &Host,
        publish: &[Publish],
        mtu: u16,
        mac: Mac,
    ) -> Result<(Passt, OwnedFd), StartError> {
        let (passt, socket) = Passt::spawn(program, host, publish, mtu)?;
        // Of either family: both are streams.
        let mut socket = UnixStream::from(socket);
        match hello::wait(&mut socket, mac, PATIENCE) {
            Ok(()) => Ok((passt, socket.into())),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(StartError::Silent(Program::Passt))
            }
            Err(_) => {
                drop(socket);
                Err(StartError::ended(Program::Passt, passt.last_words()))
            }
        }
    }

    /// What it said, all of it: it is at its end.
    pub(super) fn last_words(mut self) -> String {
        // Nothing else could end the reading.
        let _ = self.child.kill();
        let mut said = Vec::new();
        let _ = (&mut self.stderr).take(SAID_MAX).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().filter(|line| is_news(line)).collect();
        if lines.is_empty() {
            "it ended without a word".to_owned()
        } else {
            lines.join("; ").escape_debug().to_string()
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says. At the end it has ended.
    pub fn stderr(&mut self) -> &mut impl Read {
        &mut self.stderr
    }

    /// Waits for its end, which is due.
    pub fn reap(mut self) -> Option<ExitStatus> {
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

impl AsFd for Passt {
    /// Readable when it has said something, and when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stderr.as_fd()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::user::{MTU, find};

    fn mac() -> Mac {
        "02:c7:0f:01:02:03".parse().unwrap()
    }

    /// Starts the passt of this host, if it has one.
    fn start(publish: &str) -> Option<Result<(Passt, OwnedFd), StartError>> {
        let Ok(program) = find(Program::Passt) else {
            eprintln!("skipped: passt is not installed");
            return None;
        };
        let publish: Vec<Publish> = publish
            .split_whitespace()
            .map(|p| p.parse().unwrap())
            .collect();
        Some(Passt::start(&program, &Host::look(), &publish, MTU, mac()))
    }

    /// Reads what it says until it ends.
    fn is_gone(passt: &mut Passt) -> bool {
        let mut rest = Vec::new();
        passt.stderr().read_to_end(&mut rest).is_ok()
    }

    #[test]
    fn it_serves_and_ends_with_its_socket() {
        let Some(started) = start("") else { return };
        let (mut passt, socket) = started.unwrap();
        drop(socket);
        assert!(is_gone(&mut passt));
        assert!(passt.reap().unwrap().success());
    }

    #[test]
    fn it_ends_with_whoever_started_it() {
        let Some(started) = start("") else { return };
        let (mut passt, _socket) = started.unwrap();
        drop(passt._terminal.take().expect("a terminal"));
        assert!(is_gone(&mut passt));
    }

    #[test]
    fn one_that_is_killed_is_seen() {
        let Some(started) = start("") else { return };
        let (mut passt, _socket) = started.unwrap();
        passt.child.kill().unwrap();
        assert!(is_gone(&mut passt));
        assert!(!passt.reap().unwrap().success());
    }

    #[test]
    fn a_port_that_is_taken_is_named_by_passt_too() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let Some(started) = start(&format!("127.0.0.1:{port}:22")) else {
            return;
        };
        let said = started.err().unwrap().to_string();
        assert!(said.contains(&port.to_string()), "{said}");
    }

    #[test]
    fn a_port_at_two_addresses_is_named() {
        let said = "Overlapping port specifier ::1/53:53".to_owned();
        let error = StartError::ended(Program::Passt, said).to_string();
        assert!(
            error.contains("two addresses") && error.contains("::1/53:53"),
            "{error}"
        );
        let said = "Failed to bind any port".to_owned();
        let error = StartError::ended(Program::Passt, said);
        assert!(matches!(error, StartError::Ended(..)));
    }

    #[test]
    fn what_is_no_passt_is_no_network() {
        let error = Passt::start(Path::new("/bin/true"), &Host::default(), &[], MTU, mac());
        assert!(matches!(error, Err(StartError::Ended(..))));
        let error = Passt::start(Path::new("/none"), &Host::default(), &[], MTU, mac());
        assert!(matches!(error, Err(StartError::Spawn(..))));
    }
}
