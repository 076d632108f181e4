//! The clone that becomes a container's init, or a program in a container.
//!
//! Nothing else is between maker and init, but where a user or pid namespace
//! of others is joined: who joins such a one is not in it, only those whom it
//! then makes are. A go-between does that, and ends.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use oci_spec::runtime::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, pidfd_send_signal, waitid, waitpid,
};

use crate::channel::{self, Message, receive, send};
use crate::error::At;
use crate::init::program::not_become;
use crate::namespaces::{PID, USER};
use crate::{Error, Groups, Step, aside, sys};

/// A child that is not done yet. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// The way to talk to it.
    pub channel: OwnedFd,
    /// It is not waited for after that.
    pub deadline: Option<Instant>,
    done: bool,
}

/// What it is cloned with.
#[derive(Debug)]
pub struct Launch<'a> {
    /// New namespaces.
    pub new: u64,
    /// Where the namespaces are that only children are in: of a kind each, or
    /// of one process.
    pub user: Option<BorrowedFd<'a>>,
    pub pid: Option<BorrowedFd<'a>>,
    pub groups: &'a Groups,
}

impl Launch<'_> {
    /// Clones, and has `body` run in the clone; it returns only if it failed.
    pub fn start(&self, body: impl FnOnce(&OwnedFd) -> Error) -> Result<Child, Error> {
        let what = || "making a process for the container";
        let (ours, theirs) = channel::pair().at(Step::Init, what)?;
        let ends = Ends {
            ours: Cell::new(Some(ours)),
            theirs,
        };
        let hidden = Hidden::new(self.user.is_some() || self.pid.is_some());
        let made = if self.user.is_some() {
            self.by_another(&ends, body)?
        } else if let Some(pid) = self.pid {
            self.in_pid_namespace(pid, &ends, body)?
        } else {
            self.directly(0, &ends, body)?
        };
        drop(hidden);
        let channel = ends.ours.take();
        Ok(Child {
            pid: made.0,
            pidfd: made.1,
            channel: channel.ok_or_else(|| Error::new(Step::Init, "a channel without an end"))?,
            deadline: None,
            done: false,
        })
    }

    fn directly(
        &self,
        flags: u64,
        ends: &Ends,
        body: impl FnOnce(&OwnedFd) -> Error,
    ) -> Result<(Pid, OwnedFd), Error> {
        let channel = &ends.theirs;
        let group = self.groups.unified.as_ref().map(AsFd::as_fd);
        let made = match sys::clone3(self.new | flags, group) {
            // The group may refuse whom it would take by a write.
            Err(_) if group.is_some() => match sys::clone3(self.new | flags, None) {
                Ok(None) => {
                    if let Err(error) = self.groups.enter_unified() {
                        let text = format!("entering the control group: {error}");
                        refuse(channel, Error::new(Step::Groups, text));
                    }
                    Ok(None)
                }
                result => result,
            },
            result => result,
        };
        let made = made.map_err(|error| {
            let hint = match error {
                Errno::PERM => "; without root's rights it needs a user namespace",
                Errno::NOSPC => "; too many namespaces are nested, or there (/proc/sys/user)",
                _ => "",
            };
            let text = format!("making the container's namespaces: {error}{hint}");
            Error::new(Step::Namespaces, text)
        })?;
        match made {
            Some(made) => Ok(made),
            None => {
                drop(ends.ours.take());
                // A panic must not run what is the maker's.
                let result = catch_unwind(AssertUnwindSafe(|| body(channel)));
                let failed = |_| Error::new(Step::Init, "a fault of Croft's own in its init");
                refuse(channel, result.unwrap_or_else(failed))
            }
        }
    }

    /// The clone is in a pid namespace that this process may join for its
    /// children.
    fn in_pid_namespace(
        &self,
        pid: BorrowedFd<'_>,
        ends: &Ends,
        body: impl FnOnce(&OwnedFd) -> Error,
    ) -> Result<(Pid, OwnedFd), Error> {
        let what = || "the pid namespace";
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let own = openat(CWD, c"/proc/self/ns/pid", flags, Mode::empty());
        let own = own.at(Step::Namespaces, what)?;
        sys::setns(pid, PID).at(Step::Namespaces, what)?;
        let made = self.directly(0, ends, body);
        sys::setns(own, PID).at(Step::Namespaces, what)?;
        made
    }

    /// The clone is made by a go-between, which has joined the namespaces.
    fn by_another(
        &self,
        ends: &Ends,
        body: impl FnOnce(&OwnedFd) -> Error,
    ) -> Result<(Pid, OwnedFd), Error> {
        let what = || "making a process for the container";
        let (ours, theirs) = channel::pair().at(Step::Init, what)?;
        let made = sys::clone3(0, None).at(Step::Namespaces, what)?;
        let Some((pid, _)) = made else {
            drop(ours);
            let join = || -> Result<(), Error> {
                for (namespace, flag) in [(self.user, USER), (self.pid, PID)] {
                    if let Some(namespace) = namespace {
                        let name = crate::namespaces::name(flag);
                        sys::setns(namespace, flag)
                            .at(Step::Namespaces, || format!("joining {name}"))?;
                    }
                }
                let parent = libc::CLONE_PARENT as u64;
                let (pid, pidfd) = self.directly(parent, ends, body)?;
                let message = Message::Other(pid.as_raw_nonzero().get());
                send(&theirs, &message, &[pidfd.as_fd()]).at(Step::Init, || "its maker")
            };
            match join() {
                Ok(()) => sys::leave(0),
                Err(error) => refuse(&theirs, error),
            }
        };
        drop(theirs);
        let answer = receive(&ours);
        // It ends whatever it said.
        let _ = waitpid(Some(pid), WaitOptions::empty());
        match answer.at(Step::Init, what)? {
            Some((Message::Other(id), mut handles)) => {
                let made = Pid::from_raw(id).zip(handles.pop());
                made.ok_or_else(|| Error::new(Step::Init, "the go-between is confused"))
            }
            Some((Message::Failed(error), _)) => Err(error),
            _ => Err(Error::new(Step::Init, "the go-between ended")),
        }
    }
}

