//! Starting a command in the guest.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use croft_api::agent::{Exec, Failure, Size};
use rustix::fs::{Access, AtFlags, CWD, Gid, Mode, OFlags, Uid, accessat, fchmod, fchown, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::task::Refusal;
use super::users::User;
use crate::tree::quoted;

/// `PATH` of root and of everybody else, as Debian's login has it.
const PATHS: [&str; 2] = [
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
];

/// What a command reads and writes.
#[derive(Debug)]
pub enum Streams {
    /// A terminal of its own: our end.
    Terminal(OwnedFd),
    /// Pipes: our ends.
    Pipes {
        /// To its standard input, if the host sends some.
        stdin: Option<OwnedFd>,
        /// From its standard output.
        stdout: OwnedFd,
        /// From its standard error.
        stderr: OwnedFd,
    },
}

/// Starts what `exec` asks for as `user`.
pub fn start(exec: &Exec, user: &User) -> Result<(Child, Streams), Refusal> {
    let mut variables = environment(user);
    for (name, value) in &exec.env {
        let valid = !name.is_empty() && !has(name, b'=') && !has(name, 0) && !has(value, 0);
        if !valid {
            return Err(Refusal::other(format!("{} is no variable", quoted(name))));
        }
        variables.retain(|(there, _)| there != name);
        variables.push((name.clone(), value.clone()));
    }
    let home = Path::new(&user.home);
    let directory = match &exec.cwd {
        Some(directory) => home.join(directory),
        // As login does it.
        None if home.is_dir() => home.to_owned(),
        None => PathBuf::from("/"),
    };
    if !directory.is_dir() {
        let text = format!("{} is no directory in the guest", quoted(&directory));
        return Err(Refusal::other(text));
    }
    let shell = [OsString::from(&user.shell)];
    let is_login = exec.argv.is_empty();
    let argv = if is_login { &shell[..] } else { &exec.argv[..] };
    let [program, arguments @ ..] = argv else {
        return Err(Refusal::other("there is no command"));
    };
    let path = variables.iter().find(|(name, _)| name == "PATH");
    let path = path.map(|(_, value)| value.clone()).unwrap_or_default();
    let found = find(program, &path, &directory)?;
    let mut command = Command::new(&found);
    if is_login {
        // A name that begins with a dash makes it a login shell.
        let name = found.file_name().unwrap_or_default();
        let mut dashed = OsString::from("-");
        dashed.push(name);
        command.arg0(dashed);
    } else {
        command.arg0(program);
    }
    command
        .args(arguments)
        .env_clear()
        .envs(variables)
        .current_dir(&directory);
    launch(command, exec, user).map_err(|error| refusal(program, &error))
}

/// What a login of `user` has.
fn environment(user: &User) -> Vec<(OsString, OsString)> {
    let path = if user.uid == 0 { PATHS[0] } else { PATHS[1] };
    [
        ("HOME", user.home.as_str()),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("PATH", path),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
}

fn has(text: &OsStr, byte: u8) -> bool {
    text.as_bytes().contains(&byte)
}

/// The file that `program` stands for.
fn find(program: &OsStr, path: &OsStr, directory: &Path) -> Result<PathBuf, Refusal> {
    let executable = |file: &Path| {
        file.is_file() && accessat(CWD, file, Access::EXEC_OK, AtFlags::empty()).is_ok()
    };
    if program.is_empty() || has(program, 0) {
        return Err(refusal(program, &io::ErrorKind::NotFound.into()));
    }
    if has(program, b'/') {
        return Ok(directory.join(program));
    }
    let places = path.as_bytes().split(|byte| *byte == b':');
    let mut files = places
        .filter(|place| !place.is_empty())
        .map(|place| PathBuf::from(OsString::from_vec(place.to_vec())).join(program));
    files
        .find(|file| executable(file))
        .ok_or_else(|| refusal(program, &io::ErrorKind::NotFound.into()))
}

fn refusal(program: &OsStr, error: &io::Error) -> Refusal {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Failure::NotFound,
        _ if error.raw_os_error() == Some(libc::EAGAIN) => Failure::Other,
        _ => Failure::NotExecutable,
    };
    let text = match kind {
        Failure::NotFound => "no such program in the guest".to_owned(),
        _ => error.to_string(),
    };
    Refusal {
        kind,
        message: format!("{}: {text}", quoted(program)),
    }
}

fn launch(mut command: Command, exec: &Exec, user: &User) -> io::Result<(Child, Streams)> {
    let terminal = match exec.pty {
        Some(size) => Some(terminal(size, user)?),
        None => None,
    };
    if let Some((_, theirs)) = &terminal {
        let copy = || theirs.try_clone().map(Stdio::from);
        command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
    } else {
        let input = if exec.stdin {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }
    let become_user = Become {
        groups: user.groups.clone(),
        uid: user.uid,
        gid: user.gid,
        changes: rustix::process::geteuid().is_root(),
        has_terminal: terminal.is_some(),
    };
    // SAFETY: between fork and exec it makes system calls only, on memory
    // that was made before; see `Become::run`.
    unsafe {
        command.pre_exec(move || become_user.run());
    }
    let mut child = command.spawn()?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let streams = match (terminal, pipes) {
        (Some((ours, _)), _) => Streams::Terminal(ours),
        (None, (stdin, Some(stdout), Some(stderr))) => Streams::Pipes {
            stdin: stdin.map(OwnedFd::from),
            stdout: stdout.into(),
            stderr: stderr.into(),
        },
        (None, _) => return Err(io::ErrorKind::BrokenPipe.into()),
    };
    Ok((child, streams))
}

/// A new terminal of `user`: our end and the command's.
fn terminal(size: Size, user: &User) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = open(name.as_c_str(), flags, Mode::empty())?;
    resize(&ours, size)?;
    if rustix::process::geteuid().is_root() {
        fchown(&theirs, Some(Uid::from_raw(user.uid)), None::<Gid>)?;
        fchmod(&theirs, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
    }
    Ok((ours, theirs))
}

/// Gives a terminal another size.
pub fn resize(terminal: impl AsFd, size: Size) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// What the child does before it becomes the command.
struct Become {
    groups: Vec<libc::gid_t>,
    uid: libc::uid_t,
    gid: libc::gid_t,
    /// Only root can become somebody else; others are who they are.
    changes: bool,
    has_terminal: bool,
}

impl Become {
    /// In a session and process group of its own, with the terminal that is
    /// its standard input, as the user, with the signals that end it: ignored
    /// ones stay so over exec, whoever it was that ignored them.
    fn run(&self) -> io::Result<()> {
        let check = |result: libc::c_int| match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        // SAFETY: system calls that are safe after a fork; `groups` is a
        // slice of this process's memory. The child has one thread, so that
        // glibc has nobody to tell of the changed ids.
        unsafe {
            check(libc::setsid())?;
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            if self.has_terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            libc::umask(0o022);
            if self.changes {
                check(libc::setgroups(self.groups.len(), self.groups.as_ptr()))?;
                check(libc::setresgid(self.gid, self.gid, self.gid))?;
                check(libc::setresuid(self.uid, self.uid, self.uid))?;
            }
        }
        Ok(())
    }
}
