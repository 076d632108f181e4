//! Controlling a machine from other threads.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::time::Duration;

use croft_devices::pm::PmHandle;
use croft_devices::virtio::balloon::{BalloonHandle, BalloonReport, BalloonStatistics};
use croft_devices::virtio::console::ConsoleHandle;
use croft_devices::virtio::net::{NicHandle, NicOptions};
use croft_devices::virtio::vsock::VsockHandle;
use croft_disk::DiskError;
use croft_engine::EngineError;
use thiserror::Error;

use crate::config::{Ended, State};
use crate::console::ConsoleInput;
use crate::events::{Event, Events, Request};
use crate::hotplug::{AttachError, DetachError};
use crate::power::PowerSwitch;
use crate::sync::{Shared, lock};
use crate::virtio::{DiskConfig, Nics};

/// Why a machine was not saved. Unless it had ended, it goes on.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The machine has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// It is being saved already.
    #[error("the machine is being saved already")]
    Busy,
    /// A device was attached or detached at this moment.
    #[error("its devices changed while it was to be saved; save it again")]
    Changed,
    /// The engine could not tell the state.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What the guest wrote to a disk may not be there any more after a
    /// failure of the host's.
    #[error("disk{index} cannot be flushed: {source}")]
    Disk {
        /// Its place.
        index: u8,
        /// What the host answered.
        source: DiskError,
    },
    /// The guest knows files of a share, which the saved machine could not
    /// find again.
    #[error(
        "the guest uses share '{0}', whose files are the host's; unmount it in the guest, save, and mount it again afterwards"
    )]
    Share(String),
    /// The host could not write it.
    #[error("cannot write the machine's state: {0}")]
    Write(#[from] io::Error),
}

/// Why a disk has the size that it had.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// The machine has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// There is no such disk.
    #[error("there is no disk{0}")]
    NoDisk(usize),
    /// It could not grow.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Controls one machine. Clones control the same one.
#[derive(Clone)]
pub struct MachineHandle {
    pub(crate) events: Events,
    pub(crate) state: Arc<Shared<State>>,
    pub(crate) pm: PmHandle,
    pub(crate) nics: Arc<Shared<Nics>>,
    pub(crate) balloon: BalloonHandle,
    pub(crate) vsock: Option<VsockHandle>,
    pub(crate) console: Option<ConsoleHandle>,
    pub(crate) power: Arc<PowerSwitch>,
    pub(crate) input: ConsoleInput,
}

impl MachineHandle {
    /// What the machine is doing.
    pub fn state(&self) -> State {
        *lock(&self.state)
    }

    /// Presses the ACPI power button: a request that the guest may act on.
    pub fn press_power_button(&self) {
        self.pm.press_power_button();
    }

    /// Ends the machine now, as by pulling its plug.
    pub fn stop(&self) -> Result<(), Ended> {
        self.send(Request::Stop)
    }

    /// Holds all vCPUs and guest time; returns when they stand still.
    pub fn pause(&self) -> Result<(), Ended> {
        self.ask(Request::Pause)
    }

    /// Counterpart of [`pause`](Self::pause).
    pub fn resume(&self) -> Result<(), Ended> {
        self.ask(Request::Resume)
    }

    /// As by a reset button; returns when the kernel is loaded again. A
    /// paused machine stays paused, at the kernel's entry.
    pub fn reset(&self) -> Result<(), Ended> {
        self.ask(Request::Reset)
    }

    /// Saves the machine to `out` and ends it, with [`Outcome::Saved`];
    /// returns when `out` has everything. Whether the machine was paused is
    /// not part of what is saved. If it cannot be saved it goes on.
    ///
    /// [`Outcome::Saved`]: crate::Outcome::Saved
    pub fn save(&self, out: Box<dyn Write + Send>) -> Result<(), SaveError> {
        self.ask(|done| Request::Save(out, None, done))?
    }

