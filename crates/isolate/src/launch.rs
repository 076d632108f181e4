//! Starting a payload in namespaces of its own.
//!
//! ```text
//! monitor                                child
//!    ├─ clone(namespaces) ──────────────►│ waits
//!    ├─ uid_map, gid_map, control group  │
//!    ├─ go ─────────────────────────────►│ descriptors 0, 1, 2, no others
//!    │◄──────── end of file, or errno ───│ exec
//! ```
//!
//! The user namespace comes first: with it a user needs no privilege for the
//! others. Root's payload also gets user ids of its own, which own nothing on
//! the host; a user's keeps the user's.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, getegid, geteuid, pidfd_send_signal, waitid,
};

use crate::cgroup::ControlGroup;
use crate::report::{Part, Piece};

/// First of the ids that root's payloads have: above those that systemd and
/// container managers give away (systemd's UIDS-GIDS.md), one for each
/// process id, which are below 2^22.
const OWN_IDS: u32 = 0x7000_0000;
/// In the payload's user namespace, its own id.
const INNER_ID: u32 = 1;
/// What the child ends with when it cannot become the payload.
const FAILED: i32 = 127;

/// Namespaces, and the pieces of the jail that each is.
const NAMESPACES: [(i32, Piece, &str); 6] = [
    (libc::CLONE_NEWUSER, Piece::User, "user"),
    (libc::CLONE_NEWNS, Piece::Root, "mount"),
    (libc::CLONE_NEWPID, Piece::Processes, "pid"),
    (libc::CLONE_NEWNET, Piece::Network, "net"),
    (libc::CLONE_NEWIPC, Piece::Names, "ipc"),
    (libc::CLONE_NEWUTS, Piece::Names, "uts"),
];

/// What a payload is started from.
#[derive(Debug)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; those that tell it of its jail come behind them.
    pub arguments: Vec<OsString>,
    /// Its environment, `NAME=VALUE`.
    pub environment: Vec<OsString>,
    /// Its standard input, output and error; it gets no other descriptor.
    pub descriptors: [OwnedFd; 3],
    /// Put it into namespaces.
    pub jail: bool,
    /// Keep the user's ids: it works on files by them.
    pub keeps_ids: bool,
}

/// Why there is no payload.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A path or an argument has a zero byte in it.
    #[error("its path or an argument has a zero byte")]
    Name,
    /// The host refuses a process.
    #[error("no process can be made: {0}")]
    Clone(io::Error),
    /// The program cannot be executed.
    #[error("{0}")]
    Exec(io::Error),
    /// Something else failed.
    #[error("{0}")]
    Host(#[from] io::Error),
}

/// A payload. Killed and waited for when dropped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    exit: OwnedFd,
    status: Option<Ended>,
    /// Why it is not in its control group, if it should be.
    pub unlimited: Option<crate::cgroups::Error>,
}

