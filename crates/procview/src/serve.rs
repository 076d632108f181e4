//! The two processes of the server, and what becomes of them when one is killed.
//!
//! ```text
//! server ──► worker      the worker ends: the server makes another
//!    ✕       worker ──► holder     the server ends: the worker goes on, and
//!                          ✕       makes who makes another when it ends
//! holder ──► worker
//! ```
//!
//! All of them have the file system's device, which must never be nobody's: its
//! files would be lost to the containers that have them. They end when the last
//! of those has.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use croft_isolate::cgroups::Hierarchies;
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::{Errno, read, write};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdFlags, getppid, pidfd_open};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use crate::FILES;
use crate::content::text;
use crate::fuse::{Answer, REQUEST, Request, reply};
use crate::load::{Loads, STEP};
use crate::reader::Reader;

/// How many openings are remembered: each has its text, so that a file that is
/// read in pieces is of one moment. A container may have more; those are made
/// anew for each piece.
const OPENINGS: usize = 256;
/// Before a worker that ended is replaced.
const PAUSE: Duration = Duration::from_millis(100);
/// Who does not take the descriptors for so long goes without.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same program again, in another part.
fn again(part: &str, directory: &Path, input: Stdio) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0("croft-procview")
        .arg(part)
        .arg(directory)
        .stdin(input)
        .spawn()
}

/// Starts the server and is done: whoever waits for this is not its parent.
pub fn start(directory: &Path) -> io::Result<()> {
    again("serve", directory, Stdio::inherit()).map(drop)
}

/// The server: standard input is its socket.
pub fn serve(directory: &Path) -> io::Result<()> {
    // Whose terminal it was started on is not its business. It has none if it
    // leads a session already.
    let _ = rustix::process::setsid();
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    unshare(CloneFlags::CLONE_NEWNS)?;
    let all = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", all)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = open("/dev/fuse", flags, Mode::empty())?;
    mount(device.as_fd(), directory)?;
    let mut worker = work_for(&device, directory)?;
    let root = open(directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let file = |name| openat(&root, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let files = FILES.iter().map(|one| file(one.name));
    let files: Vec<OwnedFd> = files.collect::<Result<_, _>>()?;
    loop {
        let id = worker.id().cast_signed();
        let id = rustix::process::Pid::from_raw(id).ok_or(io::ErrorKind::InvalidData)?;
        let end = pidfd_open(id, PidfdFlags::empty())?;
        while !ended(&end, &listener, &files)? {}
        worker.wait()?;
        std::thread::sleep(PAUSE);
        worker = work_for(&device, directory)?;
    }
}

/// Serves one that connects; whether the worker has ended.
fn ended(worker: &OwnedFd, listener: &UnixListener, files: &[OwnedFd]) -> io::Result<bool> {
    let mut polled = [
        PollFd::new(worker, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
    ];
    match poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let [worker, connected] = polled.map(|one| !one.revents().is_empty());
    if connected && let Ok((client, _)) = listener.accept() {
        // Its loss.
        let _ = give(&client, files);
    }
    Ok(worker)
}

/// Gives a client a mount of each file.
fn give(client: &UnixStream, files: &[OwnedFd]) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mounts = files.iter().map(|file| open_tree(file, "", flags));
    let mounts: Vec<OwnedFd> = mounts.collect::<Result<_, _>>()?;
    let borrowed: Vec<BorrowedFd<'_>> = mounts.iter().map(AsFd::as_fd).collect();
    client.set_write_timeout(Some(PATIENCE))?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&borrowed));
    sendmsg(
        client,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Mounts the file system over a directory, for this namespace alone.
fn mount(device: BorrowedFd<'_>, directory: &Path) -> io::Result<()> {
    let new = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = device.as_raw_fd().to_string();
    for (key, value) in [
        ("source", "croft"),
        ("fd", &number),
        ("rootmode", "40555"),
        ("user_id", "0"),
        ("group_id", "0"),
    ] {
        fsconfig_set_string(&new, key, value)?;
    }
    // Readers are of all ids.
    fsconfig_set_flag(&new, "allow_other")?;
    fsconfig_set_flag(&new, "default_permissions")?;
    fsconfig_create(&new)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&new, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&mount, "", CWD, directory, flags)?)
}

