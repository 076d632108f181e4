//! Between the host and the agent in a machine's guest.
//!
//! ```text
//! host                            agent              ready channel:
//!    │── Hello ──────────────────────►│              agent            monitor
//!    │◄────────────────────── Hello ──│                 │── Hello ─────►│
//!    │── Request ────────────────────►│                 │── Ready ─────►│
//!    │◄─ Reply, data ⇄ data, Control ►│                 │◄──── end ─────│
//!    │             end                │
//! ```
//!
//! The agent listens at the guest's vsock port [`PORT`]. One connection is one
//! task, so that nothing is multiplexed: a terminal that stalls, or a file
//! that is slow, holds up nobody else. When the agent has come up it connects
//! to the host's port [`READY_PORT`] and says so.
//!
//! Images are older than hosts, so unlike Croft's own processes the two ends
//! need not speak the same version: see [`check`].
//!
//! A connection carries frames:
//!
//! ```text
//! offset  0        4      5
//!         ┌────────┬──────┬──────────────────┐
//!         │ length │ kind │ `length` bytes   │
//!         └────────┴──────┴──────────────────┘
//! ```
//!
//! `length` is little-endian and at most [`FRAME_MAX`]; [`FrameKind`] says
//! whether the bytes are a JSON message or data of a stream. A data frame
//! without bytes ends its stream. Each end takes the other for hostile.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::hello::{Hello, Protocol};
use crate::wire::WireError;

/// What this build speaks. Goes up when a request, or a field that changes
/// what one means, is added; what is there already never changes.
pub const PROTOCOL: Protocol = Protocol {
    name: "croft-agent",
    version: 1,
};
/// The guest's vsock port at which the agent listens. It is below 1024, so
/// that only the guest's root can listen there and be taken for the agent.
pub const PORT: u32 = 1023;
/// The host's vsock port at which the monitor hears that the agent is ready.
pub const READY_PORT: u32 = 1;
/// The host's address as a guest sees it (virtio 1.3, 5.10.4).
pub const HOST_CID: u32 = 2;

/// Bytes before the contents of a frame.
pub const FRAME_HEADER: usize = 5;
/// Longest contents of a frame in bytes.
pub const FRAME_MAX: usize = 256 * 1024;
/// Deepest directory of a tree that is copied: its root is 1. Each level
/// holds a descriptor at both ends.
pub const DEPTH_MAX: usize = 200;
/// Longest time in seconds for which file systems stay frozen.
pub const FREEZE_MAX: u32 = 300;

/// What a frame contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A [`Hello`], [`Request`], [`Reply`], [`Control`], [`Entry`] or
    /// [`Ready`], in JSON.
    Message,
    /// To a command's standard input, or its terminal.
    Stdin,
    /// From its standard output, or its terminal.
    Stdout,
    /// From its standard error.
    Stderr,
    /// Of the file whose [`Entry`] came last.
    File,
}

impl FrameKind {
    /// All of them; each one's place is its number on the wire.
    const ALL: [FrameKind; 5] = [
        FrameKind::Message,
        FrameKind::Stdin,
        FrameKind::Stdout,
        FrameKind::Stderr,
        FrameKind::File,
    ];

    /// The number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// By its number on the wire.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// Accepts the greeting of `peer`, any version of the agent's protocol, and
/// says which one both understand: the lower one.
pub fn check(hello: &Hello, peer: &'static str) -> Result<u32, WireError> {
    if hello.protocol == PROTOCOL.name && hello.version >= 1 {
        return Ok(hello.version.min(PROTOCOL.version));
    }
    Err(WireError::Version {
        peer,
        theirs: hello.to_string(),
        ours: Hello::new(PROTOCOL).to_string(),
    })
}

/// What the host asks of the agent: one of these on each connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Run a command. Answered by [`Reply::Started`], output, the ends of its
    /// outputs and [`Reply::Exited`]; the host sends input and [`Control`].
    /// If the connection ends before the command does, it is hung up on.
    Exec(Exec),
    /// Receive a file or tree: [`Entry`]s and data follow, the last one
    /// [`Entry::End`]. Answered by [`Reply::Copied`] at the end, or by a
    /// failure, after which the agent still reads what comes.
    Put(Put),
    /// Send a file or tree: answered by [`Reply::Sending`], [`Entry`]s and
    /// data, the last one [`Entry::End`].
    Get(Get),
    /// Answered by [`Reply::Addresses`].
    Addresses,
    /// Freeze all file systems that can be written, for at most this many
    /// seconds (and [`FREEZE_MAX`]): then, or when the connection ends, they
    /// thaw. Answered by [`Reply::Frozen`] when they are frozen; the host
    /// sends [`Control::Thaw`] and hears [`Reply::Thawed`].
    Freeze {
        /// Seconds.
        timeout: u32,
    },
    /// End or restart the guest, in order. Answered by [`Reply::Done`] when
    /// it has begun.
    Shutdown(Shutdown),
    /// Set the clock, if it is off by more than a second. Answered by
    /// [`Reply::Done`].
    SetTime {
        /// Nanoseconds since 1970, UTC.
        nanoseconds: u64,
    },
    /// Answered by [`Reply::Ready`]: for a host that missed the signal.
    State,
}