/// How a payload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Child {
    /// Its process id, as this process sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Ends it at once.
    pub fn kill(&self) {
        if self.status.is_none() {
            // It may be dead already.
            let _ = pidfd_send_signal(&self.exit, Signal::KILL);
        }
    }

    /// Waits until it has ended, at most for `patience`; `None` if it has
    /// not.
    ///
    /// # Errors
    /// It is nobody's child any more.
    pub fn wait(&mut self, patience: Option<Duration>) -> io::Result<Option<Ended>> {
        if self.status.is_some() {
            return Ok(self.status);
        }
        if let Some(patience) = patience {
            let timeout = Timespec::try_from(patience).unwrap_or_default();
            let mut wait = [PollFd::new(&self.exit, PollFlags::IN)];
            match poll(&mut wait, Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => return Ok(None),
                result => result.map(drop)?,
            }
        }
        loop {
            match waitid(WaitId::PidFd(self.exit.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => {
                    self.status = Some(ended(&status));
                    return Ok(self.status);
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Child {
    /// Readable once it has ended.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.exit.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        let _ = self.wait(None);
    }
}

fn ended(status: &WaitIdStatus) -> Ended {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Exited(code),
        (None, signal) => Ended::Killed(signal.unwrap_or_default()),
    }
}

/// What a payload was given, told by its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    namespaces: Vec<String>,
    /// The id to take.
    pub(crate) uid: Option<u32>,
}

impl Given {
    const NAMESPACES: &str = "namespaces=";
    const UID: &str = "uid=";

    /// Reads the arguments that [`Launch::start`] adds. Others are nothing.
    pub fn parse(arguments: impl Iterator<Item = OsString>) -> Self {
        let mut given = Given::default();
        for argument in arguments.filter_map(|argument| argument.into_string().ok()) {
            if let Some(list) = argument.strip_prefix(Self::NAMESPACES) {
                given.namespaces = list
                    .split(',')
                    .filter(|word| !word.is_empty())
                    .map(str::to_owned)
                    .collect();
            } else if let Some(id) = argument.strip_prefix(Self::UID) {
                given.uid = id.parse().ok();
            }
        }
        given
    }

    fn new(flags: i32, uid: Option<u32>) -> Self {
        let had = NAMESPACES.iter().filter(|(flag, ..)| flags & flag != 0);
        Given {
            namespaces: had.map(|(_, _, word)| (*word).to_owned()).collect(),
            uid,
        }
    }

    fn arguments(&self) -> Vec<OsString> {
        let list = format!("{}{}", Self::NAMESPACES, self.namespaces.join(","));
        let uid = self.uid.map(|id| format!("{}{id}", Self::UID));
        std::iter::once(list)
            .chain(uid)
            .map(OsString::from)
            .collect()
    }

    /// Whether all namespaces of this piece were given.
    pub(crate) fn has(&self, piece: Piece) -> bool {
        NAMESPACES
            .iter()
            .filter(|(_, one, _)| *one == piece)
            .all(|(_, _, word)| self.namespaces.iter().any(|had| had == word))
    }

    /// The pieces that are namespaces.
    pub(crate) fn parts(&self) -> Vec<Part> {
        const REFUSED: &str = "the host lets this user make none; see 'croft doctor'";
        let kinds = [
            (Piece::User, "a namespace, ids without rights"),
            (Piece::Root, "empty and read-only"),
            (Piece::Processes, "alone in a namespace"),
            (Piece::Network, "a namespace without a network"),
            (Piece::Names, "namespaces of their own"),
        ];
        kinds
            .into_iter()
            .map(|(piece, text)| match self.has(piece) {
                true => Part::there(piece, text),
                false => Part::missing(piece, REFUSED),
            })
            .collect()
    }
}

impl Launch {
    /// Starts it, in `group` if there is one. It has begun to execute when
    /// this returns.
    pub fn start(self, group: Option<&ControlGroup>) -> Result<Child, LaunchError> {
        if !self.jail {
            return self.start_in(0, None, group);
        }
        let all = NAMESPACES.iter().fold(0, |all, (flag, ..)| all | flag);
        let own = (geteuid().is_root() && !self.keeps_ids).then_some(INNER_ID);
        let mut flags = all;
        let mut result = self.start_in(flags, own, group);
        if matches!(result, Err(LaunchError::Clone(_))) {
            flags = possible();
            result = self.start_in(flags, own, group);
        }
        match result {
            // Root without the right to map ids keeps its own.
            Err(LaunchError::Host(_)) if own.is_some() => self.start_in(flags, None, group),
            result => result,
        }
    }

    fn start_in(
        &self,
        flags: i32,
        own: Option<u32>,
        group: Option<&ControlGroup>,
    ) -> Result<Child, LaunchError> {
        // Without a user namespace there is no inner id: it is the outer one.
        let user = flags & libc::CLONE_NEWUSER != 0;
        let uid = own.map(|inner| if user { inner } else { own_id() });
        let given = self.jail.then(|| Given::new(flags, uid));
        let (wait, go) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let (failure, fail) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let plan = Plan::new(self, given.as_ref(), wait, fail)?;
        let not_in_child = [go.as_raw_fd(), failure.as_raw_fd()];
        let mut child = match clone(flags).map_err(LaunchError::Clone)? {
            Some(child) => child,
            None => plan.run(not_in_child),
        };
        drop(plan);
        if user {
            map_ids(child.pid(), own.is_some())?;
        }
        child.unlimited = group.and_then(|group| group.add(child.pid()).err());
        let mut go = fs::File::from(go);
        go.write_all(&[1])?;
        drop(go);
        let mut code = Vec::new();
        fs::File::from(failure).read_to_end(&mut code)?;
        match <[u8; 4]>::try_from(code) {
            Ok(code) => Err(LaunchError::Exec(io::Error::from_raw_os_error(
                i32::from_ne_bytes(code),
            ))),
            Err(_) => Ok(child),
        }
    }
}

/// An id that no other payload of this host has while this one lives: a
/// monitor has one payload.
fn own_id() -> u32 {
    OWN_IDS + std::process::id()
}

/// Whether these namespaces can be had: makes a process that ends at once.
fn try_clone(flags: i32) -> io::Result<()> {
    match clone(flags)? {
        Some(child) => {
            drop(child);
            Ok(())
        }
        // SAFETY: ends the child, without any of the parent's clean-up.
        None => unsafe { libc::_exit(0) },
    }
}

/// Those namespaces that can be had.
fn possible() -> i32 {
    let user = libc::CLONE_NEWUSER;
    let base = if try_clone(user).is_ok() { user } else { 0 };
    NAMESPACES
        .iter()
        .map(|(flag, ..)| base | flag)
        .filter(|flags| try_clone(*flags).is_ok())
        .fold(base, |all, flags| all | flags)
}

/// Says which ids of the host those in the namespace are.
fn map_ids(child: Pid, own: bool) -> io::Result<()> {
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/{}/{file}", child.as_raw_nonzero()), text)
    };
    let map = |outer: u32| {
        if own {
            format!("0 {outer} 1\n{INNER_ID} {} 1\n", own_id())
        } else {
            format!("0 {outer} 1\n")
        }
    };
    if !own {
        // Else a user could leave a group that is denied something
        // (user_namespaces(7)).
        write("setgroups", "deny".to_owned())?;
    }
    write("gid_map", map(getegid().as_raw()))?;
    write("uid_map", map(geteuid().as_raw()))
}

/// A child like this process, in new namespaces; `None` is the child.
fn clone(flags: i32) -> io::Result<Option<Child>> {
    let mut exit: RawFd = -1;
    let flags = flags | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is fork(2): the child has a copy of all
    // memory and its own stack in it. The descriptor is written to `exit`.
    // Who calls this has one thread, or a child that only makes system calls.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            0usize,
            &raw mut exit,
            0usize,
            0usize,
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    Ok(Some(Child {
        pid,
        // SAFETY: the kernel made it for us, closed on exec.
        exit: unsafe { OwnedFd::from_raw_fd(exit) },
        status: None,
        unlimited: None,
    }))
}

/// A descriptor that is not one of the first three.
fn above_standard(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(descriptor);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(
        &descriptor,
        libc::STDERR_FILENO + 1,
    )?)
}

