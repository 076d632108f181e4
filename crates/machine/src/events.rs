//! What reaches a machine's owner.

use std::io::Write;
use std::sync::mpsc::{Sender, SyncSender};

use croft_devices::bus::DetachedDevice;
use croft_devices::virtio::net::NicOptions;
use croft_engine::Stop;

use crate::gdb::DebugRequest;
use crate::handle::{ResizeError, SaveError};
use crate::hotplug::{AttachError, DetachError};
use crate::virtio::DiskConfig;

/// The owner's input queue carries these.
pub enum Event {
    /// A vCPU's run returned.
    Stopped {
        /// Which.
        vcpu: usize,
        /// Why.
        stop: Stop,
    },
    /// The guest asked for something; see [`crate::power`].
    Power,
    /// The host failed, and a request of a disk's waits for the machine to
    /// stop and to go on again.
    DiskFailed {
        /// Its name.
        disk: String,
        /// What happened.
        message: String,
    },
    /// Through a [`MachineHandle`](crate::MachineHandle).
    Request(Request),
    /// From the debugger.
    Debug(DebugRequest),
    /// The guest released a PCI device; taking it apart is not for a vCPU's
    /// thread.
    Ejected(DetachedDevice),
}

/// What can be asked through a handle. The sender is answered when it is
/// done, and dropped when the machine ends before.
pub enum Request {
    /// Hold all vCPUs and guest time.
    Pause(SyncSender<()>),
    /// Let them continue.
    Resume(SyncSender<()>),
    /// As by a reset button.
    Reset(SyncSender<()>),
    /// The guest is to give this many bytes of memory back.
    Balloon(u64, SyncSender<()>),
    /// Make this disk so many bytes large.
    ResizeDisk(usize, u64, SyncSender<Result<(), ResizeError>>),
    /// Plug this disk in, and say where it is.
    AttachDisk(DiskConfig, SyncSender<Result<u8, AttachError>>),
    /// Plug this NIC in.
    AttachNic(NicOptions, SyncSender<Result<(), AttachError>>),
    /// Have the device of this name unplugged by the guest, or take it away.
    Detach(String, bool, SyncSender<Result<(), DetachError>>),
    /// Write the state there and end; if these are its disks and NICs.
    Save(
        Box<dyn Write + Send>,
        Option<Vec<String>>,
        SyncSender<Result<(), SaveError>>,
    ),
    /// End.
    Stop,
}

/// Where events go.
pub type Events = Sender<Event>;