    /// As [`save`](Self::save), if the machine's disks and NICs have these
    /// names: whoever keeps a list of them has written it by now.
    pub fn save_with(
        &self,
        devices: Vec<String>,
        out: Box<dyn Write + Send>,
    ) -> Result<(), SaveError> {
        self.ask(|done| Request::Save(out, Some(devices), done))?
    }

    /// Asks the guest to give `bytes` of its memory back, and to take back
    /// what of it that leaves: the size of its balloon. A guest without a
    /// driver for it does nothing; one in need keeps its memory.
    pub fn set_balloon(&self, bytes: u64) -> Result<(), Ended> {
        self.ask(|done| Request::Balloon(bytes, done))
    }

    /// What the guest has given back.
    pub fn balloon(&self) -> BalloonReport {
        self.balloon.report()
    }

    /// Asks the guest how it uses its memory; `None` when it does not say
    /// within `patience`.
    pub fn memory_statistics(&self, patience: Duration) -> Option<BalloonStatistics> {
        self.balloon.statistics(patience)
    }

    /// Makes disk `index` `bytes` large, which is not less than it is, and
    /// tells the guest, which sees it live. Returns when it is lasting.
    pub fn resize_disk(&self, index: usize, bytes: u64) -> Result<(), ResizeError> {
        self.ask(|done| Request::ResizeDisk(index, bytes, done))?
    }

    /// Plugs a disk in and tells the guest. Returns its place: it is
    /// `disk<place>`.
    pub fn attach_disk(&self, config: DiskConfig) -> Result<u8, AttachError> {
        self.ask(|done| Request::AttachDisk(config, done))?
    }

    /// Plugs a NIC in and tells the guest. One called `net<place>` gets that
    /// place, another the first that is free.
    pub fn attach_nic(&self, options: NicOptions) -> Result<(), AttachError> {
        self.ask(|done| Request::AttachNic(options, done))?
    }

    /// Asks the guest to release the device of this name, and returns when it
    /// was asked; may be asked again. When the guest has done so, or was
    /// reset, [`ConsoleBackend::detached`] is called. With `force` the guest
    /// is not asked: the device is gone when this returns, and what the guest
    /// had not written is lost to it.
    ///
    /// [`ConsoleBackend::detached`]: crate::ConsoleBackend::detached
    pub fn detach(&self, device: &str, force: bool) -> Result<(), DetachError> {
        self.ask(|done| Request::Detach(device.to_owned(), force, done))?
    }

    /// Types `bytes` on the serial console; blocks while the guest takes no
    /// more.
    pub fn push_input(&self, bytes: &[u8]) -> Result<(), Ended> {
        self.input.push(bytes)
    }

    /// The host's side of the socket device, if there is one.
    pub fn vsock(&self) -> Option<&VsockHandle> {
        self.vsock.as_ref()
    }

    /// The host's side of a NIC: its cable, what is behind it, its limits.
    pub fn nic(&self, name: &str) -> Option<NicHandle> {
        let nics = lock(&self.nics);
        nics.values().find(|nic| nic.name() == name).cloned()
    }

    /// Whether the guest has said that its kernel panicked, since it was
    /// started or reset last.
    pub fn has_panicked(&self) -> bool {
        self.power.has_panicked()
    }

    /// Tells the guest of its terminal's size, if it has one (virtio-console).
    pub fn resize_console(&self, columns: u16, rows: u16) {
        if let Some(console) = &self.console {
            console.resize(columns, rows);
        }
    }

    fn ask<R>(&self, request: impl FnOnce(SyncSender<R>) -> Request) -> Result<R, Ended> {
        let (done, answer) = mpsc::sync_channel(1);
        self.send(request(done))?;
        answer.recv().map_err(|_| Ended)
    }

    fn send(&self, request: Request) -> Result<(), Ended> {
        let event = Event::Request(request);
        self.events.send(event).map_err(|_| Ended)
    }
}

impl std::fmt::Debug for MachineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MachineHandle({})", self.state())
    }
}
