//! A program's terminal: of the container's own devpts, so that nothing in it
//! can reach one of the host's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::{FileType, Mode, OFlags, Uid, fchown, fstat, fstatfs, makedev, open};
use rustix::io::Errno;
use rustix::pty::unlockpt;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::At;
use crate::root::mounts::{attach, clone_handle};
use crate::root::resolve::{InRoot, Kind};
use crate::sys::{DEVPTS_MAGIC, take_terminal, terminal_peer};
use crate::{Error, Step};

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Terminal {
    /// The caller's.
    pub master: OwnedFd,
    /// The program's.
    pub peer: OwnedFd,
}

impl Terminal {
    /// Opens a new one. With `console` it is what `/dev/console` shows.
    pub fn open(root: InRoot<'_>, process: &Process, console: bool) -> Result<Self, Error> {
        let what = || "the terminal";
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let master = root.open(Path::new("/dev/pts/ptmx"), flags).at(
            Step::Terminal,
            || "the terminal: /dev/pts/ptmx of the container",
        )?;
        if fstatfs(&master).at(Step::Terminal, what)?.f_type != DEVPTS_MAGIC {
            let text = "the container's /dev/pts is no devpts";
            return Err(Error::new(Step::Terminal, text));
        }
        let open = || -> Result<OwnedFd, Errno> {
            unlockpt(&master)?;
            let peer = terminal_peer(&master)?;
            let user = Uid::from_raw(process.user().uid());
            match fchown(&peer, Some(user), None) {
                // Whose id is not mapped.
                Err(Errno::PERM | Errno::INVAL) => {}
                result => result?,
            }
            Ok(peer)
        };
        let peer = open().at(Step::Terminal, what)?;
        if let Some(size) = process.console_size() {
            let cells = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
            let size = Winsize {
                ws_row: cells(size.height()),
                ws_col: cells(size.width()),
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            tcsetwinsize(&master, size).at(Step::Terminal, what)?;
        }
        if console {
            let put = || -> Result<(), Errno> {
                let place = root.ensure(Path::new("/dev/console"), Kind::File)?;
                attach(clone_handle(&peer, false)?, place)
            };
            put().at(Step::Terminal, || "the container's /dev/console")?;
        }
        Ok(Terminal { master, peer })
    }

    /// Makes it the program's: its session's, and its standard streams.
    pub fn take(peer: &OwnedFd) -> Result<(), Error> {
        take_terminal(peer).at(Step::Terminal, || "the controlling terminal")?;
        streams([peer, peer, peer])
    }
}

/// Standard streams that are the host's `/dev/null` become the container's own,
/// which is as empty: nothing of the host's is held open for nothing, and a
/// checkpoint knows what it is.
pub fn own_null() {
    let is_null = |file: BorrowedFd<'_>| {
        fstat(file).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && stat.st_rdev == makedev(1, 3)
        })
    };
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(null) = open("/dev/null", flags, Mode::empty()) else {
        return;
    };
    if !is_null(null.as_fd()) {
        return;
    }
    // A stream that stays what it is is as good.
    if is_null(stdin()) {
        let _ = dup2_stdin(&null);
    }
    if is_null(stdout()) {
        let _ = dup2_stdout(&null);
    }
    if is_null(stderr()) {
        let _ = dup2_stderr(&null);
    }
}

/// These become the program's standard streams.
pub fn streams<F: AsFd>(streams: [F; 3]) -> Result<(), Error> {
    let [input, output, error] = streams;
    let put = || -> Result<(), Errno> {
        rustix::stdio::dup2_stdin(input)?;
        rustix::stdio::dup2_stdout(output)?;
        rustix::stdio::dup2_stderr(error)
    };
    put().at(Step::Init, || "the standard streams")
}
