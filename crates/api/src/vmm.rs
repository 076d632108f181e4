//! Between `croft-monitor` and `croft-vmm`.
//!
//! ```text
//! monitor                          vmm
//!    │── Start + descriptors ───────►│
//!    │◄──────────── Started ─────────│   or Stopped{Invalid}
//!    │── PowerButton, Pause, … ─────►│
//!    │◄──────────── Stopped ─────────│   its last message
//! ```

use serde::{Deserialize, Serialize};

use crate::disk::StartDisk;
use crate::hello::Protocol;
use crate::machine::MachineSpec;
use crate::net::{NicBackend, NicLimits, StartNic};
use crate::outcome::Outcome;

/// What this build speaks.
pub const PROTOCOL: Protocol = Protocol {
    name: "croft-vmm",
    version: 3,
};

/// The monitor to the vmm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Make the machine and run it. Comes with descriptors, in this order:
    /// console, the kernel and the initrd if named, the disks, the NICs'
    /// backends, the shares' directories, the state if `saved`, the debugger's listening socket if
    /// `gdb`, `/dev/kvm` if it was opened, a connected stream for each of the
    /// machine's console ports. The vmm gets no path to open, and could open
    /// none.
    Start(Box<StartRequest>),
    /// Press the power button.
    PowerButton,
    /// End the machine now.
    Stop,
    /// Hold all vCPUs and guest time.
    Pause,
    /// Let them continue.
    Resume,
    /// Make this disk, counted from 0, so many bytes large: not less than it
    /// is. Answered by [`Event::DiskResized`].
    ResizeDisk {
        /// Which.
        disk: u32,
        /// Its size.
        bytes: u64,
    },
    /// Plug this disk in, whose layers' descriptors come along. Answered by
    /// [`Event::Attached`] or [`Event::AttachFailed`], in the order of the
    /// requests.
    AttachDisk(Box<StartDisk>),
    /// Plug this NIC in, whose backend's descriptors come along. Answered as
    /// [`Request::AttachDisk`] is, in one order with those.
    AttachNic(Box<StartNic>),
    /// From now on this NIC may do so much. Nothing happens where there is no
    /// such NIC.
    NicLimits {
        /// The NIC's name.
        nic: String,
        /// How much.
        limits: NicLimits,
    },
    /// Unplug this device. When the guest has released it, or was reset,
    /// follows [`Event::Detached`]; until then it may be asked for again.
    /// [`Event::DetachFailed`] says that this cannot be.
    Detach {
        /// Its name.
        device: String,
        /// Take it away at once, whatever the guest says.
        force: bool,
    },
    /// Save the machine to the file whose descriptor comes along, from its
    /// position on, and end. Refused if other disks and NICs are plugged in
    /// than what comes before that position says.
    Save {
        /// Their names, in any order.
        devices: Vec<String>,
    },
    /// The terminal of the virtio console has this size now.
    ResizeConsole {
        /// Characters in a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
    /// Connect the stream socket that comes along to this port of the guest.
    /// The vmm writes `OK <port of the host>` and a line end to it when the
    /// guest has accepted, and closes it when it does not.
    VsockConnect {
        /// The guest's port.
        port: u32,
    },
    /// This NIC has another backend from now on, whose descriptors come along:
    /// in place of one that has ended, or of one that works. The link is down
    /// meanwhile, so that the guest looks for its addresses anew. Nothing
    /// happens where there is no such NIC.
    NicBackend {
        /// The NIC's name.
        nic: String,
        /// What carries its frames.
        backend: NicBackend,
    },
    /// Plug the cable of this NIC in, or pull it.
    NicLink {
        /// The NIC's name.
        nic: String,
        /// It is plugged in.
        up: bool,
    },
    /// The answer to [`Event::VsockRequest`]: the connected stream socket
    /// that comes along, or none, which refuses.
    VsockAnswer {
        /// As in the question.
        id: u64,
    },
}

