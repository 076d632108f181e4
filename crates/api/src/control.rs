//! At an instance's control socket, a file that its owner can connect to:
//! between a command of `croft` (or the daemon) and the instance's monitor.
//!
//! ```text
//! croft                          monitor
//!    │── Request ───────────────────►│
//!    │◄───── its answer, in order ───│
//!    │                               │
//!    │── Watch ─────────────────────►│
//!    │◄── Status, now and at every ──│   between the answers
//!    │    change; Log                │
//! ```
//!
//! Each request is answered by one event: the one that its documentation
//! names, or [`Event::Failed`]. Requests may be sent before the last answer is
//! there. Who asks for a change and wants to see its end watches first.
//!
//! Nothing that was asked for depends on whether whoever asked stays.

use serde::{Deserialize, Serialize};

use crate::container::{ContainerLimits, ContainerStats, ExecSpec};
use crate::disk::RunDisk;
use crate::hello::Protocol;
use crate::instance::Status;
use crate::net::{NicChange, NicSpec};

/// What this build speaks.
pub const PROTOCOL: Protocol = Protocol {
    name: "croft-control",
    version: 4,
};

/// Longest time to wait for a guest to end by itself, in milliseconds: a day.
pub const TIMEOUT_MAX: u64 = 24 * 60 * 60 * 1000;

/// A command to the monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Tell what is known ([`Event::Status`]).
    Status,
    /// Tell it now and at every change ([`Event::Status`]), and pass on what
    /// there is to log ([`Event::Log`]). A watcher that does not read is
    /// disconnected.
    Watch,
    /// Save the machine to the regular file whose descriptor comes along,
    /// open for writing, and end it ([`Event::Saved`]).
    Save,
    /// Press the power button ([`Event::Done`]); what comes of it is the
    /// guest's business.
    PowerButton,
    /// End: press the power button, and pull the plug when `timeout`
    /// milliseconds have passed ([`Event::Done`], at once). With a timeout of
    /// 0 the plug alone.
    Stop {
        /// In milliseconds, at most [`TIMEOUT_MAX`].
        timeout: u64,
    },
    /// End now, by killing the payload ([`Event::Done`], at once).
    Kill,
    /// As [`Request::Stop`], and start again ([`Event::Done`], at once).
    Restart {
        /// In milliseconds, at most [`TIMEOUT_MAX`].
        timeout: u64,
    },
    /// Hold it ([`Event::Done`], at once).
    Pause,
    /// Let it continue ([`Event::Done`], at once).
    Resume,
    /// A console ([`Event::Attached`], with a descriptor): first what it
    /// printed last, then what it prints; at the descriptor's end of file the
    /// instance has ended. Who reads too slowly is told so and misses some.
    Attach {
        /// Which console.
        console: u32,
        /// Whether to write to it.
        writing: Writing,
        /// So many lines of the past at most; all that is there if not given.
        lines: Option<u32>,
    },
    /// A connection to a port of the guest's vsock ([`Event::Connected`],
    /// with a descriptor).
    Connect {
        /// The guest's port.
        port: u32,
    },
    /// Make this disk, counted from 0, so many bytes large: not less than it
    /// is ([`Event::Done`], when it is lasting and the guest was told).
    ResizeDisk {
        /// Which.
        disk: u32,
        /// Its size.
        bytes: u64,
    },
    /// Plug a disk in, whose paths are absolute ([`Event::Plugged`], when it is
    /// there and the guest was told). A place that is taken, a file in use and
    /// the like are refused.
    AttachDisk {
        /// The disk.
        disk: RunDisk,
        /// Until the instance's next start only; else it belongs to its
        /// configuration from now on.
        live_only: bool,
    },
    /// Plug a NIC in ([`Event::Plugged`], when it is there and the guest was
    /// told).
    AttachNic {
        /// The NIC.
        nic: Box<NicSpec>,
        /// Until the instance's next start only; else it belongs to its
        /// configuration from now on.
        live_only: bool,
    },
    /// Change a NIC that is plugged in ([`Event::Done`], at once).
    SetNic {
        /// Its name.
        nic: String,
        /// What becomes of it.
        change: NicChange,
        /// Until the instance's next start only.
        live_only: bool,
    },
    /// Unplug a device: ask the guest to release it ([`Event::Done`], when it
    /// has and nothing of the device is open any more, which may be never).
    /// The request stands when whoever asked is gone, until the guest's next
    /// reset or start, which completes it; it may be repeated, which asks the
    /// guest again.
    Detach {
        /// Its name: `disk1`, `net0`.
        device: String,
        /// Take it away at once, whatever the guest says.
        force: bool,
        /// It is there again at the instance's next start.
        live_only: bool,
    },
    /// A container's standard streams ([`Event::Streams`], with descriptors:
    /// its terminal's, or those of its standard input and output, and of its
    /// standard error). Who reads too slowly is told so and misses some.
    AttachStreams {
        /// Whether to write to its standard input.
        writing: Writing,
        /// So many lines of the past at most; all that is there if not given.
        lines: Option<u32>,
    },
    /// Run a command in a container ([`Event::ExecStarted`]); what comes of it
    /// is told to this connection alone ([`Event::ExecEnded`]). Its standard
    /// input, output and error come along, unless it gets a terminal, whose
    /// descriptor then comes with the answer.
    Exec(Box<ExecSpec>),
    /// A signal to a command of this connection ([`Event::Done`]).
    ExecSignal {
        /// Which, by [`Event::ExecStarted`].
        id: u64,
        /// Its number.
        signal: i32,
    },
    /// A signal to a container's init ([`Event::Done`]).
    Signal {
        /// Its number.
        signal: i32,
    },
    /// What a container uses ([`Event::Stats`]).
    Stats,
    /// Which processes a container has ([`Event::Processes`]).
    Processes,
    /// What a container may use from now on, at its next start too
    /// ([`Event::Done`], when it is so).
    SetLimits(Box<ContainerLimits>),
    /// A console of a terminal that has this size now ([`Event::Done`]).
    ResizeConsole {
        /// Which console.
        console: u32,
        /// Characters in a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
}

