//! Making a machine: a new one, or one that was saved.

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use croft_devices::virtio::balloon::BalloonHandle;
use croft_devices::virtio::console::ConsoleHandle;
use croft_devices::virtio::fs::ShareHandle;
use croft_devices::virtio::vsock::VsockHandle;
use croft_engine::{
    CpuModel, CpuProfile, Engine, Missing, Partition, PartitionConfig, Topology, Vcpu,
};
use croft_isolate::{Role, assume};
use croft_memory::GuestRam;

use crate::acpi;
use crate::chipset::Chipset;
use crate::config::{MachineConfig, Outcome, State};
use crate::console::{ConsoleBackend, ConsoleInput};
use crate::error::MachineError;
use crate::events::{Event, Events};
use crate::fault;
use crate::gdb::GdbListener;
use crate::handle::MachineHandle;
use crate::hotplug::Places;
use crate::loader::{BootDisk, BootFrom, Payload};
use crate::memory_map;
use crate::owner::Owner;
use crate::power::PowerSwitch;
use crate::saved::{Description, SavedDisk, SavedError, SavedMachine, SavedNic, SavedShare, fit};
use crate::sync::Shared;
use crate::virtio::Plugger;

/// A machine that is ready to run.
pub struct Machine {
    pub(crate) name: String,
    pub(crate) ram: GuestRam,
    pub(crate) partition: Arc<dyn Partition>,
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    pub(crate) chipset: Chipset,
    pub(crate) firmware: Firmware,
    pub(crate) power: Arc<PowerSwitch>,
    pub(crate) console: Arc<dyn ConsoleBackend>,
    pub(crate) no_reboot: bool,
    /// After which it looks whether a disk that has failed does what it could
    /// not.
    pub(crate) fault_interval: Duration,
    pub(crate) events: Events,
    pub(crate) queue: Receiver<Event>,
    pub(crate) state: Arc<Shared<State>>,
    pub(crate) gdb: Option<GdbListener>,
    /// For who saves it.
    pub(crate) description: Description,
    pub(crate) places: Places,
    pub(crate) plugger: Plugger,
    pub(crate) balloon: BalloonHandle,
    pub(crate) shares: Vec<ShareHandle>,
    pub(crate) vsock: Option<VsockHandle>,
    pub(crate) terminal: Option<ConsoleHandle>,
}

/// What firmware would do: tables and kernel in memory, and the first vCPU at
/// the kernel's entry. Done at every start.
pub(crate) struct Firmware {
    payload: Payload,
    /// The first disk, if it is booted from.
    disk: Option<BootDisk>,
    acpi: acpi::Config,
}

impl Firmware {
    /// Writes guest memory and says how the first vCPU starts.
    pub fn load(&self, ram: &GuestRam) -> Result<crate::boot::Boot, MachineError> {
        let rsdp = acpi::write(&self.acpi, ram)?;
        Ok(self.payload.load(ram, rsdp, self.disk.as_ref())?)
    }
}

impl Machine {
    /// Makes a machine on `engine`: everything that a configuration can have
    /// wrong is found here, and nothing is left of a machine that was not
    /// made. Console output and log lines go to `console`.
    pub fn new(
        engine: &dyn Engine,
        config: MachineConfig,
        console: Arc<dyn ConsoleBackend>,
    ) -> Result<Self, MachineError> {
        check_vcpus(engine, config.vcpus)?;
        config.payload.check()?;
        let model = config.model;
        let profile = profile(engine, model, config.vcpus)
            .map_err(|missing| MachineError::Model { model, missing })?;
        let mut machine = Machine::assemble(engine, config, profile, console)?;
        // Before anything of the guest's is looked at closely.
        assume(Role::Owner);
        let boot = machine.firmware.load(&machine.ram)?;
        if let Some(first) = machine.vcpus.first_mut() {
            boot.enter(&mut **first)?;
        }
        Ok(machine)
    }

    /// Makes the machine that `saved` was, which goes on where it stood. Its
    /// `config` is that of [`new`](Self::new), with disks of the same sizes;
    /// the kernel is for its next reset. On another engine or host the CPU
    /// model must be one that moves.
    pub fn restore<R: Read>(
        engine: &dyn Engine,
        config: MachineConfig,
        saved: SavedMachine<R>,
        console: Arc<dyn ConsoleBackend>,
    ) -> Result<Self, MachineError> {
        check_vcpus(engine, config.vcpus)?;
        config.payload.check()?;
        let description = saved.description();
        let model = description.profile.model;
        let offered = profile(engine, model, description.vcpus).map_err(|missing| {
            MachineError::SavedModel {
                model,
                engine: engine.name(),
                missing,
            }
        })?;
        let fit = fit(&description.profile, &offered).map_err(|differs| MachineError::Moved {
            model,
            engine: engine.name(),
            differs,
        })?;
        let description = description.clone();
        let mut machine = Machine::assemble(engine, config, fit.profile.clone(), console)?;
        assume(Role::Owner);
        description.compare(&machine.description)?;
        let mut state = saved.read(&machine.ram)?;
        fit.retime(&mut state.partition);
        machine.partition.restore(&state.partition)?;
        for (vcpu, state) in machine.vcpus.iter_mut().zip(&state.vcpus) {
            vcpu.restore(state)?;
        }
        let devices = machine.chipset.bus.restore(&state.devices);
        devices.map_err(SavedError::from)?;
        Ok(machine)
    }

