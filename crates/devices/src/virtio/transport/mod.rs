//! The virtio-pci transport (virtio 1.2, 4.1), without the legacy interface.
//!
//! [`layout`] has the places of the registers, `common` the common
//! configuration, `interrupts` MSI-X, pin and ISR status.
//!
//! ```text
//!          ACKNOWLEDGE, DRIVER     FEATURES_OK, queues      DRIVER_OK
//! reset ────────────────────► found ──────────────► set up ─────────► live
//!   ▲                                                                  │
//!   │   status 0, and all workers     DEVICE_NEEDS_RESET (a broken     │
//!   └──── have let their queues go ◄─ ring, or the driver's wish) ◄────┘
//! ```
//!
//! Queues are served while the device is live, the machine runs and the
//! function is bus master.

mod common;
mod interrupts;
pub mod layout;
mod notifier;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use croft_memory::GuestRam;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::log::RateLimitedLog;
use super::queue::{ActiveQueue, RingPlace};
use super::worker::{InUse, Worker};
use super::{DoorbellRegistry, VirtioDevice, VirtioHost};
use crate::device::Device;
use crate::pci::{BarRoute, COMMAND_MASTER, ConfigSpace, PciFunction};
use crate::saved::{DeviceState, StateError, check_version, damaged};
use common::Common;
use interrupts::{Interrupts, NO_VECTOR};
use layout::Capabilities;
pub use notifier::Notifier;
pub use state::{QueueState, TransportState, VectorState};

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Features of every device here.
const TRANSPORT_FEATURES: u64 = VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Status register (PCI): the function asks for its pin.
const STATUS_INTERRUPT: u8 = 1 << 3;
/// For errors about states.
const WHAT: &str = "virtio device";

/// What a function shares with its workers.
pub(super) struct Shared {
    pub name: String,
    pub ram: GuestRam,
    pub interrupts: Interrupts,
    /// Requests are served.
    pub live: AtomicBool,
    /// The driver broke the rules: DEVICE_NEEDS_RESET.
    failed: AtomicBool,
    /// The driver set DRIVER_OK: it may be interrupted.
    driver_ok: AtomicBool,
    /// Moves with every change of the device-specific configuration.
    config_generation: AtomicU8,
    /// The driver was not told yet that it changed.
    config_changed: AtomicBool,
    log: RateLimitedLog,
}

impl Shared {
    /// Tells the driver of a changed configuration, now or, while requests
    /// are not served, later.
    fn tell_config(&self) {
        if self.live.load(Ordering::SeqCst) && self.config_changed.swap(false, Ordering::SeqCst) {
            self.interrupts.config();
        }
    }

    /// The driver broke the rules, as `why` says: the device stops until it
    /// is reset.
    pub fn fail(&self, why: &str) {
        self.live.store(false, Ordering::SeqCst);
        if !self.failed.swap(true, Ordering::SeqCst) {
            self.log
                .log(&format!("stopped until the guest resets it: {why}"));
            if self.driver_ok.load(Ordering::SeqCst) {
                self.interrupts.config();
            }
        }
    }
}

/// A queue as its registers say.
struct Queue {
    place: RingPlace,
    enabled: bool,
}