/// Both ends of the way to talk. The clone closes the maker's, or it would
/// wait for ever for a maker that was killed.
struct Ends {
    ours: Cell<Option<OwnedFd>>,
    theirs: OwnedFd,
}

/// Says what is wrong, and ends.
pub fn refuse(channel: &OwnedFd, error: Error) -> ! {
    // Its maker may be gone.
    let _ = send(channel, &Message::Failed(error), &[]);
    sys::leave(1)
}

/// While a clone is made, and in the clone, nobody may look into this process
/// by `/proc`: who is in a container already sees the clone from its first
/// moment, and the clone has the maker's memory and descriptors.
struct Hidden {
    before: Option<i32>,
}

impl Hidden {
    fn new(joined: bool) -> Self {
        // Without root's rights the files in /proc by which ids are mapped
        // would not be the user's.
        if !joined && !rustix::process::geteuid().is_root() {
            return Hidden { before: None };
        }
        let before = sys::prctl(libc::PR_GET_DUMPABLE, 0, 0).ok();
        // It is refused for other values only.
        let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0, 0);
        Hidden { before }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Ok(before) = u64::try_from(before)
        {
            // 2 cannot be set, only be there; 0 is as good.
            let _ = sys::prctl(libc::PR_SET_DUMPABLE, before, 0);
        }
    }
}

impl Child {
    /// What it says next. That it failed, or ended, is an error.
    pub fn next(&mut self) -> Result<(Message, Vec<OwnedFd>), Error> {
        match self.receive()? {
            Some((Message::Failed(error), _)) => Err(error),
            Some(message) => Ok(message),
            None => {
                let text = format!("the container's init ended: {}", self.end());
                Err(Error::new(Step::Init, text))
            }
        }
    }

    /// Tells it to go on. If it is gone, the error is what it said, or how it
    /// ended.
    pub fn go(&mut self, handles: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match send(&self.channel, &Message::Go, handles) {
            Err(Errno::PIPE | Errno::CONNRESET) => loop {
                self.next()?;
            },
            sent => sent.at(Step::Init, || "the container's init"),
        }
    }

    /// It runs its program, or lives on its own: the end of the stream, or what
    /// is wrong.
    pub fn await_program(&mut self, process: &Process) -> Result<(), Error> {
        match self.receive()? {
            None => {
                self.done = true;
                Ok(())
            }
            Some((Message::Failed(error), _)) => {
                self.end();
                Err(error)
            }
            Some((Message::NotRun(error), _)) => {
                self.end();
                let words = process.args().as_deref().unwrap_or_default();
                let name = words.first().map_or("the program", String::as_str);
                Err(not_become(name, error))
            }
            Some(_) => Err(Error::new(Step::Init, "the container's init is confused")),
        }
    }

    /// Waits for it, until the deadline: whoever is in the container already
    /// may stop it on its way.
    fn receive(&self) -> Result<Option<(Message, Vec<OwnedFd>)>, Error> {
        let what = || "the container's init";
        while let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).at(Step::Init, what)?;
            let mut wanted = [PollFd::new(&self.channel, PollFlags::IN)];
            match poll(&mut wanted, Some(&left)) {
                Ok(0) => {
                    let text = "the program does not begin: something in the container keeps it from it, or has stopped it";
                    return Err(Error::new(Step::Init, text));
                }
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).at(Step::Init, what),
            }
        }
        receive(&self.channel).at(Step::Init, what)
    }

    /// Leaves it to itself.
    pub fn release(&mut self) {
        self.done = true;
    }

    /// Kills and reaps it, and says how it ended.
    fn end(&mut self) -> String {
        self.done = true;
        let ended = match self.deadline {
            // Nor is its end waited for without one.
            Some(_) => aside::end(self.pidfd.as_fd()),
            None => {
                // It may have ended by itself.
                let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
                let ended = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
                ended.ok().flatten()
            }
        };
        match ended {
            Some(status) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (_, Some(signal)) => format!("signal {signal}"),
                _ => "stopped".to_owned(),
            },
            None => "how, nobody knows".to_owned(),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.done {
            self.end();
        }
    }
}