    /// A machine with nothing in its memory and its vCPUs just reset.
    fn assemble(
        engine: &dyn Engine,
        config: MachineConfig,
        profile: CpuProfile,
        console: Arc<dyn ConsoleBackend>,
    ) -> Result<Self, MachineError> {
        let physical_bits = profile
            .physical_bits
            .min(engine.capabilities().physical_bits);
        let ranges =
            memory_map::ram_ranges(config.memory, physical_bits, memory_map::host_memory())?;
        let ram = GuestRam::new(&ranges)?;
        let mut firmware = Firmware {
            payload: config.payload,
            disk: None,
            acpi: acpi::Config {
                vcpus: config.vcpus,
                pci_window_64: memory_map::pci_window_64(physical_bits),
            },
        };
        let partition = engine.partition(PartitionConfig {
            ram: ram.clone(),
            profile: profile.clone(),
            vcpus: config.vcpus,
        })?;
        // Guest time starts with the first instruction.
        partition.pause_clock();
        let vcpus = (0..config.vcpus)
            .map(|index| partition.vcpu(index))
            .collect::<Result<Vec<_>, _>>()?;

        let (events, queue) = mpsc::channel();
        let power = Arc::new(PowerSwitch::new(events.clone(), console.clone()));
        let chipset = Chipset::new(
            partition.clone(),
            &power,
            events.clone(),
            config.test_devices,
        )?;
        let plugger = Plugger::new(&chipset, &ram, &console, config.vcpus);
        plugger.plug_rng()?;
        let boots = matches!(firmware.payload.boot, BootFrom::Disk);
        let disks = plugger.plug_disks(config.disks, boots, &events)?;
        firmware.disk = disks.values().find(|disk| disk.boots).map(|disk| BootDisk {
            disk: disk.handle.disk().clone(),
            name: disk.file.clone(),
        });
        let nics = plugger.plug_nics(config.nics)?;
        let balloon = plugger.plug_balloon()?;
        let shares = plugger.plug_shares(config.shares)?;
        let vsock = config.vsock.map(|vsock| plugger.plug_vsock(vsock));
        let vsock = vsock.transpose()?;
        let ports: Vec<String> = config.ports.iter().map(|port| port.name.clone()).collect();
        let terminal = plugger.plug_console(config.ports)?;
        Ok(Machine {
            name: config.name,
            description: Description::new(
                profile,
                config.vcpus,
                config.memory,
                config.test_devices,
                SavedDisk::all(&disks),
                shares.iter().map(SavedShare::of).collect(),
            )
            .with_vsock(vsock.is_some())
            .with_nics(SavedNic::all(&nics))
            .with_ports(ports),
            places: Places::new(disks, nics),
            plugger,
            balloon,
            shares,
            vsock,
            terminal,
            ram,
            partition,
            vcpus,
            chipset,
            firmware,
            power,
            console,
            no_reboot: config.no_reboot,
            fault_interval: fault::INTERVAL,
            events,
            queue,
            state: Arc::new(Shared::new(State::Created)),
            gdb: None,
        })
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets debuggers connect to `listener` while the machine runs. The guest
    /// runs from the start; a debugger that connects stops it, one that
    /// detaches lets it go on.
    pub fn set_gdb(&mut self, listener: GdbListener) {
        self.gdb = Some(listener);
    }

    /// For controlling the machine from other threads; works before, during
    /// and after [`run`](Machine::run).
    pub fn handle(&self) -> MachineHandle {
        MachineHandle {
            events: self.events.clone(),
            state: self.state.clone(),
            pm: self.chipset.pm.clone(),
            nics: self.places.nics.clone(),
            balloon: self.balloon.clone(),
            vsock: self.vsock.clone(),
            console: self.terminal.clone(),
            power: self.power.clone(),
            input: ConsoleInput {
                uart: self.chipset.uart.clone(),
                signal: self.chipset.console.clone(),
            },
        }
    }

    /// Runs the machine until it ends. All its threads have ended, and all
    /// console output has reached the backend, when this returns.
    pub fn run(self) -> Outcome {
        let state = self.state.clone();
        let outcome = match Owner::start(self) {
            Ok(owner) => owner.run(),
            Err(error) => Outcome::Failed(format!("cannot start a thread: {error}")),
        };
        *crate::sync::lock(&state) = State::Stopped;
        outcome
    }
}

fn check_vcpus(engine: &dyn Engine, wanted: u32) -> Result<(), MachineError> {
    let most = engine.capabilities().max_vcpus.min(acpi::VCPUS_MAX);
    if wanted == 0 || wanted > most {
        return Err(MachineError::Vcpus { wanted, most });
    }
    Ok(())
}

fn profile(engine: &dyn Engine, model: CpuModel, vcpus: u32) -> Result<CpuProfile, Vec<Missing>> {
    engine.profile(model, Topology { vcpus })
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.name)
            .field("vcpus", &self.vcpus.len())
            .field("memory", &self.ram.size())
            .finish_non_exhaustive()
    }
}