/// A virtio device as a PCI function.
pub struct VirtioPci<D> {
    device: D,
    config: ConfigSpace,
    capabilities: Capabilities,
    shared: Arc<Shared>,
    common: Common,
    queues: Vec<Queue>,
    /// One for each queue, or one for all.
    workers: Vec<Worker>,
    doorbells: Arc<dyn DoorbellRegistry>,
    /// Where the queues' doorbells are at the moment: the first one's
    /// address.
    doorbells_at: Option<u64>,
    /// The machine runs.
    running: bool,
    /// The driver asked for a reset that waits for a worker.
    resetting: bool,
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// A function of `device`, which serves nothing before
    /// [`Device::start`].
    pub fn new(mut device: D, host: VirtioHost) -> io::Result<Self> {
        let count = device.queues().clamp(1, layout::QUEUES_MAX);
        let vectors = count + 1;
        let (config, capabilities) =
            layout::config_space(D::KIND, count, vectors, device.config_len());
        let shared = Arc::new(Shared {
            interrupts: Interrupts::new(host.interrupts, host.line, vectors, count),
            log: RateLimitedLog::new(host.name.clone(), host.log),
            name: host.name,
            ram: host.ram,
            live: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            driver_ok: AtomicBool::new(false),
            config_generation: AtomicU8::new(0),
            config_changed: AtomicBool::new(false),
        });
        let served = if device.one_worker() { 1 } else { count };
        let workers = (0..served)
            .map(|index| Worker::new(index, device.role(), shared.clone()))
            .collect::<io::Result<Vec<_>>>()?;
        let queues = (0..count).map(|_| Queue {
            place: fresh_place(device.queue_size()),
            enabled: false,
        });
        let queues = queues.collect();
        let wakers = workers.iter().map(Worker::waker).collect();
        device.connect(Notifier::new(Arc::downgrade(&shared), wakers));
        Ok(VirtioPci {
            device,
            config,
            capabilities,
            shared,
            common: Common::default(),
            queues,
            workers,
            doorbells: host.doorbells,
            doorbells_at: None,
            running: false,
            resetting: false,
        })
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// Device status as the driver reads it.
    fn status(&self) -> u8 {
        let failed = self.shared.failed.load(Ordering::SeqCst);
        self.common.status | if failed { NEEDS_RESET } else { 0 }
    }

    /// Lets the workers serve, or stops them, as everything together says.
    fn settle(&mut self) {
        let driver_ok = self.common.status & DRIVER_OK != 0;
        let live = self.running
            && driver_ok
            && !self.resetting
            && !self.shared.failed.load(Ordering::SeqCst)
            && self.config.command() & COMMAND_MASTER != 0;
        self.shared.driver_ok.store(driver_ok, Ordering::SeqCst);
        if self.shared.live.swap(live, Ordering::SeqCst) != live && live {
            self.workers.iter().for_each(Worker::wake);
        }
        self.shared.tell_config();
        self.place_doorbells();
    }

    /// Who serves a queue.
    fn worker(&self, index: usize) -> Option<&Worker> {
        match self.workers.as_slice() {
            [one] => Some(one),
            each => each.get(index),
        }
    }

    /// Puts the enabled queues to use, each at its `positions` (both 0 where
    /// there are none).
    fn activate(&mut self, positions: &[(u16, u16)]) {
        let features = self.common.driver_features;
        let most = self.device.queue_size();
        let event_idx = features & EVENT_IDX != 0;
        let together = self.device.one_worker();
        let mut groups: Vec<Vec<_>> = self.workers.iter().map(|_| Vec::new()).collect();
        for (index, queue) in self.queues.iter().enumerate() {
            if !queue.enabled {
                continue;
            }
            let at = positions.get(index).copied().unwrap_or_default();
            match ActiveQueue::new(&self.shared.ram, queue.place, most, event_idx, at) {
                Ok(active) => {
                    let group = if together { 0 } else { index };
                    if let Some(group) = groups.get_mut(group) {
                        group.push((index as u16, active));
                    }
                }
                Err(error) => self.shared.fail(&format!("virtqueue {index}: {error}")),
            }
        }
        for (index, (worker, queues)) in (0..).zip(self.workers.iter_mut().zip(groups)) {
            if queues.is_empty() {
                continue;
            }
            let service = self.device.service(index, features);
            *worker.slot() = Some(InUse { queues, service });
            if let Err(error) = worker.spawn() {
                let text = format!("no thread for virtqueue {index}: {error}");
                self.shared.fail(&text);
            }
            worker.wake();
        }
    }

    /// The driver wrote 0 to the status.
    fn begin_reset(&mut self) {
        self.resetting = true;
        self.settle();
        self.try_finish_reset();
    }

    /// Finishes a reset if no worker is at work.
    fn try_finish_reset(&mut self) {
        if !self.resetting {
            return;
        }
        for worker in &self.workers {
            match worker.try_slot() {
                Some(mut slot) => *slot = None,
                None => return,
            }
        }
        self.finish_reset();
    }

    /// As after a reset of the device; its queues are not in use.
    fn finish_reset(&mut self) {
        self.resetting = false;
        self.common = Common::default();
        self.device.reset();
        let size = self.device.queue_size();
        for queue in &mut self.queues {
            queue.place = fresh_place(size);
            queue.enabled = false;
        }
        self.shared.failed.store(false, Ordering::SeqCst);
        // Whoever comes reads it from the start.
        self.shared.config_changed.store(false, Ordering::SeqCst);
        self.shared.interrupts.reset_device();
        self.settle();
    }

    /// Stops the workers and waits for the requests being served.
    fn release_queues(&mut self) {
        self.shared.live.store(false, Ordering::SeqCst);
        for worker in &self.workers {
            *worker.slot() = None;
        }
    }

    /// Waits for the requests being served; finishes a reset.
    fn drain(&mut self) {
        self.shared.live.store(false, Ordering::SeqCst);
        for worker in &self.workers {
            drop(worker.slot());
        }
        self.try_finish_reset();
    }

    /// Moves the doorbells of the queues to where their notification
    /// addresses are; there are none while no driver is at work.
    fn place_doorbells(&mut self) {
        let wanted = if self.common.status & DRIVER_OK != 0 && !self.resetting {
            let bars = self.config.decoded();
            let bar = bars.iter().find(|route| route.bar == layout::BAR);
            bar.map(|route| route.base + layout::NOTIFY)
        } else {
            None
        };
        if wanted == self.doorbells_at {
            return;
        }
        let address = |base: u64, index: usize| base + index as u64 * layout::NOTIFY_STEP;
        for (index, queue) in self.queues.iter().enumerate() {
            let Some(worker) = self.worker(index) else {
                continue;
            };
            if let Some(base) = self.doorbells_at {
                worker.set_doorbell(index as u16, None);
                self.doorbells.remove(address(base, index));
            }
            if let Some(base) = wanted.filter(|_| queue.enabled) {
                let doorbell = self.doorbells.add(address(base, index));
                worker.set_doorbell(index as u16, doorbell);
                // What was written between two places is not lost.
                worker.wake();
            }
        }
        self.doorbells_at = wanted;
    }

    fn read_register(&mut self, offset: u64, data: &mut [u8]) {
        let within = offset % layout::PART;
        match offset - within {
            layout::COMMON => self.common_read(within, data),
            layout::ISR => {
                data.fill(0);
                if let (0, Some(first)) = (within, data.first_mut()) {
                    *first = self.shared.interrupts.take_isr();
                }
            }
            layout::DEVICE => {
                data.fill(0);
                self.device.read_config(within as usize, data);
            }
            layout::MSIX_TABLE => self.shared.interrupts.table_read(within, data),
            layout::MSIX_PENDING => self.shared.interrupts.pending_read(within, data),
            _ => data.fill(0),
        }
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) {
        let within = offset % layout::PART;
        match offset - within {
            layout::COMMON => self.common_write(within, data),
            layout::NOTIFY => {
                // Where there is no doorbell the write comes here.
                let index = (within / layout::NOTIFY_STEP) as usize;
                if index < self.queues.len()
                    && let Some(worker) = self.worker(index)
                {
                    worker.wake();
                }
            }
            layout::DEVICE => self.device.write_config(within as usize, data),
            layout::MSIX_TABLE => self.shared.interrupts.table_write(within, data),
            _ => {}
        }
    }

    /// The window of the PCI configuration access capability (4.1.4.9): where
    /// in the BAR it goes, if that can be.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.capabilities.pci_cfg;
        let dword = |field: u8| {
            let mut bytes = [0; 4];
            self.config.read(u16::from(at + field), &mut bytes);
            u64::from(u32::from_le_bytes(bytes))
        };
        let (offset, len) = (dword(layout::PCI_CFG_OFFSET), dword(layout::PCI_CFG_LENGTH));
        let fits = matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && offset < layout::BAR_SIZE
            && self.config.byte(at + layout::PCI_CFG_BAR) == layout::BAR;
        fits.then_some((offset, len as usize))
    }

