//! Between `croft` and `croft-monitor`.
//!
//! ```text
//! croft                          monitor
//!    │── Run, Restore ──────────────►│   opens files, spawns the vmm
//!    │◄──────────── Started ─────────│   or Stopped{Invalid}
//!    │── PowerButton, Stop, … ──────►│
//!    │◄──────────── Stopped ─────────│   then end of file on the console
//! ```
//!
//! If `croft` goes away the monitor ends the machine: a machine in the
//! foreground lives as long as the command that runs it. The other form:
//!
//! ```text
//! croft, or the daemon           monitor, in a session of its own
//!    │── Keep ──────────────────────►│   locks the instance, binds its control
//!    │◄──────────── Started ─────────│   socket, opens files, spawns the vmm;
//!    │             end               │   or Stopped
//! ```
//!
//! From `Keep` on the instance does not care whether whoever started it stays;
//! commands reach it at its control socket ([`crate::control`]).

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::container::ContainerSpec;
use crate::disk::RunDisk;
use crate::hello::Protocol;
use crate::instance::RestartPolicy;
use crate::machine::{EngineChoice, MachineSpec, SoftwareSpec};
use crate::net::{NicKind, NicSpec};
use crate::outcome::Outcome;
use crate::saved::SavedRun;

/// What this build speaks.
pub const PROTOCOL: Protocol = Protocol {
    name: "croft-monitor",
    version: 5,
};

/// `croft` to the monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Make an instance and run it. Comes with descriptors: the console, and
    /// the terminal if `terminal`.
    Run(Box<RunRequest>),
    /// Make the instance that was saved, and let it go on. Comes with
    /// descriptors: the console, the file it was saved to, and the terminal
    /// if `terminal`.
    Restore(Box<RestoreRequest>),
    /// Keep this instance from now on, whether whoever asks stays or not.
    Keep(Box<KeepRequest>),
    /// Press the power button.
    PowerButton,
    /// End the machine now.
    Stop,
    /// Hold the machine.
    Pause,
    /// Let it continue.
    Resume,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// The configuration.
    pub machine: MachineSpec,
    /// Path of the kernel; the first disk's own without.
    pub kernel: Option<OsString>,
    /// Path of the initrd.
    pub initrd: Option<OsString>,
    /// The disks.
    pub disks: Vec<RunDisk>,
    /// The NICs, in the guest's order.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// Directories of the host's in the guest.
    #[serde(default)]
    pub shares: Vec<RunShare>,
    /// Path of a file to which console output is appended.
    pub log: Option<OsString>,
    /// Where a debugger can connect.
    pub gdb: Option<GdbAddress>,
    /// Path of the control socket to make.
    pub control: Option<OsString>,
    /// Paths of the sockets to make for the ports of
    /// [`MachineSpec::ports`], in their order, where there is to be one.
    pub ports: Vec<Option<OsString>>,
    /// Path of the socket to make by which programs connect to the guest, if
    /// the machine has a socket device. What the guest connects to is beside
    /// it: the same path with `_<port>` behind.
    pub vsock: Option<OsString>,
    /// Whether the terminal's descriptor comes along. The monitor gives it
    /// back its modes if `croft` is killed before it can.
    pub terminal: bool,
    /// Leave the vmm without its jail, for debugging Croft.
    #[serde(default)]
    pub no_jail: bool,
}

/// Which instance to keep, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepRequest {
    /// What to run.
    pub payload: KeepPayload,
    /// The instance's directory; the lock and the console's log are there.
    pub directory: OsString,
    /// Path of the control socket to make.
    pub socket: OsString,
    /// What happens when it ends.
    pub restart: RestartPolicy,
    /// Delete the instance when it has ended for good.
    pub ephemeral: bool,
    /// Whoever starts it sees its streams from its first byte on, and hears of
    /// its end. So many descriptors come along: none; the socket of its
    /// terminal; or those of its standard input and output, and of its
    /// standard error. Only for containers.
    #[serde(default)]
    pub attached: u8,
}

/// What an instance runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepPayload {
    /// A machine, with absolute paths; its `log`, `control` and `terminal`
    /// count for nothing.
    Machine(Box<RunRequest>),
    /// A container.
    Container(Box<RunContainer>),
}

/// A container to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunContainer {
    /// Its configuration.
    pub container: ContainerSpec,
    /// Its NICs.
    pub nics: Vec<NicSpec>,
}