/// Everything that the child needs, made before there is one: there it makes
/// system calls only.
struct Plan {
    program: CString,
    /// Owns what the next two point to.
    _words: [Vec<CString>; 2],
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    descriptors: [OwnedFd; 3],
    /// A byte comes here when the parent is ready.
    wait: OwnedFd,
    /// Why it did not become the program.
    fail: OwnedFd,
}

impl Plan {
    fn new(
        launch: &Launch,
        given: Option<&Given>,
        wait: OwnedFd,
        fail: OwnedFd,
    ) -> Result<Self, LaunchError> {
        let word = |bytes: &[u8]| CString::new(bytes).map_err(|_| LaunchError::Name);
        let program = word(launch.program.as_os_str().as_bytes())?;
        let added = given.map(Given::arguments).unwrap_or_default();
        let words = |first: Option<&CString>, words: &[OsString]| {
            let rest = words.iter().map(|one| word(one.as_bytes()));
            let first = first.cloned().map(Ok);
            first.into_iter().chain(rest).collect::<Result<Vec<_>, _>>()
        };
        let pointers = |words: &[CString]| {
            let all = words.iter().map(|word| word.as_ptr());
            all.chain([ptr::null()]).collect()
        };
        let arguments = words(Some(&program), &[&launch.arguments[..], &added].concat())?;
        let environment = words(None, &launch.environment)?;
        let copy = |descriptor: &OwnedFd| descriptor.try_clone().and_then(above_standard);
        let [input, output, error] = &launch.descriptors;
        Ok(Plan {
            program,
            arguments: pointers(&arguments),
            environment: pointers(&environment),
            _words: [arguments, environment],
            descriptors: [copy(input)?, copy(output)?, copy(error)?],
            wait: above_standard(wait)?,
            fail: above_standard(fail)?,
        })
    }

    /// Closes the parent's ends, waits for it, and becomes the program.
    fn run(&self, not_in_child: [RawFd; 2]) -> ! {
        // SAFETY: system calls with descriptors and memory of our own; the
        // process ends with them, one way or the other.
        unsafe {
            for descriptor in not_in_child {
                libc::close(descriptor);
            }
            let mut go = 0u8;
            if libc::read(self.wait.as_raw_fd(), (&raw mut go).cast(), 1) != 1 {
                // The parent gave up, or is gone.
                libc::_exit(FAILED);
            }
            self.exec();
            let code = Errno::from_io_error(&io::Error::last_os_error())
                .map_or(libc::EIO, Errno::raw_os_error)
                .to_ne_bytes();
            libc::write(self.fail.as_raw_fd(), code.as_ptr().cast(), code.len());
            libc::_exit(FAILED)
        }
    }

    /// Returns only if something fails.
    ///
    /// # Safety
    /// Only in a child that is to become the program.
    unsafe fn exec(&self) {
        // SAFETY: as promised by the caller.
        unsafe {
            for (at, descriptor) in (0..).zip(&self.descriptors) {
                if libc::dup2(descriptor.as_raw_fd(), at) < 0 {
                    return;
                }
            }
            // A kernel without this call leaves what was opened by others
            // than Croft without a mark; Croft marks all of its own.
            libc::syscall(
                libc::SYS_close_range,
                3u32,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            // Signals as a new process expects them, no terminal.
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::setsid();
            if libc::chdir(c"/".as_ptr()) != 0 {
                return;
            }
            libc::execve(
                self.program.as_ptr(),
                self.arguments.as_ptr(),
                self.environment.as_ptr(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_learns_what_it_was_given() {
        let all = NAMESPACES.iter().fold(0, |all, (flag, ..)| all | flag);
        for (flags, uid) in [(all, Some(1)), (libc::CLONE_NEWUSER, None), (0, Some(7))] {
            let given = Given::new(flags, uid);
            let back = Given::parse(given.arguments().into_iter());
            assert_eq!(given, back);
        }
        let half = Given::new(libc::CLONE_NEWIPC, None);
        assert!(!half.has(Piece::Names) && !half.has(Piece::User));
        assert_eq!(
            half.parts()
                .iter()
                .filter(|part| part.state.is_err())
                .count(),
            5
        );
    }
}