/// Whether to write to a console. It has one writer at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writing {
    /// Only look.
    No,
    /// If nobody else does.
    IfFree,
    /// From now on, instead of whoever does.
    Take,
}

impl Request {
    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Request::Save => 1,
            Request::Exec(exec) if exec.tty.is_none() => 3,
            _ => 0,
        }
    }
}

/// The monitor to the command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// What is known.
    Status(Box<Status>),
    /// It is begun, or done.
    Done,
    /// It is saved, and nothing of it runs any more.
    Saved,
    /// A console; its descriptor comes along.
    Attached {
        /// Whether what is written to it goes to the guest.
        writer: bool,
    },
    /// A container's streams; one descriptor comes along if they are a
    /// terminal, else two.
    Streams {
        /// Whether what is written to them goes to the container.
        writer: bool,
    },
    /// A command runs; a descriptor comes along if it has a terminal.
    ExecStarted {
        /// Its number, for this connection.
        id: u64,
        /// Its process, as the host counts.
        pid: u32,
    },
    /// A command has ended.
    ExecEnded {
        /// Its number.
        id: u64,
        /// Its exit status; 128 and its number if a signal ended it.
        status: u8,
    },
    /// What a container uses.
    Stats(Box<ContainerStats>),
    /// A container's processes, as the host counts.
    Processes {
        /// Their numbers.
        pids: Vec<u32>,
    },
    /// A command was not started.
    ExecFailed {
        /// What a shell would exit with: 126, 127, or 125 for all else.
        status: u8,
        /// Why not.
        message: String,
    },
    /// A device is plugged in.
    Plugged {
        /// Its name.
        device: String,
    },
    /// A connection to the guest; its descriptor comes along.
    Connected,
    /// A line for the operator.
    Log {
        /// Without a line end.
        text: String,
    },
    /// It was not done, and nothing has changed.
    Failed {
        /// Why not, and what to do.
        message: String,
    },
}

impl Event {
    /// Whether it answers a request, and is not what watchers hear.
    pub fn is_answer(&self) -> bool {
        !matches!(
            self,
            Event::Status(_) | Event::Log { .. } | Event::ExecEnded { .. }
        )
    }
}