/// What to restore, and what is to be other than it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The file's name for messages.
    pub file: String,
    /// Another name.
    pub name: Option<String>,
    /// What runs it.
    pub engine: EngineChoice,
    /// How, if that is the software engine.
    pub software: SoftwareSpec,
    /// Another path of the kernel.
    pub kernel: Option<OsString>,
    /// Another path of the initrd.
    pub initrd: Option<OsString>,
    /// Other paths of all disks.
    pub disks: Option<Vec<RunDisk>>,
    /// Where all NICs lead to instead, in their order.
    #[serde(default)]
    pub nets: Option<Vec<NicKind>>,
    /// As in [`RunRequest`].
    pub log: Option<OsString>,
    /// As in [`RunRequest`].
    pub gdb: Option<GdbAddress>,
    /// As in [`RunRequest`].
    pub control: Option<OsString>,
    /// As in [`RunRequest`].
    pub ports: Vec<Option<OsString>>,
    /// As in [`RunRequest`].
    pub vsock: Option<OsString>,
    /// As in [`RunRequest`].
    pub terminal: bool,
    /// As in [`RunRequest`].
    #[serde(default)]
    pub no_jail: bool,
}

impl RestoreRequest {
    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        2 + usize::from(self.terminal)
    }

    /// What is run, of what was saved; or what does not fit that.
    pub fn apply(self, saved: SavedRun) -> Result<RunRequest, String> {
        let mut machine = saved.machine;
        machine.engine = self.engine;
        machine.software = self.software;
        if let Some(name) = self.name {
            machine.name = name;
        }
        let disks = match self.disks {
            Some(mut disks) => {
                // Each is in the place of the one that it stands for.
                for (disk, was) in disks.iter_mut().zip(&saved.disks) {
                    disk.index = disk.index.or(was.index);
                }
                disks
            }
            None => saved.disks,
        };
        let nics = match self.nets {
            Some(nets) => lead(saved.nics, nets)?,
            None => saved.nics,
        };
        Ok(RunRequest {
            machine,
            kernel: self.kernel.or(saved.kernel),
            initrd: self.initrd.or(saved.initrd),
            disks,
            nics,
            shares: saved.shares,
            log: self.log,
            gdb: self.gdb,
            control: self.control,
            ports: self.ports,
            vsock: self.vsock,
            terminal: self.terminal,
            no_jail: self.no_jail,
        })
    }
}

/// NICs that lead elsewhere. The guest knows their addresses and MTUs, which
/// stay; that of a user network is another than all others'.
fn lead(mut nics: Vec<NicSpec>, nets: Vec<NicKind>) -> Result<Vec<NicSpec>, String> {
    if nics.len() != nets.len() {
        return Err(format!(
            "--net: the machine has {} NICs; say of all, in their order, where they lead to",
            nics.len()
        ));
    }
    let is_user = |kind: &NicKind| matches!(kind, NicKind::User(_));
    for (nic, kind) in nics.iter_mut().zip(nets) {
        if is_user(&nic.kind) != is_user(&kind) {
            return Err(format!(
                "--net: {} leads to {}; a user network can be replaced by one alone, and nothing \
                 else by one: its largest packet is another",
                nic.name,
                nic.describe()
            ));
        }
        nic.kind = kind;
    }
    Ok(nics)
}

impl RunRequest {
    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        1 + usize::from(self.terminal)
    }
}

/// A directory of the host's in a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunShare {
    /// Its path.
    pub path: OsString,
    /// By which the guest mounts it.
    pub tag: String,
    /// Refuse every change.
    pub read_only: bool,
}

/// Where a debugger can connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GdbAddress {
    /// This port of the loopback interface.
    Port(u16),
    /// A socket at this path, removed when the machine ends.
    Socket(OsString),
}

/// The monitor to `croft`.
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
    /// The guest says that its kernel panicked. The machine stays as it is.
    Panicked {
        /// It goes on with a crash kernel of its own.
        crash_kernel: bool,
    },
    /// It is held because the host failed at a disk. It goes on when it is
    /// resumed, or by itself when the host works again; then follows
    /// `Resumed`.
    DiskFailed {
        /// The disk's name.
        disk: String,
        /// What happened.
        message: String,
    },
    /// A line for the operator.
    Log {
        /// Without a line end.
        text: String,
    },
    /// It ended. Console output may still be in the console's socket.
    Stopped(Outcome),
}