    /// Whether an access of configuration space touches the window's data.
    fn touches_window(&self, offset: u16, len: usize) -> bool {
        let data = u16::from(self.capabilities.pci_cfg + layout::PCI_CFG_DATA);
        touches(offset, len, data, 4)
    }

    /// How far a queue has come.
    fn positions(&self, index: u16) -> (u16, u16) {
        let Some(worker) = self.worker(usize::from(index)) else {
            return (0, 0);
        };
        let slot = worker.slot();
        let mut queues = slot.iter().flat_map(|in_use| &in_use.queues);
        let queue = queues.find(|(of, _)| *of == index);
        queue.map_or((0, 0), |(_, queue)| queue.positions())
    }

    fn state(&self) -> TransportState {
        let (vectors, isr) = self.shared.interrupts.save();
        let queues = (0..).zip(&self.queues).map(|(index, queue)| {
            let (next_avail, next_used) = self.positions(index);
            QueueState {
                size: queue.place.size,
                vector: self.shared.interrupts.queue_vector(index),
                enabled: queue.enabled,
                descriptors: queue.place.descriptors,
                driver: queue.place.driver,
                device: queue.place.device,
                next_avail,
                next_used,
            }
        });
        TransportState {
            version: state::VERSION,
            config: self.config.save(),
            status: self.status(),
            isr,
            device_feature_select: self.common.device_feature_select,
            driver_feature_select: self.common.driver_feature_select,
            driver_features: self.common.driver_features,
            queue_select: self.common.queue_select,
            config_vector: self.shared.interrupts.config_vector(),
            config_generation: self.shared.config_generation.load(Ordering::SeqCst),
            config_changed: self.shared.config_changed.load(Ordering::SeqCst),
            vectors,
            queues: queues.collect(),
        }
    }