/// What takes the server's place when that is gone: it serves no new containers,
/// but those that have the files keep them. Standard input is the file system's
/// device, and its maker the worker.
pub fn hold(directory: &Path) -> io::Result<()> {
    let device = io::stdin().as_fd().try_clone_to_owned()?;
    let maker = Parent::look()?;
    // As soon as the worker has ended there is nobody who answers.
    maker.wait()?;
    loop {
        // One that has nothing more to do has ended well.
        if work_for(&device, directory)?.wait()?.success() {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whoever has made this process.
struct Parent(Option<OwnedFd>);

impl Parent {
    fn look() -> io::Result<Self> {
        let Some(parent) = getppid() else {
            return Ok(Parent(None));
        };
        let handle = match pidfd_open(parent, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(Parent(None)),
            handle => handle?,
        };
        // It may have ended before, and another have its number.
        let still = getppid() == Some(parent);
        Ok(Parent(still.then_some(handle)))
    }

    /// Until it has ended.
    fn wait(&self) -> io::Result<()> {
        let Some(handle) = &self.0 else {
            return Ok(());
        };
        loop {
            match poll(&mut [PollFd::new(handle, PollFlags::IN)], None) {
                Err(Errno::INTR) => {}
                done => return Ok(done.map(drop)?),
            }
        }
    }
}

fn work_for(device: &OwnedFd, directory: &Path) -> io::Result<Child> {
    again("work", directory, Stdio::from(device.try_clone()?))
}

/// The worker: standard input is the file system's device.
pub fn work(directory: &Path) -> io::Result<()> {
    let maker = Parent::look()?;
    // The server's own mount ends with the server: of what is mounted here it
    // would keep one that nobody else has. A worker without rights has none.
    if unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        unmount(directory, UnmountFlags::DETACH)?;
    }
    set_no_new_privs(true)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    let device = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let hierarchies = Hierarchies::find().map_err(io::Error::other)?;
    let mut worker = Worker {
        device,
        maker,
        holder: None,
        directory: directory.to_owned(),
        hierarchies,
        loads: Loads::default(),
        openings: VecDeque::with_capacity(OPENINGS),
        next: 1,
    };
    if worker.maker.0.is_none() {
        worker.replace_maker();
    }
    let mut request = vec![0; REQUEST];
    while worker.turn(&mut request)? {}
    Ok(())
}

struct Worker {
    device: File,
    /// Who makes another worker when this one has ended.
    maker: Parent,
    /// The same, if it is this one's child.
    holder: Option<Child>,
    directory: PathBuf,
    hierarchies: Hierarchies,
    loads: Loads,
    /// Texts of the latest openings.
    openings: VecDeque<(u64, String)>,
    next: u64,
}

impl Worker {
    /// Answers a request, or counts; whether there is more to come.
    fn turn(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let step = Timespec::try_from(STEP)
            .ok()
            .filter(|_| !self.loads.is_empty());
        let mut polled = vec![PollFd::new(&self.device, PollFlags::IN)];
        let maker = self.maker.0.iter();
        polled.extend(maker.map(|maker| PollFd::new(maker, PollFlags::IN)));
        match poll(&mut polled, step.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|one| !one.revents().is_empty());
        let (asked, alone) = (ready.next() == Some(true), ready.next() == Some(true));
        self.loads.step();
        if alone {
            self.replace_maker();
        }
        if !asked {
            return Ok(true);
        }
        let got = match read(&self.device, &mut *buffer) {
            Ok(got) => got,
            // Unmounted.
            Err(Errno::NODEV) => return Ok(false),
            // Whoever asked asks no more.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let Some(request) = Request::parse(buffer.get(..got).unwrap_or_default()) else {
            return Ok(true);
        };
        let answer = match request.answer(self.next) {
            Answer::None => return Ok(true),
            Answer::End => return Ok(false),
            Answer::Send(answer) => answer,
            Answer::Close { handle } => {
                self.openings.retain(|(one, _)| *one != handle);
                request.closed()
            }
            Answer::Read {
                file,
                handle,
                offset,
                size,
            } => reply(
                request.unique,
                Ok(self.piece(&request, file, handle, offset, size)),
            ),
        };
        // A handle is used up by any request, which is cheaper than to look.
        self.next += 1;
        // The asker may be gone by now.
        match write(&self.device, &answer) {
            Ok(_) | Err(Errno::NOENT | Errno::INVAL) => Ok(true),
            Err(Errno::NODEV) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The one there was has ended.
    fn replace_maker(&mut self) {
        if let Some(mut holder) = self.holder.take() {
            let _ = holder.wait();
        }
        let device = self.device.try_clone().map(Stdio::from);
        let holder = device.and_then(|device| again("hold", &self.directory, device));
        // Without one, this goes on nevertheless.
        self.holder = holder.ok();
        let id = self.holder.as_ref().map(|holder| holder.id().cast_signed());
        let id = id.and_then(rustix::process::Pid::from_raw);
        self.maker = Parent(id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok()));
    }

    fn piece(
        &mut self,
        request: &Request<'_>,
        file: usize,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Vec<u8> {
        // Reading from the beginning is reading anew.
        if offset == 0 {
            self.openings.retain(|(one, _)| *one != handle);
        }
        if !self.openings.iter().any(|(one, _)| *one == handle) {
            let reader = Reader::of(request.thread, &self.hierarchies);
            let text = text(file, reader.as_ref(), &mut self.loads);
            if self.openings.len() >= OPENINGS {
                self.openings.pop_front();
            }
            self.openings.push_back((handle, text));
        }
        let found = self.openings.iter().find(|(one, _)| *one == handle);
        let bytes = found.map(|(_, text)| text.as_bytes()).unwrap_or_default();
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let to = from.saturating_add(size).min(bytes.len());
        bytes.get(from..to).unwrap_or_default().to_vec()
    }
}