/// What a machine is started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRequest {
    /// The configuration.
    pub machine: MachineSpec,
    /// The kernel's name for messages. Without one the machine boots with what
    /// is on its first disk, read anew at each start and reset.
    pub kernel: Option<String>,
    /// The initrd's name for messages.
    pub initrd: Option<String>,
    /// The disks, locked by the monitor.
    pub disks: Vec<StartDisk>,
    /// The NICs, in the guest's order.
    #[serde(default)]
    pub nics: Vec<StartNic>,
    /// Directories of the host's, open as places only (`O_PATH`).
    #[serde(default)]
    pub shares: Vec<StartShare>,
    /// Whether the state of a saved machine comes with it, a file at its
    /// position: the machine goes on from there.
    pub saved: bool,
    /// Whether a debugger's listening socket comes with it.
    pub gdb: bool,
    /// Whether `/dev/kvm` comes with it.
    #[serde(default)]
    pub kvm: KvmDevice,
}

/// What became of `/dev/kvm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmDevice {
    /// The machine is to run on another engine.
    #[default]
    Unwanted,
    /// Its descriptor comes along.
    Handed,
    /// The monitor could not open it: the error number.
    Refused(i32),
}

impl StartRequest {
    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        1 + usize::from(self.kernel.is_some())
            + usize::from(self.initrd.is_some())
            + self
                .disks
                .iter()
                .map(|disk| disk.layers.len())
                .sum::<usize>()
            + self
                .nics
                .iter()
                .map(|nic| nic.backend.descriptors())
                .sum::<usize>()
            + self.shares.len()
            + usize::from(self.saved)
            + usize::from(self.gdb)
            + usize::from(self.kvm == KvmDevice::Handed)
            + self.machine.ports.len()
    }
}

/// A directory of the host's that a machine is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartShare {
    /// By which the guest mounts it.
    pub tag: String,
    /// Refuse every change.
    pub read_only: bool,
}

/// The vmm to the monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The machine runs.
    Started {
        /// On this engine,
        engine: String,
        /// for this reason.
        reason: String,
    },
    /// It is held.
    Paused,
    /// It continues.
    Resumed,
    /// It was not saved, and goes on.
    SaveFailed {
        /// Why not.
        message: String,
    },
    /// The guest says that its kernel panicked. It may go on by itself: with
    /// a crash kernel, or a reset (its `panic=`).
    Panicked {
        /// It goes on with a crash kernel of its own.
        crash_kernel: bool,
    },
    /// It stands still because the host failed at a disk. It goes on when it
    /// is resumed, or by itself when the host works again; then follows
    /// `Resumed`.
    DiskFailed {
        /// The disk's name.
        disk: String,
        /// What happened.
        message: String,
    },
    /// The guest wants to be connected to this port of the host. To be
    /// answered by [`Request::VsockAnswer`].
    VsockRequest {
        /// For the answer.
        id: u64,
        /// The host's port.
        port: u32,
    },
    /// A NIC's stream has ended (passt is gone). Its link is down until
    /// another backend comes ([`Request::NicBackend`]).
    NicLost {
        /// The NIC's name.
        nic: String,
    },
    /// A device is plugged in, and the guest was told.
    Attached {
        /// Its name.
        device: String,
    },
    /// It was not, and nothing of it is open any more.
    AttachFailed {
        /// Why not.
        message: String,
    },
    /// A device is gone, because somebody asked for it or by the guest's own
    /// wish; nothing of it is open any more.
    Detached {
        /// Its name.
        device: String,
    },
    /// A device stays.
    DetachFailed {
        /// Its name.
        device: String,
        /// Why.
        message: String,
    },
    /// A disk has the size that was asked for, and the guest was told.
    DiskResized {
        /// Which.
        disk: u32,
        /// Or why it has the size that it had.
        error: Option<String>,
    },
    /// A line for the operator.
    Log {
        /// Without a line end.
        text: String,
    },
    /// It ended; all console output has been written.
    Stopped(Outcome),
}