/// A command to run in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments; empty for the user's login shell. A program
    /// without a slash is looked for in the user's `PATH`.
    pub argv: Vec<OsString>,
    /// Variables to set, beside the few that a login has.
    #[serde(default)]
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; the user's home if not given.
    #[serde(default)]
    pub cwd: Option<OsString>,
    /// Name or number of the user; root if not given.
    #[serde(default)]
    pub user: Option<String>,
    /// Give it a terminal of this size. It has then no standard error of its
    /// own.
    #[serde(default)]
    pub pty: Option<Size>,
    /// Whether the host sends input. Without, and without a terminal, the
    /// command reads nothing.
    #[serde(default)]
    pub stdin: bool,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Where a file or tree is to be put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Absolute path. What comes is put into it under the name that it has if
    /// this is a directory, else it is called so.
    pub path: OsString,
    /// Owner and group to give everything; those of each entry if not given.
    #[serde(default)]
    pub owner: Option<(u32, u32)>,
}

/// What file or tree is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Absolute path. If it is a symbolic link what it leads to is sent; links
    /// below it are sent as links.
    pub path: OsString,
}

/// How the guest shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shutdown {
    /// Off.
    Poweroff,
    /// And up again.
    Reboot,
}

/// What the host says while a task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// The command's terminal has another size.
    Resize(Size),
    /// Send this signal (its Linux number) to the command's process group.
    Signal(i32),
    /// Thaw what is frozen.
    Thaw,
}

/// The agent's answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The command runs.
    Started {
        /// As this process of the guest.
        pid: u32,
    },
    /// It ended, and all its output has been sent.
    Exited(Exit),
    /// The entries of what is wanted follow.
    Sending,
    /// Everything has been written.
    Copied {
        /// Number of files, links and directories.
        entries: u64,
    },
    /// The guest's interfaces, without the loopback.
    Addresses(Vec<Interface>),
    /// File systems are frozen.
    Frozen {
        /// So many.
        filesystems: u32,
    },
    /// They are not any more.
    Thawed {
        /// Whether their time had run out before they were to be thawed: what
        /// was copied meanwhile is not of one moment.
        late: bool,
    },
    /// The agent's state.
    Ready(Ready),
    /// It is done.
    Done,
    /// It is not. The task is over.
    Failed {
        /// What kind of failure.
        kind: Failure,
        /// What went wrong, on what.
        message: String,
    },
}

/// Kinds of failures, as far as somebody acts on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// There is no such program.
    NotFound,
    /// The program cannot be executed.
    NotExecutable,
    /// The agent does not know such a request: it is older than the host.
    Unknown,
    /// Anything else.
    Other,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with this status.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

/// One step of a file or tree on its way. Names are single components; a
/// receiver refuses others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// A directory; the entries up to its [`Entry::Leave`] are in it.
    Directory(Meta),
    /// A regular file; [`FrameKind::File`] frames with exactly `size` bytes
    /// follow. If it shrank meanwhile, an empty frame ends it early and the
    /// receiver fails.
    File {
        /// About it.
        meta: Meta,
        /// Bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// About it.
        meta: Meta,
        /// Where it leads, as it is.
        target: OsString,
    },
    /// Something that is not copied: a device, a pipe, a socket, or what
    /// could not be read.
    Skipped {
        /// Its name.
        name: OsString,
        /// Why.
        reason: String,
    },
    /// The sender cannot go on: why. Nothing follows.
    Failed {
        /// What went wrong, on what.
        message: String,
    },
    /// The end of the innermost directory.
    Leave,
    /// Of everything.
    End,
}

/// What a file is called and how it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Its name without a path.
    pub name: OsString,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970 of its last change.
    pub modified: i64,
}

/// A network interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as text with colons; empty if it has none.
    pub mac: String,
    /// Its addresses: `192.0.2.7/24`, `fe80::1/64`.
    pub addresses: Vec<String>,
}

/// The guest is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Different after each boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The agent's version of Croft.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_their_numbers() {
        for number in 0..=u8::MAX {
            let kind = FrameKind::from_number(number);
            assert!(kind.is_none_or(|kind| kind.number() == number));
        }
        assert_eq!(FrameKind::from_number(4), Some(FrameKind::File));
        assert_eq!(FrameKind::from_number(5), None);
    }

    #[test]
    fn the_lower_version_counts() {
        let mut hello = Hello::new(PROTOCOL);
        hello.version = 99;
        assert_eq!(check(&hello, "agent").unwrap(), PROTOCOL.version);
        hello.version = 0;
        assert!(check(&hello, "agent").is_err());
        let other = Hello::new(crate::vmm::PROTOCOL);
        let said = check(&other, "agent").unwrap_err().to_string();
        assert!(said.contains("agent speaks croft-vmm"), "{said}");
    }

    #[test]
    fn fields_that_came_later_may_be_missing() {
        let exec: Request = serde_json::from_str(r#"{"exec":{"argv":[]}}"#).unwrap();
        assert_eq!(exec, Request::Exec(Exec::default()));
    }
}