    /// Whether a state could have been saved by this device.
    fn check(&self, state: &TransportState) -> Result<(), StateError> {
        check_version(WHAT, state.version, state::VERSION)?;
        self.config.check(&state.config)?;
        let (vectors, _) = self.shared.interrupts.save();
        if state.vectors.len() != vectors.len() || state.queues.len() != self.queues.len() {
            return Err(damaged(WHAT, "it has another number of queues"));
        }
        if state.driver_features & !self.offered() != 0 && state.status & FEATURES_OK != 0 {
            return Err(damaged(WHAT, "its driver uses features that are not here"));
        }
        let exists = |vector: u16| vector == NO_VECTOR || usize::from(vector) < vectors.len();
        let mut all = state.queues.iter().map(|queue| queue.vector);
        if !exists(state.config_vector) || !all.all(exists) {
            return Err(damaged(WHAT, "a vector does not exist"));
        }
        let in_use = state.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        for queue in state.queues.iter().filter(|queue| queue.enabled && in_use) {
            let positions = (queue.next_avail, queue.next_used);
            let most = self.device.queue_size();
            ActiveQueue::new(&self.shared.ram, place(queue), most, false, positions)
                .map_err(|error| damaged(WHAT, format!("a virtqueue: {error}")))?;
        }
        Ok(())
    }

    /// Goes on from a state that was checked; no queue is in use.
    fn set_state(&mut self, state: &TransportState) -> Result<(), StateError> {
        self.resetting = false;
        self.config.restore(&state.config)?;
        self.common = Common {
            device_feature_select: state.device_feature_select,
            driver_feature_select: state.driver_feature_select,
            driver_features: state.driver_features,
            status: state.status & !NEEDS_RESET,
            queue_select: state.queue_select,
        };
        let failed = state.status & NEEDS_RESET != 0;
        self.shared.failed.store(failed, Ordering::SeqCst);
        let generation = &self.shared.config_generation;
        generation.store(state.config_generation, Ordering::SeqCst);
        let changed = &self.shared.config_changed;
        changed.store(state.config_changed, Ordering::SeqCst);
        let interrupts = &self.shared.interrupts;
        interrupts.restore(&state.vectors, state.isr);
        interrupts.set_config_vector(state.config_vector);
        for (index, saved) in (0..).zip(&state.queues) {
            interrupts.set_queue_vector(index, saved.vector);
        }
        interrupts.set_command(self.config.command());
        interrupts.set_msix_control(self.msix_control());
        interrupts.force_line();
        for (index, saved) in state.queues.iter().enumerate() {
            if let Some(queue) = self.queues.get_mut(index) {
                queue.place = place(saved);
                queue.enabled = saved.enabled;
            }
        }
        if self.common.status & DRIVER_OK != 0 && !failed {
            let queues = state.queues.iter();
            let positions: Vec<_> = queues.map(|q| (q.next_avail, q.next_used)).collect();
            self.activate(&positions);
        }
        self.settle();
        Ok(())
    }

    fn msix_control(&self) -> u16 {
        let at = self.capabilities.msix_control;
        u16::from_le_bytes([self.config.byte(at), self.config.byte(at + 1)])
    }
}

fn fresh_place(size: u16) -> RingPlace {
    RingPlace {
        size,
        ..RingPlace::default()
    }
}

fn place(state: &QueueState) -> RingPlace {
    RingPlace {
        size: state.size,
        descriptors: state.descriptors,
        driver: state.driver,
        device: state.device,
    }
}

/// Whether an access of `len` bytes at `offset` overlaps a field.
fn touches(offset: u16, len: usize, field: u16, field_len: u16) -> bool {
    let end = usize::from(offset) + len;
    offset < field + field_len && end > usize::from(field)
}

impl<D: VirtioDevice> PciFunction for VirtioPci<D> {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if self.touches_window(offset, data.len())
            && let Some((place, len)) = self.window()
        {
            let mut value = [0; 4];
            self.read_register(place, &mut value[..len]);
            let at = self.capabilities.pci_cfg + layout::PCI_CFG_DATA;
            for (byte, value) in (at..).zip(value) {
                self.config.set_byte(byte, value);
            }
        }
        self.config.read(offset, data);
        let status = 0x06;
        if touches(offset, data.len(), status, 1) && self.shared.interrupts.wants_line() {
            let byte = data.get_mut(usize::from(status - offset));
            byte.into_iter().for_each(|b| *b |= STATUS_INTERRUPT);
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> bool {
        let moved = self.config.write(offset, data);
        let command = 0x04;
        if touches(offset, data.len(), command, 2) {
            self.shared.interrupts.set_command(self.config.command());
            self.settle();
        }
        let control = u16::from(self.capabilities.msix_control);
        if touches(offset, data.len(), control, 2) {
            self.shared.interrupts.set_msix_control(self.msix_control());
        }
        if self.touches_window(offset, data.len())
            && let Some((place, len)) = self.window()
        {
            let at = self.capabilities.pci_cfg + layout::PCI_CFG_DATA;
            let mut value = [0; 4];
            self.config.read(u16::from(at), &mut value);
            self.write_register(place, &value[..len]);
        }
        moved
    }

    fn bars(&self) -> Vec<BarRoute> {
        self.config.decoded()
    }

    fn bars_moved(&mut self) {
        self.place_doorbells();
    }

    fn bar_read(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
        self.read_register(offset, data);
    }

    fn bar_write(&mut self, _bar: u8, offset: u64, data: &[u8]) {
        self.write_register(offset, data);
    }
}

impl<D: VirtioDevice> Device for VirtioPci<D> {
    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn start(&mut self) {
        self.running = true;
        self.settle();
    }

    fn pause(&mut self) {
        self.running = false;
        self.drain();
        self.settle();
    }

    fn resume(&mut self) {
        self.running = true;
        self.settle();
    }

    fn reset(&mut self) {
        self.release_queues();
        self.config.reset();
        self.shared.interrupts.reset();
        self.finish_reset();
    }

    fn save(&mut self) -> DeviceState {
        self.drain();
        self.device.save(self.state())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let transport = self.device.check(state)?.clone();
        self.check(&transport)?;
        self.release_queues();
        self.device.restore(state);
        self.set_state(&transport)
    }
}

impl<D> Drop for VirtioPci<D> {
    fn drop(&mut self) {
        self.shared.live.store(false, Ordering::SeqCst);
        if let Some(base) = self.doorbells_at {
            for index in 0..self.queues.len() as u64 {
                self.doorbells.remove(base + index * layout::NOTIFY_STEP);
            }
        }
    }
}
